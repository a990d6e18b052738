"""Write the reference of docs/python-api.md from docstrings: ``python tools/python_api_page.py``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import rlvo.evaluation as ev

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python-api.md"
START, END = "<!-- reference: written by tools/python_api_page.py -->", "<!-- end of reference -->"
GROUPS = {
    "Performance": ("discrimination", "compare_auc", "calibration", "brier_score", "net_benefit", "decisions"),
    "Subgroups and sites": ("subgroups", "pool_sites", "pool_estimates", "pool_aggregates"),
    "Recalibration, drift, size of a study": ("recalibrate", "recalibrated", "drift", "study_size"),
    "Versions and cohorts": ("load_version", "predict_cohort"),
    "Complete report": ("validate", "write_report"),
    "Plots": ("plot_roc", "plot_calibration", "plot_net_benefit", "plot_forest"),
}
SECTION = re.compile(r"^(Args|Returns|Raises|Attributes):$", re.MULTILINE)


def reference() -> str:
    """The reference as Markdown: functions by group, then the classes of the results."""
    parts = []
    for title, names in GROUPS.items():
        parts.append(f"## {title}")
        parts += [_function(name) for name in names]
    parts.append("## Results\n\nAll are frozen dataclasses.")
    parts += [_class(name) for name in ev.__all__ if inspect.isclass(getattr(ev, name))]
    return "\n\n".join(parts)


def _function(name: str) -> str:
    function = getattr(ev, name)
    signature = inspect.signature(function)
    names, only_named = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not only_named:
            names.append("*")
            only_named = True
        is_required = parameter.default is parameter.empty
        names.append(parameter.name if is_required else f"{parameter.name}={_default(parameter.default)}")
    return f"### {name}\n\n`{name}({', '.join(names)})`\n\n{_prose(inspect.getdoc(function) or '')}"


def _default(value: object) -> str:
    return "..." if isinstance(value, tuple) and value else repr(value)


def _class(name: str) -> str:
    kind = getattr(ev, name)
    own = [
        (key, member.__doc__ or "")
        for key, member in vars(kind).items()
        if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    ]
    text = inspect.getdoc(kind) or ""
    names = ", ".join(f"`{field}`" for field in kind.__dataclass_fields__)
    fields = "" if "Attributes:" in text else f"Fields: {names}."
    members = "\n".join(f"- `{key}`: {said.splitlines()[0]}" for key, said in own if said)
    return "\n\n".join(part for part in (f"### {name}", _prose(text), fields, members) if part)


def _prose(text: str) -> str:
    """A docstring as Markdown: its sections as lists."""
    first, *rest = SECTION.split(text)
    parts = [first.replace("``", "`").strip()]
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        entries = re.split(r"\n(?=    \S)", body.strip("\n"))
        lines = [" ".join(entry.split()) for entry in entries]
        if title == "Returns":
            parts.append(f"Returns: {' '.join(lines)}".replace("``", "`"))
            continue
        shown = [
            re.sub(r"^([\w, ]+): ", r"`\1`: " if title in ("Args", "Attributes") else r"\1: ", one) for one in lines
        ]
        listed = "\n".join(f"- {one}" for one in shown).replace("``", "`")
        parts.append(f"{title}:\n\n{listed}")
    return "\n\n".join(parts)


def page(text: str) -> str:
    """``text`` with the reference between the two markers."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{reference()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
