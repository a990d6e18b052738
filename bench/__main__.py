"""Run the benches. ``python -m bench`` runs all of them.

``python -m bench NAME...`` runs these, ``python -m bench NAME --OPTION...`` passes options to one, and ``--list``
prints the names. A bench is a module of this folder with a function ``main()``. The first line of its docstring says
what it measures.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def benches() -> dict[str, str]:
    """Return the first docstring line of each bench by its name, read from the source without an import."""
    lines = {}
    for path in sorted(FOLDER.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body)
        if has_main and not path.name.startswith("_"):
            lines[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return lines


def main(arguments: list[str]) -> int:
    """Run the named benches; return 1 if one of them failed, 2 for an unknown name."""
    known = benches()
    if arguments == ["--list"]:
        print("\n".join(f"{name:18} {line}" for name, line in known.items()))
        return 0
    first_option = next((n for n, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    names, options = arguments[:first_option], arguments[first_option:]
    if options and len(names) != 1:
        print("options need the name of one bench before them", file=sys.stderr)
        return 2
    if unknown := set(names) - set(known):
        print(f"unknown bench: {', '.join(sorted(unknown))}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or known:
        print(f"\n== {name}: {known[name]}\n", flush=True)
        # One process for each bench, so that one does not change the peak memory or the threads of another.
        if subprocess.run([sys.executable, "-m", f"bench.{name}", *options], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
