"""The folder of a report has a name, and no other folder is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.training import report_folder
from app.training.errors import CohortFault


@pytest.mark.parametrize("name", ["report.md", "report.json"])
def test_earlier_report_and_new_folder_may_be_replaced(tmp_path: Path, name: str) -> None:
    report_folder.check(None)
    report_folder.check(tmp_path)  # empty
    report_folder.check(tmp_path / "new")
    (tmp_path / name).touch()
    (tmp_path / "roc.svg").touch()
    report_folder.check(tmp_path)


def test_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(CohortFault, match="other files"):
        report_folder.check(tmp_path)
    with pytest.raises(CohortFault, match="is a file"):
        report_folder.check(tmp_path / "thesis.docx")


def test_default_name_holds_the_table_the_model_and_the_run() -> None:
    name = report_folder.default(Path("data"), Path("data/stroke 2024.xlsx"), ["daft"], "0123456789abcdef")
    assert name == Path("data/reports/stroke-2024-daft-01234567")
    folder = report_folder.default(Path("data"), Path("data/v1.5"), ["tried-0.1.0"], "ab")
    assert folder.name == "v1-tried-0.1.0-ab"
