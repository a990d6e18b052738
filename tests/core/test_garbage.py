"""Searches for unreachable objects are rare during a start, and as usual after it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc
from app.core import garbage
usual, searches = gc.get_threshold(), []
gc.callbacks.append(lambda phase, _: searches.append(phase))
def objects():
    searches.clear()
    kept = [[] for _ in range(50_000)]
    return len(searches)
garbage.begin_start()
assert gc.isenabled() and objects() == 0
garbage.end_start()
assert gc.get_threshold() == usual and gc.get_freeze_count() > 1000
assert objects() > 50
"""


def test_searches_are_rare_during_a_start_and_usual_afterwards() -> None:
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_start_that_lasts_still_frees_what_is_unreachable() -> None:
    code = CODE.partition("garbage.begin_start()")[0] + (
        "import weakref\n"
        "class Node: pass\n"
        "garbage.begin_start()\n"
        "one = Node(); one.own = one; gone = weakref.ref(one); del one\n"
        "kept = [[] for _ in range(300_000)]\n"
        "assert gone() is None\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
