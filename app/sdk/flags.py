"""Catalogue of the flags of a prediction: severity, meaning, what was measured, and what to do.

Design notes:
- ``warning``: the inputs or the answer cannot be trusted; the decision is withheld unless the caller accepts warnings.
- ``info``: something was assumed, computed, imputed or is unusual; the answer stands.
- A code never changes its meaning. docs/flags.md is written from this catalogue by ``tools/flags_page.py``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Severity(StrEnum):
    """Severity of a flag; a ``warning`` withholds the decision."""

    INFO = "info"
    WARNING = "warning"


class FlagKind(NamedTuple):
    """What a flag code says: severity, meaning, the measurement behind it, and what to do."""

    severity: Severity
    meaning: str
    measured: str
    action: str


def severity_of(code: str) -> Severity:
    """Severity of a code; a code that this release does not know counts as a warning."""
    return FLAGS[code].severity if code in FLAGS else Severity.WARNING


def action_of(code: str) -> str:
    """What to do about a code."""
    return FLAGS[code].action if code in FLAGS else "Read docs/flags.md of the release that the service runs."


_INFO, _WARNING = Severity.INFO, Severity.WARNING

_HEADER: Final = {
    "affine-disagree": FlagKind(
        _INFO,
        "Two descriptions of the position in the NIfTI header disagree; the sform is used.",
        "Distance of the corners of the volume between qform and sform, or voxel size beside sform.",
        "Convert the series from DICOM again.",
    ),
    "non-finite-voxels": FlagKind(
        _INFO,
        "Some voxels are NaN or infinite; they count as the lowest value.",
        "Every voxel.",
        "None for background. Otherwise export the volume again.",
    ),
    "scaling-ignored": FlagKind(
        _INFO,
        "The header has an intercept without a slope; NIfTI requires that both are ignored.",
        "scl_slope and scl_inter.",
        "Check that the values are in their unit.",
    ),
    "time-step-unknown": FlagKind(
        _INFO,
        "The time between the frames of the CT perfusion series is missing, or not between 0.05 and 60 s.",
        "pixdim[4] and the time unit of the header.",
        "Convert the series again with its frame times.",
    ),
    "units-assumed": FlagKind(
        _INFO,
        "The header gives no length unit; millimetres are assumed.",
        "xyzt_units.",
        "None if the volume was converted from DICOM.",
    ),
}

_CT: Final = {
    "alignment-poor": FlagKind(
        _WARNING,
        "The CT could not be aligned well to MNI space, or the NCCT to the CTA.",
        "Quality of the registration.",
        "Look at the aligned volumes. Check orientation, slice distance and completeness of the series.",
    ),
    "contrast-doubtful": FlagKind(
        _WARNING,
        "The CTA has no bright arteries, or the NCCT has.",
        "Volume of bright voxels inside the skull.",
        "Check that NCCT and CTA are not exchanged.",
    ),
    "coverage": FlagKind(
        _INFO,
        "Part of the brain, or of the circle of Willis, lies outside the field of view.",
        "Share of the MNI brain inside the volume.",
        "Send the complete series if there is one.",
    ),
    "head-doubtful": FlagKind(
        _WARNING,
        "No brain within a closed skull was found.",
        "Area of soft tissue inside bone in an axial slice.",
        "Check that the series shows the whole head.",
    ),
    "head-size-implausible": FlagKind(
        _WARNING,
        "The head has a size, proportions or a shear that hardly any adult head has.",
        "Width, length, height and shear of the intracranial space, relative to the MNI template.",
        "Check the voxel size, the distance of the slices and the gantry tilt; convert the series from DICOM again.",
    ),
    "orientation-doubtful": FlagKind(
        _WARNING,
        "A head is turned far against the axes of its header, or NCCT and CTA are mirror images: sides may be wrong.",
        "Angle between the axes of the head and those of the header; asymmetry of the skull in NCCT and CTA.",
        "Check the orientation of the series in a viewer; convert it from DICOM again.",
    ),
    "skull-stripped": FlagKind(
        _INFO,
        "The skull and the air around it were removed before upload.",
        "Share of air, and the values of the rest.",
        "Send the original series.",
    ),
    "slices-missing": FlagKind(
        _WARNING,
        "Slices are missing or empty inside the head, or the head moved between two slices.",
        "Difference of neighbouring slices, beside those around it.",
        "Send the whole series.",
    ),
    "slice-thickness": FlagKind(
        _INFO,
        "The slices are thicker than the model was trained on.",
        "Largest voxel edge.",
        "Send the thin reconstruction.",
    ),
}

_STUDY: Final = {
    "study-mismatch": FlagKind(
        _WARNING,
        "Two parts of the study seem to show two heads, or one of them has a wrong voxel size.",
        "Skull of the NCCT beside the CTA after a rigid registration; outline of the maps beside the brain of the CT.",
        "Check that all volumes are of one patient.",
    )
}

_VESSELS: Final = {
    "vessels-computed": FlagKind(
        _INFO, "The vessel mask was not sent; it is computed from the CTA.", "Inputs of the study.", "None."
    ),
    "vessels-empty": FlagKind(
        _WARNING, "The vessel mask contains no vessel.", "Voxels in the mask.", "Send the mask again, or leave it out."
    ),
}

_PERFUSION: Final = {
    "aif-doubtful": FlagKind(
        _WARNING,
        "The CT perfusion series has no clear arterial curve.",
        "Peak of the arterial curve, beside noise and tissue.",
        "Check the order and the time step of the frames, or send the scanner's maps.",
    ),
    "ctp-baseline-short": FlagKind(
        _INFO, "The series starts with the bolus.", "Frames before the arrival.", "None; the maps are less exact."
    ),
    "ctp-motion": FlagKind(
        _INFO, "The head moved during the series; motion was corrected.", "Largest shift of a frame.", "None."
    ),
    "ctp-truncated": FlagKind(
        _INFO,
        "The series ends before the contrast has washed out; delays may be too short.",
        "Mean of the last frames, beside the peak.",
        "Send the whole series.",
    ),
    "perfusion-computed": FlagKind(
        _INFO, "Perfusion maps were not sent; they are computed from the series.", "Inputs of the study.", "None."
    ),
    "perfusion-differs": FlagKind(
        _INFO,
        "A perfusion number of the record differs from the computed one; the record is used.",
        "Difference above a third, and above 5 mL or 0.1.",
        "Check the record and the maps.",
    ),
    "perfusion-misplaced": FlagKind(
        _WARNING,
        "The tissue of the maps lies beside the brain of the CT, or the maps are mirrored.",
        "Distance from the outline of the maps to the brain of the CT, and the share of their tissue in the brain.",
        "Send the maps with the scanner's coordinates.",
    ),
    "tmax-doubtful": FlagKind(
        _WARNING,
        "No delay of the Tmax map reaches 3 s.",
        "Highest values of the map.",
        "Check that the map is Tmax, in seconds.",
    ),
    "vof-doubtful": FlagKind(
        _INFO,
        "No venous curve is larger and later than the arterial one; CBF and CBV may be off by a common factor.",
        "Arterial and venous curves.",
        "None; relative CBF does not depend on it.",
    ),
}

_MODEL: Final = {
    "category-unknown": FlagKind(
        _INFO,
        "The version was not trained on this category; without a column for it, the value counts as missing.",
        "Categories in the manifest, and their shares in training.",
        "None. Train a version on patients of this category.",
    ),
    "imputed": FlagKind(
        _INFO,
        "Clinical values that the model reads are missing; they are imputed.",
        "Fields of the record.",
        "Send the values if they are known.",
    ),
    "missing-modality": FlagKind(
        _INFO,
        "An image that the model reads is missing; the model predicts without it.",
        "Inputs of the study.",
        "Send the image if there is one.",
    ),
    "not-used": FlagKind(
        _INFO,
        "Values or volumes were sent that this model version does not read.",
        "Fields of the record and of the manifest.",
        "None; they do not change the answer.",
    ),
    "out-of-distribution": FlagKind(
        _WARNING,
        "The study differs from the training patients.",
        "Mahalanobis distance of the features of the network.",
        "Look at the images. Do not rely on the answer.",
    ),
    "record-contradiction": FlagKind(
        _WARNING,
        "Perfusion numbers of the record do not fit together.",
        "Core, Tmax volumes, mismatch and ratios, beside each other (docs/clinical.md).",
        "Check the numbers in the report of the perfusion software.",
    ),
    "record-unusual": FlagKind(
        _INFO,
        "Values of the record are possible but unusual; they may be in another unit.",
        "Usual range of each field (docs/clinical.md).",
        "Check the unit.",
    ),
    "side-contradiction": FlagKind(
        _WARNING,
        "The sides of the occlusion in the record and in the images differ; no region is named affected.",
        "occlusion_side, and the asymmetry of Tmax, relative CBF and arteries.",
        "Check the record. Check that no volume is mirrored.",
    ),
    "side-from-images": FlagKind(
        _INFO,
        "The side of the occlusion was not sent; it is taken from the images.",
        "Asymmetry of Tmax, or of the arteries.",
        "Send occlusion_side.",
    ),
}

FLAGS: Final[dict[str, FlagKind]] = {**_HEADER, **_CT, **_STUDY, **_VESSELS, **_PERFUSION, **_MODEL}
"""Every code that a prediction can carry."""
