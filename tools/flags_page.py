"""Write the tables of docs/flags.md from the catalogue in app/sdk/flags.py: ``python tools/flags_page.py``."""

from __future__ import annotations

from pathlib import Path

from app.sdk.flags import FLAGS, Severity

PAGE = Path(__file__).resolve().parents[1] / "docs" / "flags.md"
START, END = "<!-- flags: written by tools/flags_page.py -->", "<!-- end of flags -->"


def tables() -> str:
    """Both tables as Markdown: warnings first."""
    parts = []
    for severity, title in ((Severity.WARNING, "Warnings"), (Severity.INFO, "Info")):
        rows = [
            f"| `{code}` | {kind.meaning} | {kind.measured} | {kind.action} |"
            for code, kind in sorted(FLAGS.items())
            if kind.severity is severity
        ]
        parts.append(f"## {title}\n\n| code | meaning | measured | what to do |\n|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts)


def page(text: str) -> str:
    """``text`` with the tables between the two markers."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
