"""Segmentation objects (PS3.3, A.51): vessels, perfusion core and tissue with Tmax > 6 s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from app.dicom.objects.codes import own, standard
from app.dicom.objects.geometry import frames, planes
from app.dicom.objects.identity import ObjectContext, finish
from app.imaging.io.nifti import Volume

__all__ = ["MASKS", "segmentation"]

_STRUCTURE = standard("SCT", "91723000", "Anatomical structure")
_ABNORMAL = standard("SCT", "49755003", "Morphologically abnormal structure")
_ALGORITHM = standard("DCM", "123110", "Artificial Intelligence")  # CID 7162


@dataclass(frozen=True)
class _Segment:
    label: str
    category: CodedConcept
    kind: CodedConcept


MASKS: Mapping[str, _Segment] = {
    "vessels": _Segment("Vessels", _STRUCTURE, standard("SCT", "59820001", "Blood vessel")),
    "core": _Segment("Perfusion core", _ABNORMAL, standard("SCT", "55641003", "Infarct")),
    "tmax6": _Segment("Tmax > 6 s", _ABNORMAL, own("tmax-over-6-s", "Tissue with Tmax above 6 s")),
}
"""Segments by the name of the map of a prediction; the order numbers the instances."""


def segmentation(context: ObjectContext, name: str, mask: Volume) -> Dataset | None:
    """Make the segmentation of one mask.

    Args:
        context: the prediction.
        name: a key of ``MASKS``.
        mask: (X, Y, Z) on a grid of the patient; above 0.5 is inside.

    Returns:
        The object; None if the mask is empty.

    Raises:
        NotRectangular: the rows and columns of the mask are not at right angles.
    """
    inside: NDArray[np.uint8] = (mask.data > (0.5 - mask.inter) / mask.slope).view(np.uint8)
    used = np.flatnonzero(inside.any(axis=(0, 1)))
    if not len(used):
        return None
    first, last = int(used[0]), int(used[-1])
    inside, affine = inside[:, :, first : last + 1], mask.affine.copy()
    affine[:3, 3] += first * affine[:3, 2]
    segment = MASKS[name]
    number = list(MASKS).index(name) + 1
    model = context.prediction.model
    description = SegmentDescription(
        segment_number=1,
        segment_label=segment.label,
        segmented_property_category=segment.category,
        segmented_property_type=segment.kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=model.name[:64], family=_ALGORITHM, version=model.version[:64]
        ),
        tracking_uid=context.uid("segment", name),
        tracking_id=f"rlvo {name}",
    )
    made = Segmentation(
        source_images=[context.source()],
        pixel_array=frames(inside),
        segmentation_type="BINARY",
        segment_descriptions=[description],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label=name.upper(),
        content_description=segment.label,
        content_qualification="RESEARCH",
        **context.equipment("segmentation", number),
        **planes(affine, inside.shape[2]).arguments(),
    )
    context.reference_study(made)
    return finish(made, context, "segmentation", "rlvo segmentation")
