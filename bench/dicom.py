"""One phantom as NIfTI and as DICOM: difference of the log-odds; roles of the series of 300 synthetic studies.

``python -m bench dicom [--roles 300] [--spacing 1.5] [--names tests/dicom/names/unseen.csv]``. Printed:

- for each way to write the NCCT (regular, tilted by 18.5 degrees, uneven, compressed, enhanced, shuffled and doubled):
  the difference of the log-odds from those of the NIfTI volume, or why the series is refused;
- roles: series with the right role, in studies of every naming scheme with drawn protocols; with ``--names``, of the
  schemes of a file only. A wrong role is silent if no doubt is stated and the prediction uses the series.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.dicom.convert import convert
from app.dicom.roles import choose
from app.dicom.stacks import make_stacks
from app.dicom.writing import Syntax
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.inference.model_version import ModelVersion
from app.phantoms import biology, dicom_series, dicom_study, scene, volumes
from app.phantoms.biology import Preset
from app.phantoms.dicom_series import ENHANCED_CT, SeriesPlan, planned_slices
from app.registry.model_store import ModelStore
from app.sdk.clinical import ClinicalRecord
from app.sdk.errors import InvalidDicom
from app.sdk.types import Input
from bench.model_stores import DEMO, MODEL_STORE

SEED = 2121
TILT_DEGREES = 18.5
Image = tuple[NDArray[Any], NDArray[np.float64]]


def phantom(spacing_mm: float) -> tuple[Image, Image]:
    """NCCT and CTA of one patient."""
    patient = biology.draw(1, SEED, Preset.INTERACTION)[0]
    one = scene.build(patient, scene.draw_variation(SEED, 0, scene.PLAIN))
    pose = volumes.draw_pose(np.random.default_rng(SEED))
    spacing = dict.fromkeys(("ncct", "cta"), (spacing_mm, spacing_mm, 2.0))
    found = {each.name: each for each in volumes.series(one, pose, spacing) if each.name in ("ncct", "cta")}
    ncct, cta = ((each.data.astype(np.int16), each.affine) for each in (found["ncct"], found["cta"]))
    return ncct, cta


def tilted(image: Image) -> Image:
    """The image on a grid whose slices are moved in their plane, as by a gantry tilt."""
    return dicom_study.tilted(*image, TILT_DEGREES)


def uneven(image: Image) -> tuple[Image, NDArray[np.intp]]:
    """Slices at distances of 2 to 6 mm, and the volume that linear interpolation makes of them."""
    data, affine = image
    steps = np.random.default_rng(SEED).integers(1, 4, data.shape[2])
    kept = np.cumsum(steps)[np.cumsum(steps) < data.shape[2]]
    places = np.arange(kept[0], kept[-1] + 1)
    lower = np.clip(np.searchsorted(kept, places, side="right") - 1, 0, len(kept) - 2)
    share = (places - kept[lower]) / (kept[lower + 1] - kept[lower])
    values = data[:, :, kept[lower]] * (1 - share) + data[:, :, kept[lower + 1]] * share
    shifted = affine.copy()
    shifted[:3, 3] += affine[:3, 2] * kept[0]
    return (values.astype(np.float32), shifted), kept


def cases(ncct: Image) -> Iterator[tuple[str, Image, list[bytes]]]:
    """Name, NIfTI volume, and DICOM files of each case."""
    plan = SeriesPlan("ncct", 2, "Head native", thickness=2.0, **planned_slices(*ncct))
    regular = list(dicom_series.files(plan, SEED))
    yield "regular", ncct, regular
    lean = tilted(ncct)
    leaning = replace(plan, **planned_slices(*lean))
    yield "tilted 18.5 degrees", lean, list(dicom_series.files(leaning, SEED))
    (data, affine), kept = uneven(ncct)
    assert plan.positions is not None
    assert plan.pixels is not None
    read = plan.pixels
    some = replace(plan, positions=plan.positions[kept], thickness=4.0, pixels=lambda n, t: read(int(kept[n]), t))
    yield "uneven", (data, affine), list(dicom_series.files(some, SEED))
    yield "gap", ncct, regular[:30] + regular[34:]
    for syntax in (Syntax.RLE, Syntax.JPEG2000, Syntax.JPEG_LS, Syntax.DEFLATED):
        yield syntax.value, ncct, list(dicom_series.files(plan, SEED, syntax=syntax))
    yield "enhanced CT", ncct, list(dicom_series.files(replace(plan, sop_class=ENHANCED_CT), SEED))
    order = np.random.default_rng(SEED).permutation(len(regular))
    yield "shuffled and doubled", ncct, [regular[k] for k in order] + regular


def compare(spacing_mm: float) -> None:
    """Print the difference of each case."""
    entry = ModelStore(MODEL_STORE).resolve(DEMO)
    version = ModelVersion.load(entry.folder, entry.manifest, "cpu")
    ncct, cta = phantom(spacing_mm)
    known: dict[bytes, float] = {}

    def log_odds(image: Image) -> float:
        data, affine = image
        key = data.tobytes() + np.round(affine, 3).tobytes()
        if key not in known:
            sent = {Input.NCCT: Volume(data, affine), Input.CTA: Volume(*cta)}
            answer = version.predict(version.prepare(sent, ClinicalRecord(age=70)))
            known[key] = float(np.log(answer.probability / (1 - answer.probability)))
        return known[key]

    with tempfile.TemporaryDirectory() as folder:
        for name, image, written in cases(ncct):
            study = Path(folder) / name
            study.mkdir()
            for number, content in enumerate(written):
                (study / str(number)).write_bytes(content)
            try:
                volume = nifti.read(convert(study, Path(folder)).volumes[Input.NCCT], field=Input.NCCT)
            except InvalidDicom as error:
                print(f"{name:22} refused: {error.detail}")
                continue
            difference = log_odds((volume.data, volume.affine)) - log_odds(image)
            print(f"{name:22} difference of the log-odds {difference:+.6f}", flush=True)


def roles(count: int, schemes: Sequence[Mapping[str, str]]) -> None:
    """Print how many series have the right role, and the wrong ones."""
    right = total = silent = 0
    wrong: Counter[tuple[str, ...]] = Counter()
    for number in range(count):
        scheme, rng = schemes[number % len(schemes)], np.random.default_rng([number, SEED])
        instances, truth = [], {}
        for plan in dicom_study.plan_study(scheme, dicom_study.draw_protocol(rng), {}, rng):
            made = dicom_series.instances(plan, number, len(instances))
            instances += made
            truth[made[0].series.uid] = plan
        for choice in choose(make_stacks(instances)):
            for uid in choice.stack.series:
                total += 1
                plan = truth[uid]
                if choice.role.value == plan.truth:
                    right += 1
                    continue
                silent += choice.used and choice.certain
                doubt = "" if choice.certain else "doubtful"
                wrong[scheme["scheme"], plan.description, plan.truth, choice.role.value, choice.rule, doubt] += 1
    print(f"roles: {right} of {total} series right, {count} studies, {len(schemes)} naming schemes; {silent} silent")
    for case, times in wrong.most_common():
        print(f"  {times} {case}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roles", type=int, default=300, help="number of synthetic studies")
    parser.add_argument("--spacing", type=float, default=1.5, help="voxel size in the slice, mm; 0: roles only")
    parser.add_argument("--names", type=Path, help="file of naming schemes, as app/phantoms/dicom_names.csv")
    options = parser.parse_args()
    if options.spacing:
        compare(options.spacing)
    if options.roles:
        roles(options.roles, list(dicom_study.naming_schemes(options.names).values()))


if __name__ == "__main__":
    main()
