"""docs/screenshots.md shows every state of the pages, at every width, light and dark."""

from __future__ import annotations

import itertools
import re

from tools import screenshots

MOST_BYTES = 3_000_000


def test_every_state_has_its_pictures() -> None:
    states = screenshots.NAMES
    expected = {
        screenshots.file_name(*each) for each in itertools.product(states, screenshots.WIDTHS, screenshots.THEMES)
    }
    shown = re.findall(r"\(screenshots/([^)]+)\)", screenshots.PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(expected)
    files = {path.name: path.stat().st_size for path in screenshots.FOLDER.iterdir()}
    assert set(files) == expected
    assert sum(files.values()) < MOST_BYTES
