"""Variations of a study: valid ones, which must pass, and wrong ones, which a check must find.

Each module has ``VALID`` (name -> function) and ``WRONG`` (name -> function and the accepted answers: flag codes, or
``refused``). A function takes a study and a random generator and returns the changed study.
"""

from __future__ import annotations

from typing import Final

_PARTS: Final = ("other_", "maps_", "exchanged", "ncct_twice", "cta_twice", "tmax_twice")
_KINDS: Final = {
    "geometry": "registration",
    "hounsfield": "Hounsfield units",
    "perfusion_maps": "perfusion maps",
    "perfusion_series": "perfusion series",
}


def kind(module: str, name: str) -> str:
    """The kind of fault that a wrong variation belongs to. Raises KeyError for an unknown module."""
    if name.startswith(_PARTS) or "_as_" in name:
        return "parts of a study"
    if module == "hounsfield" and (name.endswith("_mask") or name == "one_sided_arteries"):
        return "vessel masks"
    return _KINDS[module]
