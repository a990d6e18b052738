"""Print the size and the structure of ``app/``: lines, packages, loose modules, equal class names, longest function.

Run it with ``make structure``. It reads source text only and imports nothing of rlvo.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

APP = Path(__file__).resolve().parents[1] / "app"


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function from ``def`` to its end, docstring included."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def main() -> None:
    """Print one figure a line."""
    lines = filled = 0
    classes: dict[str, list[str]] = defaultdict(list)
    functions: list[tuple[int, str]] = []
    for path in sorted(APP.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(APP.parent))
        lines += len(text.splitlines())
        filled += sum(1 for line in text.splitlines() if line.strip())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(name)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append((length(node), f"{name}:{node.name}"))
    packages = sorted(path.name for path in APP.iterdir() if path.is_dir() and not path.name.startswith("__"))
    loose = [path.name for path in APP.glob("*.py") if path.name != "__init__.py"]
    equal = {name: places for name, places in classes.items() if len(places) > 1}
    print(f"lines of app/*.py: {filled} without blank lines, {lines} with them")
    print(f"packages: {len(packages)} ({', '.join(packages)})")
    print(f"loose modules: {len(loose)} ({', '.join(loose)})")
    print(f"class names used twice: {len(equal)}{''.join(f'; {name}: {places}' for name, places in equal.items())}")
    longest, place = max(functions)
    print(f"longest function: {longest} lines ({place})")


if __name__ == "__main__":
    main()
