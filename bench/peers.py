"""The usual pipeline, stage by stage, as its own documentation shows it. Each library is imported where it is used.

``make bench`` installs them; those that are absent are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.imaging.model_grid import Grid

Array = NDArray[Any]


class Loaded(NamedTuple):
    data: Array  # float64, as get_fdata gives it
    affine: Array


def nibabel_read(path: Path) -> Loaded:
    image = nib.Nifti1Image.from_filename(path)
    return Loaded(image.get_fdata(), np.asarray(image.affine))


def scipy_resample(volume: Loaded, grid: Grid, world_from_mni: Array) -> Array:
    """Gaussian of the output voxel's width, then one trilinear interpolation."""
    matrix = np.linalg.inv(volume.affine) @ world_from_mni @ np.asarray(grid.affine)
    scale = np.linalg.norm(matrix[:3, :3], axis=1)
    smooth = ndimage.gaussian_filter(volume.data, np.where(scale > 1, scale / 2.355, 0))
    sampled: Array = ndimage.affine_transform(smooth, matrix[:3, :3], matrix[:3, 3], grid.shape, order=1, cval=-1000)
    return sampled


def monai_resample(volume: Loaded, grid: Grid, world_from_mni: Array) -> Array:
    """GaussianSmooth and SpatialResample, MONAI's way of anti-aliasing a change of grid."""
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms import GaussianSmooth, SpatialResample

    affine = np.linalg.inv(world_from_mni) @ volume.affine
    ratio = np.array(grid.spacing_mm) / np.linalg.norm(affine[:3, :3], axis=0)
    image = MetaTensor(torch.from_numpy(volume.data[None].astype(np.float32)), affine=torch.from_numpy(affine))
    smooth = GaussianSmooth([float(sigma) for sigma in ratio / 2.355])(image)
    sampled = SpatialResample(padding_mode="border", mode="bilinear")(
        smooth, dst_affine=torch.tensor(grid.affine, dtype=torch.float64), spatial_size=grid.shape
    )
    return np.asarray(sampled[0])


def simpleitk_align(volume: Loaded, template: Loaded) -> Array:
    """Rigid by moments, then affine by Mattes mutual information on three levels: world of MNI -> world of patient."""
    import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

    def image(loaded: Loaded) -> Any:
        made = sitk.GetImageFromArray(np.ascontiguousarray(loaded.data.T, dtype=np.float32))
        made.SetSpacing([float(edge) for edge in np.linalg.norm(loaded.affine[:3, :3], axis=0)])
        made.SetOrigin([float(edge) for edge in loaded.affine[:3, 3]])
        return made

    fixed, moving = image(template), sitk.Clamp(image(volume), sitk.sitkFloat32, 0, 100)
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, 0)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(start)
    found = method.Execute(fixed, moving)
    world = np.eye(4)
    origin = np.array(found.TransformPoint((0.0, 0.0, 0.0)))
    world[:3, :3] = np.stack([np.array(found.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)], axis=1)
    world[:3, 3] = origin
    return world


def ants_align(volume: Loaded, template: Loaded) -> Array:
    """ANTs' own "Affine", on the whole volume clamped to 0..100 HU: world of MNI -> world of patient."""
    import ants

    def image(loaded: Loaded) -> Any:
        made = ants.from_numpy(
            np.asarray(loaded.data, np.float32),
            origin=loaded.affine[:3, 3].tolist(),
            spacing=np.linalg.norm(loaded.affine[:3, :3], axis=0).tolist(),
        )
        made.set_direction(loaded.affine[:3, :3] / np.linalg.norm(loaded.affine[:3, :3], axis=0))
        return made

    moving = Loaded(np.clip(volume.data, 0, 100), volume.affine)
    found = ants.registration(image(template), image(moving), type_of_transform="Affine", random_seed=1)
    transform = ants.read_transform(found["fwdtransforms"][0])
    world = np.eye(4)
    world[:3, 3] = transform.apply_to_point((0.0, 0.0, 0.0))
    world[:3, :3] = np.stack(
        [np.array(transform.apply_to_point(tuple(axis))) - world[:3, 3] for axis in np.eye(3)], axis=1
    )
    return world


def skimage_vessels(values: Array) -> Array:
    """Frangi's filter at three scales, by scikit-image, on the whole volume."""
    from skimage.filters import frangi

    found: Array = frangi(values, sigmas=(0.8, 1.2, 2.0), black_ridges=False)
    return found


ALIGNERS: dict[str, tuple[str, Callable[[Loaded, Loaded], Array]]] = {
    "ants": ("ants", ants_align),
    "simpleitk": ("SimpleITK", simpleitk_align),
}
RESAMPLERS: dict[str, tuple[str, Callable[[Loaded, Grid, Array], Array]]] = {
    "scipy": ("scipy", scipy_resample),
    "monai": ("monai", monai_resample),
}


def installed(module: str) -> bool:
    return find_spec(module) is not None
