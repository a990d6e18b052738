"""``python -m bench``: every bench, one after the other. ``python -m bench NAME...``: those. ``--list``: their names.

A bench is a module of this folder with a ``main()``; its docstring's first line says what it measures.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def benches() -> dict[str, str]:
    """Name and first line of every bench, read from the source: a bench that is not asked for is not imported."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        runs = any(isinstance(each, ast.FunctionDef) and each.name == "main" for each in module.body)
        if runs and not path.name.startswith("_"):
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def main(arguments: list[str]) -> int:
    known = benches()
    if arguments == ["--list"]:
        print("\n".join(f"{name:10} {line}" for name, line in known.items()))
        return 0
    if unknown := set(arguments) - set(known):
        print(f"no bench called {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in arguments or known:
        print(f"\n== {name}: {known[name]}\n", flush=True)
        # A process each: memory at peak, and threads, are one bench's own.
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
