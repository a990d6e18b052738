"""All result objects of one prediction, as files.

Design notes:
- Objects that a prediction has no data for are left out: without an explanation, there is the report only.
- Without one frame of reference, nothing is placed in the patient: there are no segmentations and no maps.
- Maps are made from the exact maps on the model's grid (`app.imaging.deposit`), so that their sums are those of the
  report. The maps for viewers are rounded.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from app.core.display_names import channel_label
from app.dicom.objects.document import document
from app.dicom.objects.geometry import NotRectangular
from app.dicom.objects.identity import ObjectContext, serialise
from app.dicom.objects.key_images import key_image
from app.dicom.objects.kinds import ObjectKind
from app.dicom.objects.parametric_map import map_number, parametric_map
from app.dicom.objects.segmentation import MASKS, segmentation
from app.dicom.objects.structured_report import structured_report
from app.dicom.return_address import ReturnAddress
from app.imaging.deposit import deposit
from app.imaging.io import nifti
from app.imaging.io.nifti import Volume
from app.reporting.document import pdf
from app.sdk.types import Channel, Input, Prediction

__all__ = ["ObjectFile", "make"]

_CAPTIONS = {
    "waterfall": "What every variable and image adds",
    "perfusion": "Perfusion volumes",
    "position": "This patient among training patients",
}


@dataclass(frozen=True)
class ObjectFile:
    """One object.

    Attributes:
        name: file name in an archive, such as ``segmentation-2.dcm``.
        sop_class_uid, sop_instance_uid: UIDs.
        content: the file.
    """

    kind: ObjectKind
    name: str
    sop_class_uid: str
    sop_instance_uid: str
    content: bytes


def make(
    prediction: Prediction,
    address: ReturnAddress,
    files: Mapping[str, Path],
    kinds: Collection[ObjectKind] = tuple(ObjectKind),
) -> Iterator[ObjectFile]:
    """Make the objects of a prediction, one after the other; the report is first.

    Args:
        prediction: a prediction that succeeded, as stored.
        address: patient and study.
        files: stored files of the prediction by name, such as ``maps/vessels.nii.gz``.
        kinds: kinds of objects to make.

    Yields:
        The objects; the same bytes at each call.
    """
    context = ObjectContext(prediction, address)
    # The report refers to the maps.
    maps = dict(_maps(context, files)) if {ObjectKind.REPORT, ObjectKind.ATTRIBUTION} & set(kinds) else {}
    if ObjectKind.REPORT in kinds:
        yield _file(structured_report(context, [(each, map_number(each)) for each in maps]), ObjectKind.REPORT, 1)
    for number, name in enumerate(MASKS if ObjectKind.SEGMENTATION in kinds else (), start=1):
        if (made := _mask(context, name, files)) is not None:
            yield _file(made, ObjectKind.SEGMENTATION, number)
    for channel, made in (maps if ObjectKind.ATTRIBUTION in kinds else {}).items():
        yield _file(made, ObjectKind.ATTRIBUTION, map_number(channel))
    figures = _figures(files)
    for number, (name, (caption, png)) in enumerate(figures.items() if ObjectKind.KEY_IMAGES in kinds else (), start=1):
        yield _file(key_image(context, number, name, caption, png), ObjectKind.KEY_IMAGES, number)
    if ObjectKind.DOCUMENT in kinds:
        yield _file(document(context, pdf(prediction, dict(figures.values()))), ObjectKind.DOCUMENT, 1)


def _file(made: Dataset, kind: ObjectKind, number: int) -> ObjectFile:
    name = f"{kind}-{number}.dcm"
    return ObjectFile(kind, name, str(made.SOPClassUID), str(made.SOPInstanceUID), serialise(made))


def _maps(context: ObjectContext, files: Mapping[str, Path]) -> Iterator[tuple[Channel, Dataset]]:
    if "alignment.json" not in files or not context.frame_of_reference:
        return
    grids = json.loads(files["alignment.json"].read_bytes())
    for channel in Channel:
        name = f"maps/aligned-attribution-{channel}.nii.gz"
        if name not in files or channel not in grids:
            continue
        exact, grid = nifti.read(files[name], field=Input.CTA), grids[channel]
        values = deposit(exact.values(), exact.affine, np.array(grid["affine"]), np.array(grid["mni_from_world"]))
        try:
            yield channel, parametric_map(context, channel, values)
        except NotRectangular:
            continue


def _mask(context: ObjectContext, name: str, files: Mapping[str, Path]) -> Dataset | None:
    path = files.get(f"maps/{name}.nii.gz", files.get(f"inputs/{name}.nii"))
    if path is None or not context.frame_of_reference:
        return None
    volume = nifti.read(path, field=Input.VESSELS)
    try:
        return segmentation(context, name, Volume(volume.data, volume.affine, volume.slope, volume.inter))
    except NotRectangular:
        return None


def _figures(files: Mapping[str, Path]) -> dict[str, tuple[str, bytes]]:
    """Caption and content of each figure by its name, the overlays first."""
    names = [name for name in files if name.startswith("figures/") and name.endswith(".png")]
    figures = {}
    for name in sorted(names, key=lambda each: ("overlay-" not in each, each)):
        stem = Path(name).stem
        caption = _CAPTIONS.get(stem) or stem.replace("-", " ")
        if stem.startswith("overlay-"):
            caption = f"{channel_label(stem.removeprefix('overlay-'))}: where it raised and lowered the probability"
        figures[stem] = caption, files[name].read_bytes()
    return figures
