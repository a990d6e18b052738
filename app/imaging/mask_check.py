"""Check that a vessel mask shows the vessels of this head: its volume, the HU inside it, bone, shape and sides.

Design notes:
- A mask of brain, bone or a lesion is refused. A mask that misses the arteries of the CTA is flagged.
- Deep inside the brain there is no bone, so what is brighter than tissue on a CTA is an artery or a vein.
- Points of the mask are sampled, so the cost does not depend on its size.
- A late CTA shows veins, too, and they are wider and brighter than arteries. So the arteries are judged around the
  circle of Willis, where no wide vein is, and compared with the straight sinus.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from app.imaging.io.nifti import Volume
from app.imaging.registration import brain_mask
from app.sdk.errors import FieldError, ImplausibleModality
from app.sdk.types import Flag, Input

__all__ = ["amount", "content", "contrast", "plain_blood"]

_POINTS: Final = 10_000
_DEEP_MM: Final = 3.0  # skull does not reach this deep into the registered brain
_MIN_DEEP_POINTS: Final = 50
_MIN_DEEP_SHARE: Final = 0.05
_BRIGHT_HU: Final = 90.0
_BONE_HU: Final = {Input.CTA: 450.0, Input.NCCT: 300.0}
_MAX_ML: Final = 400.0  # all vessels from the aortic arch to the vertex
_MAX_BRAIN_ML: Final = 200.0  # the whole blood of the brain is 50 to 70 mL
_BONE_SHARE: Final = 0.4
_BONE_DEEP_SHARE: Final = 0.15
_MIN_BRIGHT: Final = 0.3
_MIRROR_GAIN: Final = 0.3
_COMPACT_MM: Final = 4.0
_COMPACT: Final = {Input.CTA: 0.1, Input.NCCT: 0.4}
_MIN_ML: Final = 1.0
_MIN_SIDE: Final = 0.15
_MIDLINE_MM: Final = 4.0
_LUMEN: Final = 95.0  # percentile of the mask: the middle of the wide arteries, where voxels hold blood alone
_NOISE_IN_LUMEN: Final = 1.3  # standard deviations that noise adds to this percentile
_BESIDE_MM: Final = 8.0
_TISSUE_HU: Final = (-200.0, 280.0)  # tissue with noise, but neither air nor bone
_MAX_NOISE_HU: Final = 40.0
_ARTERIES_BOX: Final = ((-35.0, 35.0), (-25.0, 25.0), (-25.0, 10.0))  # circle of Willis and M1, MNI mm
_VEINS_BOX: Final = ((-6.0, 6.0), (-80.0, -40.0), (-5.0, 30.0))  # vein of Galen and straight sinus
_MIN_ARTERIES: Final = 0.02  # share of the deep points that lies around the circle of Willis: 0.2 or more with arteries
_MIN_VEIN_POINTS: Final = 30
_LATE_HU: Final = 30.0
_WIDE: Final = (75.0, 97.0)  # percentiles of the CTA in the mask: the middle of the wide arteries, not calcium
_PLAIN_BLOOD_HU: Final = 70.0  # of blood without contrast; 60 with a haematocrit of 60 %
_WEAK_HU: Final = 200.0  # of blood; below about 145 HU, whole branches are missing from a computed mask


@dataclass(frozen=True)
class _Points:
    """Sampled voxels of a mask, (n, 3), with the mask and its map to MNI space."""

    voxels: np.ndarray
    mask: Volume
    mni_from_world: np.ndarray
    total_ml: float

    @cached_property
    def mni_mm(self) -> np.ndarray:
        return _moved(self.voxels, self.mni_from_world @ self.mask.affine)

    @cached_property
    def depth_mm(self) -> np.ndarray:
        return brain_mask.distance_at(self.mni_mm)

    def share(self, chosen: np.ndarray) -> float:
        return float(np.mean(chosen))

    @property
    def brain_ml(self) -> float:
        return self.total_ml * self.share(self.depth_mm < 0)

    @property
    def compact_share(self) -> float:
        """Share of the points whose six neighbours at 4 mm lie in the mask; a vessel is thinner."""
        steps = np.maximum(1, np.rint(_COMPACT_MM / np.array(self.mask.spacing_mm)).astype(int))
        compact = np.ones(len(self.voxels), bool)
        for step in np.concatenate([np.diag(steps), -np.diag(steps)]):
            there = np.clip(self.voxels + step, 0, np.array(self.mask.shape) - 1)
            compact &= self.mask.data[tuple(there.T)] > 0
        return self.share(compact)


def content(mask: Volume, ct: Volume, kind: Input, mni_from_world: np.ndarray) -> tuple[Flag, ...]:
    """Check a mask that was sent.

    Args:
        mask: (X, Y, Z) uint8, 1 in vessels.
        ct: the CTA, or else the NCCT, in the same world frame.
        kind: which of the two it is.
        mni_from_world: (4, 4), RAS+ mm of both -> MNI152 mm.

    Returns:
        ``vessels-misplaced`` if the mask misses the arteries of the CTA.

    Raises:
        ImplausibleModality: the mask shows brain, bone or a lesion.
    """
    points = _sampled(mask, mni_from_world)
    if points is None:
        return ()
    if points.total_ml > _MAX_ML or points.brain_ml > _MAX_BRAIN_ML:
        raise _refuse("it is larger than all vessels of head and neck together")
    hu, known = _values_at(ct, _moved(points.voxels, mask.affine))
    deep = points.depth_mm < -_DEEP_MM
    if points.share(hu > _BONE_HU[kind]) > _BONE_SHARE and points.share(deep) < _BONE_DEEP_SHARE:
        raise _refuse("most of it lies in bone")
    compact = points.compact_share > _COMPACT[kind]
    if kind is Input.NCCT:  # blood and brain are equally bright
        if compact:
            raise _refuse("it is a compact region, as of a lesion")
        return ()
    bright = _bright_share(hu, known & deep)
    if bright is None or points.share(deep) < _MIN_DEEP_SHARE:
        return (_misplaced("hardly any of the mask lies inside the brain"),)
    if bright < _MIN_BRIGHT and compact:
        raise _refuse("it is a compact region without contrast, as of a lesion")
    if _best_mirrored(points, ct) > bright + _MIRROR_GAIN:
        return (_misplaced("the mask fits the arteries of the cta after mirroring only"),)
    if bright < _MIN_BRIGHT:
        return (_misplaced("most of the mask lies beside the bright arteries of the cta"),)
    return ()


def amount(mask: Volume, mni_from_world: np.ndarray, *, complete: bool) -> tuple[Flag, ...]:
    """Flags for a mask that is empty, far too small, or on one side only.

    Args:
        mask: (X, Y, Z) uint8, 1 in vessels; sent or computed.
        mni_from_world: (4, 4), its RAS+ mm -> MNI152 mm.
        complete: whether the brain is in view and well aligned; otherwise only an empty mask is flagged.
    """
    points = _sampled(mask, mni_from_world)
    if points is None:
        return (Flag(code="vessels-empty", detail="vessels: the mask contains no vessel"),)
    if not complete:
        return ()
    if points.brain_ml < _MIN_ML:
        return (Flag(code="vessels-few", detail="vessels: the mask contains hardly any vessel of the brain"),)
    x = points.mni_mm[points.depth_mm < 0, 0]
    left, right = np.count_nonzero(x < -_MIDLINE_MM), np.count_nonzero(x > _MIDLINE_MM)
    if min(left, right) < _MIN_SIDE * max(left, right):
        detail = "vessels: nearly all vessels of the mask lie on one side; one occlusion does not explain that"
        return (Flag(code="vessels-one-sided", detail=detail),)
    return ()


def contrast(mask: Volume, cta: Volume, mni_from_world: np.ndarray) -> tuple[Flag, ...]:
    """Flag a CTA whose arteries are weakly filled, so that branches can look occluded and a clot like an open artery.

    Args:
        mask: (X, Y, Z) uint8, 1 in vessels; sent or computed.
        cta: the CTA, in the same world frame.
        mni_from_world: (4, 4), RAS+ mm of both -> MNI152 mm.

    Returns:
        ``contrast-weak`` if the wide arteries around the circle of Willis have less than 200 HU, or are missing in the
        mask; ``contrast-late`` if the deep veins are brighter than they are.
    """
    points = _sampled(mask, mni_from_world)
    if points is None:
        return ()
    hu, known = _values_at(cta, _moved(points.voxels, mask.affine))
    deep = known & (points.depth_mm < -_DEEP_MM)
    if np.count_nonzero(deep) < _MIN_DEEP_POINTS:
        return ()
    near = deep & _inside(points.mni_mm, _ARTERIES_BOX)
    if np.count_nonzero(near) < _MIN_ARTERIES * np.count_nonzero(deep) and _shows_willis(cta, mni_from_world):
        detail = "cta: hardly any artery around the circle of Willis is in the vessel mask, but vessels elsewhere are"
        return (Flag(code="contrast-weak", detail=detail),)
    arteries = near if np.count_nonzero(near) >= _MIN_DEEP_POINTS else deep
    noise = _noise(mask, cta, points.voxels[deep])
    level = float(np.percentile(hu[arteries], _LUMEN)) - _NOISE_IN_LUMEN * noise
    flags = []
    if level < _WEAK_HU:
        detail = f"cta: the wide arteries of the brain have {level:.0f} HU; {_WEAK_HU:.0f} HU or more is usual"
        flags.append(Flag(code="contrast-weak", detail=detail))
    veins = hu[deep & _inside(points.mni_mm, _VEINS_BOX)]
    if veins.size >= _MIN_VEIN_POINTS and float(np.median(veins)) > level + _LATE_HU:
        detail = "cta: the deep veins are brighter than the arteries, so this is a late phase: branches behind a clot"
        flags.append(Flag(code="contrast-late", detail=f"{detail} may be filled by collaterals"))
    return tuple(flags)


def plain_blood(mask: Volume, cta: Volume, ncct: Volume, maps: tuple[np.ndarray, np.ndarray]) -> tuple[Flag, ...]:
    """Flag an NCCT whose arteries hold contrast, so that a clot is not denser than the blood beside it.

    Args:
        mask: (X, Y, Z) uint8, 1 in vessels; sent or computed.
        cta: the CTA, in the same world frame. It shows which points are blood: a clot has no contrast there.
        ncct: the NCCT.
        maps: (4, 4) each, RAS+ mm of the mask -> MNI152 mm, and -> RAS+ mm of the NCCT.

    Returns:
        ``ncct-contrast`` if the median of the wide arteries is above 70 HU.
    """
    mni_from_world, ncct_from_world = maps
    points = _sampled(mask, mni_from_world)
    if points is None:
        return ()
    world_mm = _moved(points.voxels, mask.affine)
    hu, known = _values_at(cta, world_mm)
    plain_hu, plain_known = _values_at(ncct, _moved(world_mm, ncct_from_world))
    deep = known & plain_known & (points.depth_mm < -_DEEP_MM)
    if np.count_nonzero(deep) < _MIN_DEEP_POINTS:
        return ()
    low, high = np.percentile(hu[deep], _WIDE)
    wide = plain_hu[deep & (hu >= low) & (hu <= high)]
    if (level := float(np.median(wide))) <= _PLAIN_BLOOD_HU:
        return ()
    detail = (
        f"ncct: the blood in the wide arteries has {level:.0f} HU; 35 to 60 HU are usual without contrast, so a clot "
        "cannot be told from blood"
    )
    return (Flag(code="ncct-contrast", detail=detail),)


def _inside(mni_mm: np.ndarray, box: tuple[tuple[float, float], ...]) -> np.ndarray:
    """(n,) bool: whether points (n, 3) lie in a box."""
    low, high = np.array(box).T
    inside: np.ndarray = np.all((mni_mm > low) & (mni_mm < high), axis=1)
    return inside


def _shows_willis(cta: Volume, mni_from_world: np.ndarray) -> bool:
    willis = np.array(np.meshgrid(*brain_mask.WILLIS_MM)).reshape(3, -1).T
    return brain_mask.coverage(cta.affine, cta.shape, mni_from_world, willis) == 1


def _noise(mask: Volume, cta: Volume, voxels: np.ndarray) -> float:
    """Standard deviation (HU) of the noise in tissue some millimetres beside voxels of the mask; 0 if there is none."""
    beside = np.diag(np.rint(_BESIDE_MM / np.array(mask.spacing_mm)).astype(int))
    tissue = np.concatenate([voxels + step for step in (*beside, *-beside)])
    tissue = tissue[np.all((tissue >= 0) & (tissue < np.array(mask.shape) - 1), axis=1)]
    tissue = tissue[mask.data[tuple(tissue.T)] == 0]
    hu, known = _values_at(cta, _moved(tissue, mask.affine))
    next_hu, next_known = _values_at(cta, _moved(tissue + np.array([1, 1, 0]), mask.affine))
    compared = known & next_known & (hu > _TISSUE_HU[0]) & (hu < _TISSUE_HU[1])
    if np.count_nonzero(compared) < _MIN_DEEP_POINTS:
        return 0.0
    # The median size of a normal variable is 0.6745 standard deviations, and a difference has the noise of both voxels.
    spread = float(np.median(np.abs(hu - next_hu)[compared])) / 0.6745 / np.sqrt(2)
    return float(min(spread, _MAX_NOISE_HU))


def _sampled(mask: Volume, mni_from_world: np.ndarray) -> _Points | None:
    """Evenly chosen voxels of a mask; None if it is empty."""
    at = np.flatnonzero(mask.data.T > 0)
    if not at.size:
        return None
    chosen = at[np.linspace(0, at.size - 1, min(_POINTS, at.size)).astype(int)]
    voxels = np.stack(np.unravel_index(chosen, mask.data.T.shape)[::-1], axis=1)
    voxel_ml = abs(float(np.linalg.det(mask.affine[:3, :3]))) / 1000
    return _Points(voxels, mask, mni_from_world, at.size * voxel_ml)


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    moved: np.ndarray = points @ matrix[:3, :3].T + matrix[:3, 3]
    return moved


def _values_at(ct: Volume, world_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HU of the nearest voxel at each point (n, 3), and whether the CT covers it."""
    voxels = np.rint(_moved(world_mm, np.linalg.inv(ct.affine))).astype(int)
    known = np.all((voxels >= 0) & (voxels < ct.shape), axis=1)
    hu = np.full(len(voxels), -1000.0)
    hu[known] = ct.data[tuple(voxels[known].T)] * ct.slope + ct.inter
    return hu, known


def _bright_share(hu: np.ndarray, chosen: np.ndarray) -> float | None:
    return float(np.mean(hu[chosen] > _BRIGHT_HU)) if np.count_nonzero(chosen) >= _MIN_DEEP_POINTS else None


def _best_mirrored(points: _Points, ct: Volume) -> float:
    """Largest share of bright points after the mask is mirrored: along an axis of its grid, or at the midline."""
    last = np.array(points.mask.shape) - 1
    mirrored = []
    for axis in range(3):
        voxels = points.voxels.copy()
        voxels[:, axis] = last[axis] - voxels[:, axis]
        mirrored.append(_moved(voxels, points.mask.affine))
    mirrored.append(_moved(points.mni_mm * [-1, 1, 1], np.linalg.inv(points.mni_from_world)))
    shares = [0.0]
    for world_mm in mirrored:
        hu, known = _values_at(ct, world_mm)
        deep = brain_mask.distance_at(_moved(world_mm, points.mni_from_world)) < -_DEEP_MM
        shares.append(_bright_share(hu, known & deep) or 0.0)
    return max(shares)


def _misplaced(detail: str) -> Flag:
    return Flag(code="vessels-misplaced", detail=f"vessels: {detail}")


def _refuse(reason: str) -> ImplausibleModality:
    detail = f"this is not a mask of vessels ({reason}): send the mask of the arteries, or leave it out"
    return ImplausibleModality(f"{Input.VESSELS}: {detail}", errors=[FieldError(Input.VESSELS, detail)])
