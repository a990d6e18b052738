"""Find words that rlvo's texts avoid, because a reader must guess what they mean (CONTRIBUTING.md).

Run it with ``make check``. It reads source, docs and web pages and fails with a list of places.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = (
    "app",
    "bench",
    "deploy",
    "docs",
    "examples",
    "migrations",
    "tests",
    "*.md",
    "Makefile",
    "pyproject.toml",
    ".ci",
)
ENDINGS = (".py", ".md", ".js", ".html", ".toml", ".yaml", ".yml", ".mako", "Makefile", "run")
AVOIDED = re.compile(
    r"\b(houses?|nobody|whoever|somebody|in its own words|for the sake of|at the price of|were not had)\b"
    r"|\b(rooms?|doors?)\b",
    re.IGNORECASE,
)
CLINICAL = re.compile(r"\b(onset|alert|stroke|door)[-_ ]to[-_ ]\w+|room temperature|in-house", re.IGNORECASE)
"""Clinical intervals, such as onset-to-door, are the one use of "door"."""


def main() -> int:
    """Print every place that holds such a word; return 1 if there is one."""
    listed = subprocess.run(["git", "ls-files", *PLACES], cwd=ROOT, capture_output=True, text=True, check=True)
    found = 0
    for name in listed.stdout.splitlines():
        if not name.endswith(ENDINGS) or "/vendor/" in name or not (ROOT / name).is_file():
            continue
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
            if match := AVOIDED.search(CLINICAL.sub("", line)):
                print(f"{name}:{number}: {match.group(0)}: {line.strip()[:100]}")
                found += 1
    print(f"words to avoid: {found}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
