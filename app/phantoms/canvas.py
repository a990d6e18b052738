"""The canvas on which every phantom is painted, and the densities of its tissues.

Design notes:
- The canvas has voxels of 1 mm and lies along the axes of MNI152 RAS+ millimetres.
- Densities are Hounsfield units at 120 kV (Barrett & Swindell; Parizel 2001 for blood and thrombus).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

ORIGIN_MM = np.array([-100.0, -136.0, -116.0])
SHAPE = (201, 241, 221)
CANVAS = np.array([[1.0, 0, 0, ORIGIN_MM[0]], [0, 1.0, 0, ORIGIN_MM[1]], [0, 0, 1.0, ORIGIN_MM[2]], [0, 0, 0, 1.0]])

AIR, FAT, MUSCLE, BONE, MARROW, CSF, GREY, WHITE, BLOOD = -1000.0, -80.0, 55.0, 1100.0, 500.0, 8.0, 38.0, 29.0, 42.0
CONTRAST = 300.0  # added to blood by the bolus, at the arterial peak
PLAQUE = 160.0  # mean density of a calcified plaque at the clot, above blood
SIPHON = 350.0  # the same in the carotid siphon, away from the clot
