"""Names of flag codes for a reader."""

from __future__ import annotations

import re
from typing import Final

_ACRONYMS: Final = re.compile(r"\b(ctp|hu|tmax|uid)\b")
_NAMES: Final = {
    "affine-disagree": "positions in the header disagree",
    "aif-doubtful": "arterial curve doubtful",
    "hu-cut": "high HU cut off",
    "imputed": "values not given",
    "missing-modality": "image missing",
    "core-dark": "core as dark as fluid",
    "contrast-late": "late phase of the CTA",
    "ncct-contrast": "contrast in the NCCT",
    "non-finite-voxels": "voxels without a number",
    "not-used": "values not used",
    "out-of-distribution": "unlike the training patients",
    "record-contradiction": "record contradicts itself",
    "side-contradiction": "sides contradict each other",
    "side-from-images": "side taken from the images",
    "synthetic-training": "synthetic training patients",
    "vof-doubtful": "venous curve doubtful",
}
"""Names of the codes whose own words a reader could not guess."""


def name_of(code: str) -> str:
    """Name of a code for a reader: ``alignment-poor`` gives ``alignment poor``."""
    words = _NAMES.get(code) or code.replace("-", " ")
    return _ACRONYMS.sub(lambda match: "Tmax" if match[0] == "tmax" else match[0].upper(), words)
