"""Valid studies that the input checks flag, and wrong ones that they miss: ``python -m bench.input_checks``.

Phantoms of many patients are varied as bench/variations describes, prepared as by the service, and counted by answer.
Answers are stored in a file, so that an interrupted run continues. The wrong studies of a kind (registration, parts of
a study, perfusion maps, perfusion series, vessel masks, Hounsfield units) are shared among its variations.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import pkgutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from rich.progress import track

from app.imaging import preprocess
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.inference import defaults
from app.phantoms import biology, scene, volumes
from app.phantoms.biology import Preset
from app.sdk.errors import RlvoError
from app.sdk.flags import Severity
from app.sdk.types import Input
from bench import variations

Study = dict[Input, Volume]
Variation = Callable[[Study, np.random.Generator], Study]

SEED = 1701
COARSE = {"ncct": (1.5, 1.5, 2.5), "cta": (1.2, 1.2, 1.2), "perfusion": (2.0, 2.0, 5.0)}
REFUSED = "refused"
REAL = {"ncct_human_ge_deskewed.nii.gz": Input.NCCT, "template_ct_stripped_hu.nii": Input.NCCT}
"""Real volumes in Hounsfield units, with the field that each is valid for."""


def modules() -> dict[str, tuple[dict[str, Variation], dict[str, tuple[Variation, set[str]]]]]:
    """Valid and wrong variations by module."""
    found = {}
    for module in pkgutil.iter_modules(variations.__path__):
        loaded = importlib.import_module(f"bench.variations.{module.name}")
        if hasattr(loaded, "WRONG"):
            found[module.name] = (loaded.VALID, loaded.WRONG)
    return found


@lru_cache(maxsize=4)
def phantom(index: int, seed: int = SEED) -> Study:
    """The volumes of one phantom, as a hospital would send them."""
    patient = biology.draw(index + 1, seed, Preset.INTERACTION)[index]
    drawn = scene.build(patient, scene.draw_variation(seed, index))
    pose = volumes.draw_pose(np.random.default_rng([seed, 5, index]))
    names = {"ncct": Input.NCCT, "cta": Input.CTA, "tmax": Input.TMAX, "cbf": Input.CBF}
    return {
        names[one.name]: Volume(one.data, one.affine)
        for one in volumes.series(drawn, pose, COARSE)
        if one.name in names
    }


def answer(study: Study) -> list[str]:
    """Codes of the warnings of a study, or that it is refused; information flags are left out."""
    try:
        images = preprocess.prepare(study, defaults.GRID, defaults.CHANNELS)
    except RlvoError as error:
        return [REFUSED, error.code]
    return sorted({flag.code for flag in images.flags if flag.severity is Severity.WARNING})


def run(task: tuple[str, str, str, int]) -> tuple[str, list[str]]:
    """Answer to one task: kind, module, variation and number of the phantom."""
    kind, module, name, index = task
    rng = np.random.default_rng([SEED, index, int(hashlib.sha256(f"{module}/{name}".encode()).hexdigest()[:8], 16)])
    study = dict(phantom(index))
    if name != "none":
        valid, wrong = modules()[module]
        vary = valid[name] if kind == "valid" else wrong[name][0]
        study = vary(study, rng)
    return "/".join(map(str, task)), answer(study)


def tasks(valid: int, wrong: int, only: list[str]) -> Iterator[tuple[str, str, str, int]]:
    """All tasks: ``valid`` phantoms shared among the valid variations and none, ``wrong`` for each kind of fault."""
    known = {name: pair for name, pair in modules().items() if not only or name in only}
    named = [("none", "none"), *((module, name) for module, (good, _) in known.items() for name in good)]
    for index in range(valid):
        module, name = named[index % len(named)]
        yield "valid", module, name, index
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for module, (_, bad) in known.items():
        for name in bad:
            kinds[variations.kind(module, name)].append((module, name))
    for faults in kinds.values():
        for index in range(wrong):
            yield "wrong", *faults[index % len(faults)], index


def real(folder: Path) -> None:
    """Print the answers to the real volumes."""
    print("\n| real volume | sent as | answer |\n|---|---|---|")
    for file, field in REAL.items():
        study = {field: nifti.read(folder / file, field=field)}
        print(f"| {file} | {field} | {', '.join(answer(study)) or 'no warning'} |")


def report(answers: dict[str, list[str]]) -> None:
    """Print what was flagged of the valid studies, and what was caught of the wrong ones."""
    grouped: dict[tuple[str, str, str], list[list[str]]] = defaultdict(list)
    for key, codes in answers.items():
        kind, module, name, _ = key.split("/")
        grouped[kind, module, name].append(codes)
    print("\n| valid study | studies | refused | with a warning | codes |\n|---|---|---|---|---|")
    totals = Counter[str]()
    for (kind, module, name), all_codes in sorted(grouped.items()):
        if kind == "valid":
            refused, warned = sum(REFUSED in c for c in all_codes), sum(bool(c) and REFUSED not in c for c in all_codes)
            totals.update(studies=len(all_codes), refused=refused, warned=warned)
            print(f"| {_title(module, name)} | {len(all_codes)} | {refused} | {warned} | {_codes(all_codes)} |")
    print(f"| all | {totals['studies']} | {totals['refused']} | {totals['warned']} | |")
    print("\n| kind | wrong study | studies | caught | with another warning | missed | codes |")
    print("|---" * 7 + "|")
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for (kind, module, name), all_codes in sorted(grouped.items()):
        if kind == "wrong":
            accepted, group = modules()[module][1][name][1], variations.kind(module, name)
            caught = sum(bool(accepted & set(codes)) for codes in all_codes)
            missed = sum(not codes for codes in all_codes)
            other = len(all_codes) - caught - missed
            kinds[group].update(studies=len(all_codes), caught=caught, other=other, missed=missed)
            row = f"{len(all_codes)} | {caught} | {other} | {missed}"
            print(f"| {group} | {_title(module, name)} | {row} | {_codes(all_codes)} |")
    for group, n in sorted(kinds.items()):
        print(f"| {group} | all | {n['studies']} | {n['caught']} | {n['other']} | {n['missed']} | |")


def _title(module: str, name: str) -> str:
    return "as drawn" if name == "none" else f"{module}: {name.replace('_', ' ')}"


def _codes(all_codes: list[list[str]]) -> str:
    counts = Counter(code for codes in all_codes for code in codes)
    return ", ".join(f"{code} {count}" for code, count in counts.most_common())


def main() -> None:
    """Run what is not stored yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--valid", type=int, default=500, help="number of valid studies")
    parser.add_argument("--wrong", type=int, default=200, help="number of wrong studies of each kind")
    parser.add_argument("--only", nargs="*", default=[], help="modules of bench/variations")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--answers", type=Path, default=Path(".bench/input_checks.jsonl"))
    parser.add_argument("--real", type=Path, default=Path("../shared/data/images"))
    options = parser.parse_args()
    options.answers.parent.mkdir(parents=True, exist_ok=True)
    lines = options.answers.read_text().splitlines() if options.answers.exists() else []
    stored: dict[str, list[str]] = dict(json.loads(line) for line in lines)
    wanted = ["/".join(map(str, task)) for task in tasks(options.valid, options.wrong, options.only)]
    todo = sorted(
        (task for task in tasks(options.valid, options.wrong, options.only) if "/".join(map(str, task)) not in stored),
        key=lambda task: task[3],  # a phantom is rendered once for neighbouring tasks
    )
    with ProcessPoolExecutor(options.jobs) as pool, options.answers.open("a") as file:
        for key, codes in track(pool.map(run, todo, chunksize=4), "studies", total=len(todo)):
            stored[key] = codes
            file.write(json.dumps([key, codes]) + "\n")
            file.flush()
    report({key: stored[key] for key in wanted})
    if options.real.exists():
        real(options.real)


if __name__ == "__main__":
    main()
