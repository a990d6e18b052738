"""Catalogue of the flags of a prediction: severity, meaning, what was measured, and what to do.

Design notes:
- ``warning``: the inputs or the answer cannot be trusted; the decision is withheld unless the caller accepts warnings.
- ``info``: something was assumed, computed, imputed or is unusual; the answer stands.
- A code never changes its meaning. docs/flags.md is written from this catalogue by ``tools/flags_page.py``.
"""

from __future__ import annotations

from typing import Final

from .flag_kinds import FlagKind as FlagKind
from .flag_kinds import Severity as Severity
from .flags_dicom import DICOM
from .flags_images import CT, STUDY, VESSELS


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
        "Some voxels are NaN or infinite; they count as air or the lowest value, and in maps as no data.",
        "Every voxel.",
        "None for background. Otherwise export the volume again.",
    ),
    "scaling-ignored": FlagKind(
        _INFO,
        "The header has an intercept without a slope; NIfTI requires that both are ignored.",
        "scl_slope and scl_inter.",
        "Check that the values are in their unit.",
    ),
    "time-step-default": FlagKind(
        _WARNING,
        "The time step of the CT perfusion series is 1 without a unit, as a library writes it where none was set.",
        "pixdim[4] and the time unit of the header.",
        "Send the seconds between the frames as ctp_interval_s.",
    ),
    "time-step-unknown": FlagKind(
        _INFO,
        "The time between the frames of the CT perfusion series is missing, or not between 0.05 and 60 s.",
        "pixdim[4] and the time unit of the header.",
        "Convert the series again with its frame times.",
    ),
    "time-unit-assumed": FlagKind(
        _INFO,
        "The time step of the CT perfusion series has no unit; seconds are assumed.",
        "The time unit of the header.",
        "None if the step is right; otherwise send ctp_interval_s.",
    ),
    "units-assumed": FlagKind(
        _INFO,
        "The header gives no length unit; millimetres are assumed.",
        "xyzt_units.",
        "None if the volume was converted from DICOM.",
    ),
}

_PERFUSION: Final = {
    "aif-doubtful": FlagKind(
        _WARNING,
        "The CT perfusion series has no clear arterial curve.",
        "Peak of the arterial curve, beside noise and tissue.",
        "Check the order and the time step of the frames, or send the scanner's maps.",
    ),
    "bolus-cut": FlagKind(
        _WARNING,
        "The CT perfusion series starts or ends within the bolus; flow and delays are wrong.",
        "Last value and peak of the arterial curve.",
        "Send all frames, or the scanner's maps.",
    ),
    "bolus-doubtful": FlagKind(
        _WARNING,
        "The contrast falls faster than it rises, starts high, or reaches the sinus before the arteries.",
        "Skewness of the curves, end beside start, and times of arteries and sinus.",
        "Check the order of the frames, and that none is missing at the start.",
    ),
    "core-blanked": FlagKind(
        _WARNING,
        "A part of the brain beside delayed tissue has no data; it is probably severe hypoperfusion that the perfusion "
        "software left out. The core, and the numbers that depend on it, are not given.",
        "Voxels without data that data enclose, Tmax beside them, and their density in the CT.",
        "Export the maps without a threshold, or send the core volume in the record.",
    ),
    "core-dark": FlagKind(
        _INFO,
        "A part of the core has the density of fluid on the CT, on one side.",
        "Volume with CBF under 30 % of normal, Tmax over 4 s, and 15 HU or more below the brain; 5 mL or more is said.",
        "Look at the CT. An old infarct or a cyst counts as core: send the core volume without it in the record.",
    ),
    "core-delay-short": FlagKind(
        _INFO,
        "Tmax is unusually short where blood flow is very low.",
        "Median Tmax where CBF is under 30 % of normal and under half of the other side; 8 s or more is usual.",
        "Check that the map is Tmax in seconds, not in frames. A delay that the software corrected can be this short.",
    ),
    "core-without-delay": FlagKind(
        _WARNING,
        "Tmax is short where blood flow is very low, so its unit is doubtful.",
        "Median Tmax where CBF is under 30 % of normal and under half of the other side, without old infarcts, which "
        "the CT shows dark; 6 s or more is expected.",
        "Check that the map is Tmax in seconds, not in frames; of a series, check its interval. A core whose artery "
        "has opened again looks alike.",
    ),
    "ctp-baseline-short": FlagKind(
        _INFO, "The series starts with the bolus.", "Frames before the arrival.", "None; the maps are less exact."
    ),
    "ctp-frames-repeated": FlagKind(
        _WARNING,
        "Some frames of the CT perfusion series are identical, so their times are doubtful.",
        "Every frame beside the others.",
        "Export the series again.",
    ),
    "ctp-interval-differs": FlagKind(
        _INFO,
        "The time step of the header differs from the interval that was sent; the interval that was sent is used.",
        "pixdim[4], beside ctp_interval_s.",
        "Check ctp_interval_s.",
    ),
    "ctp-interval-doubtful": FlagKind(
        _WARNING,
        "The bolus is narrower or wider than an injection gives, so the time step is doubtful.",
        "Full width at half maximum of the arterial curve.",
        "Check the time step, or send ctp_interval_s.",
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
    "map-background": FlagKind(
        _INFO,
        "The background of a map is a number other than 0; it is read as no data.",
        "The value on the edges of the map.",
        "None.",
    ),
    "map-classes": FlagKind(
        _WARNING,
        "A perfusion map has a few levels only, like classes or colours.",
        "Number of levels, and the share of the brain that has one.",
        "Send the map with its original numbers.",
    ),
    "map-hole": FlagKind(
        _INFO,
        "A large part of the brain has no data in a map; the numbers do not include it.",
        "Voxels without data that data enclose, and their density in the CT.",
        "Look at the map. An old infarct may be the reason.",
    ),
    "map-thresholded": FlagKind(
        _WARNING,
        "The Tmax map has values in one hemisphere only; it may show the lesion only.",
        "Share of each hemisphere with a value.",
        "Export the map without a threshold.",
    ),
    "map-units": FlagKind(
        _INFO,
        "CBF, CBV and MTT are not in mL/100 g/min, mL/100 g and s; only ratios are used.",
        "Median of CBV / (CBF x MTT).",
        "None.",
    ),
    "maps-contradict": FlagKind(
        _WARNING,
        "Perfusion maps contradict each other: flow is not low where Tmax is prolonged, or CBV is not CBF times MTT.",
        "CBF in delayed and in other tissue; spread of CBV / (CBF x MTT).",
        "Check that the maps are not exchanged.",
    ),
    "perfusion-computed": FlagKind(
        _INFO, "Perfusion maps were not sent; they are computed from the series.", "Inputs of the study.", "None."
    ),
    "perfusion-differs": FlagKind(
        _INFO,
        "A perfusion number of the record differs from the computed one; the record is used.",
        "Difference above a third, and above 5 mL or 0.1.",
        "Check the record and the maps; if all volumes of Tmax differ in one direction, also the unit of the map.",
    ),
    "nihss-core-contradiction": FlagKind(
        _WARNING,
        "The NIHSS of the record is too low for the core.",
        "NIHSS of 2 or less, beside a core of 70 mL or more, of the record or else of the maps.",
        "Check the NIHSS, and that record and maps are of one patient.",
    ),
    "perfusion-misplaced": FlagKind(
        _WARNING,
        "The tissue of the maps lies beside the brain of the CT, or the maps are mirrored.",
        "Distance from the outline of the maps to the brain of the CT, and the share of their tissue in the brain.",
        "Send the maps with the scanner's coordinates.",
    ),
    "tmax-doubtful": FlagKind(
        _WARNING,
        "No delay of the Tmax map reaches 1.5 s.",
        "Highest values of the map.",
        "Check that the map is Tmax, in seconds.",
    ),
    "tmax-no-delay": FlagKind(
        _INFO,
        "No delay of the Tmax map reaches 3 s; the map shows no delayed tissue.",
        "Highest values of the map.",
        "None if collaterals are good; otherwise check the map.",
    ),
    "tmax-scale": FlagKind(
        _WARNING,
        "Even the less affected hemisphere is delayed, or Tmax equals CBV / CBF.",
        "Median Tmax of the less affected hemisphere; CBV / CBF beside Tmax.",
        "Check that the map is Tmax in seconds, not MTT, TTP or tenths; of a series, check frames and interval.",
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
        "The study as a whole, or an input that the flag names, differs from the training patients.",
        "Mahalanobis distances of the features of the network, and of statistics of each input (docs/model-audit.md).",
        "Check what the flag names, and look at the images. Do not rely on the answer.",
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
    "side-unknown": FlagKind(
        _WARNING,
        "The side of the occlusion is neither sent nor shown, but the version reads images from the affected side.",
        "occlusion_side, and the asymmetry of Tmax, relative CBF and arteries.",
        "Send occlusion_side.",
    ),
    "synthetic-training": FlagKind(
        _INFO,
        "The version was trained on synthetic patients only; its number says nothing about a real patient.",
        "The manifest of the version.",
        "Do not use the number for a real patient.",
    ),
}

FLAGS: Final[dict[str, FlagKind]] = {**_HEADER, **DICOM, **CT, **STUDY, **VESSELS, **_PERFUSION, **_MODEL}
"""Every code that a prediction can carry."""
