"""docs/flags.md shows the catalogue of flags, and every flag that app/ raises is in the catalogue."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from app.sdk.flags import FLAGS, Severity
from app.sdk.types import Flag
from tools import flags_page

ROOT = Path(__file__).parents[2]
RAISING = ("imaging", "inference", "dicom", "worker", "api")
CODE = re.compile(r"[a-z]+(-[a-z0-9]+)*")


def raised_codes() -> Iterator[str]:
    """Codes in calls like ``Flag(code="...")``, ``_flag("...")`` and ``study.flag("...")``."""
    for package in RAISING:
        for path in (ROOT / "app" / package).rglob("*.py"):
            for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
                name = getattr(call.func, "attr", getattr(call.func, "id", ""))
                if name in ("flag", "_flag") and len(call.args) > 1:
                    yield from _text(call.args[0])
                if name == "Flag":
                    for keyword in call.keywords:
                        if keyword.arg == "code":
                            yield from _text(keyword.value)


def _text(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def test_page_shows_the_catalogue() -> None:
    text = flags_page.PAGE.read_text(encoding="utf-8")
    assert flags_page.page(text) == text, "run: python tools/flags_page.py"


def test_every_raised_code_is_in_the_catalogue() -> None:
    codes = {code for code in raised_codes() if CODE.fullmatch(code)}
    assert {"alignment-poor", "imputed", "perfusion-differs", "contrast-doubtful"} <= codes  # the search finds them
    assert codes - FLAGS.keys() == set()


def test_severity_comes_from_the_catalogue_and_an_unknown_code_is_a_warning() -> None:
    assert Flag(code="imputed", detail="").severity is Severity.INFO
    assert Flag(code="alignment-poor", detail="").severity is Severity.WARNING
    assert Flag(code="of-a-later-release", detail="").severity is Severity.WARNING
    assert Flag.model_validate({"code": "imputed", "detail": "", "severity": "warning"}).severity is Severity.WARNING
