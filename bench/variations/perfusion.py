"""Valid and wrong variations of maps and series, for ``python -m bench.input_checks``."""

from __future__ import annotations

from bench.variations import perfusion_maps, perfusion_series
from bench.variations.perfusion_maps import Variation

VALID: dict[str, Variation] = perfusion_maps.VALID | perfusion_series.VALID
WRONG: dict[str, tuple[Variation, set[str]]] = perfusion_maps.WRONG | perfusion_series.WRONG
