"""A variable that begins as a setting does, but sets nothing, is remarked; those of others are not."""

from __future__ import annotations

import pytest

from app.core.config import Settings
from app.core.unknown_settings import remarks


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RLVO_RETENTION_DAY", "RLVO_RETENTION_DAYS"),
        ("RLVO_DICOM_RETURNKEY", "RLVO_DICOM_RETURN_KEY"),
        ("rlvo_dicom_caller", "RLVO_DICOM_CALLERS"),
        ("RLVO_THREAD", "RLVO_THREADS"),
    ],
)
def test_misspelt_setting_is_remarked(name: str, meant: str) -> None:
    assert remarks([name]) == [f"{name} is no setting of rlvo and is not used. Is {meant} meant?"]


def test_name_like_no_setting_is_remarked() -> None:
    (remark,) = remarks(["RLVO_PACS_ADDRESS_BOOK"])
    assert "`rlvo settings`" in remark


def test_other_variables_are_not_remarked() -> None:
    settings = [f"RLVO_{name.upper()}" for name in Settings.model_fields]
    of_clients = ["RLVO_URL", "RLVO_API_KEY", "rlvo_port"]
    of_kubernetes = [
        *("RLVO_SERVICE_HOST", "RLVO_SERVICE_PORT", "RLVO_SERVICE_PORT_HTTP", "RLVO_PORT_80_TCP_ADDR"),
        *("RLVO_API_SERVICE_HOST", "RLVO_API_PORT", "RLVO_API_PORT_80_TCP"),
    ]
    assert remarks([*settings, *of_clients, *of_kubernetes, "PATH", "PACS_RLVO"]) == []
