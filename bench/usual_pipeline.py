"""The usual pipeline for a study, stage by stage, as the documentation of each library shows it.

``make bench`` installs the libraries. Each one is imported where it is used, because it may not be installed.
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
from app.imaging.registration import template
from app.registry.manifest import Manifest
from app.sdk.types import Channel

Array = NDArray[Any]
Stage = Callable[[str, Callable[[], Any]], Any]
"""Runs the named stage and returns its result; a caller can measure it."""


class Loaded(NamedTuple):
    """A volume (X, Y, Z) and its affine (4, 4), voxel -> patient world, RAS+ mm."""

    data: Array  # float64, as get_fdata returns it
    affine: Array


def nibabel_read(path: Path) -> Loaded:
    image = nib.Nifti1Image.from_filename(path)
    return Loaded(image.get_fdata(), np.asarray(image.affine))


def scipy_resample(volume: Loaded, grid: Grid, world_from_mni: Array) -> Array:
    """Resample by a Gaussian of the output voxel's width and one trilinear interpolation."""
    matrix = np.linalg.inv(volume.affine) @ world_from_mni @ np.asarray(grid.affine)
    scale = np.linalg.norm(matrix[:3, :3], axis=1)
    smooth = ndimage.gaussian_filter(volume.data, np.where(scale > 1, scale / 2.355, 0))
    sampled: Array = ndimage.affine_transform(smooth, matrix[:3, :3], matrix[:3, 3], grid.shape, order=1, cval=-1000)
    return sampled


def monai_resample(volume: Loaded, grid: Grid, world_from_mni: Array) -> Array:
    """Resample by GaussianSmooth and SpatialResample, MONAI's way to avoid aliasing."""
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


def simpleitk_align(volume: Loaded, target: Loaded) -> Array:
    """Register by moments, then affine by Mattes mutual information on three levels.

    Returns:
        World of MNI -> world of the patient (4, 4), mm.
    """
    import SimpleITK as sitk  # noqa: N813 - the name in SimpleITK's documentation

    def image(loaded: Loaded) -> Any:
        converted = sitk.GetImageFromArray(np.ascontiguousarray(loaded.data.T, dtype=np.float32))
        converted.SetSpacing([float(edge) for edge in np.linalg.norm(loaded.affine[:3, :3], axis=0)])
        converted.SetOrigin([float(edge) for edge in loaded.affine[:3, 3]])
        return converted

    fixed, moving = image(target), sitk.Clamp(image(volume), sitk.sitkFloat32, 0, 100)
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
    transform = method.Execute(fixed, moving)
    world = np.eye(4)
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    world[:3, :3] = np.stack([np.array(transform.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)], axis=1)
    world[:3, 3] = origin
    return world


def ants_align(volume: Loaded, target: Loaded) -> Array:
    """Register by ANTs' "Affine" on the whole volume, clamped to 0..100 HU.

    Returns:
        World of MNI -> world of the patient (4, 4), mm.
    """
    import ants

    def image(loaded: Loaded) -> Any:
        converted = ants.from_numpy(
            np.asarray(loaded.data, np.float32),
            origin=loaded.affine[:3, 3].tolist(),
            spacing=np.linalg.norm(loaded.affine[:3, :3], axis=0).tolist(),
        )
        converted.set_direction(loaded.affine[:3, :3] / np.linalg.norm(loaded.affine[:3, :3], axis=0))
        return converted

    moving = Loaded(np.clip(volume.data, 0, 100), volume.affine)
    result = ants.registration(image(target), image(moving), type_of_transform="Affine", random_seed=1)
    transform = ants.read_transform(result["fwdtransforms"][0])
    world = np.eye(4)
    world[:3, 3] = transform.apply_to_point((0.0, 0.0, 0.0))
    world[:3, :3] = np.stack(
        [np.array(transform.apply_to_point(tuple(axis))) - world[:3, 3] for axis in np.eye(3)], axis=1
    )
    return world


def skimage_vessels(values: Array) -> Array:
    """Run scikit-image's Frangi filter at three scales on the whole volume."""
    from skimage.filters import frangi

    vesselness: Array = frangi(values, sigmas=(0.8, 1.2, 2.0), black_ridges=False)
    return vesselness


def run_stage(_name: str, work: Callable[[], Any]) -> Any:
    """Run a stage without a measurement."""
    return work()


def usual_image(study: dict[str, Path], manifest: Manifest, stage: Stage = run_stage) -> Array:
    """Return the tensor (c, x, y, z), float32, that the usual pipeline makes of the NCCT and the CTA of a patient."""
    volumes = stage("read", lambda: {name: nibabel_read(study[name]) for name in ("ncct", "cta")})
    target = Loaded(*(np.asarray(part, dtype=np.float64) for part in template.tissue()))
    stage("register", lambda: [_register(volume, target) for volume in volumes.values()])
    resampled = stage(
        "resample", lambda: {name: monai_resample(volumes[name], manifest.grid, np.eye(4)) for name in volumes}
    )
    image = np.zeros((len(manifest.channels), *manifest.grid.shape), np.float32)
    for index, channel in enumerate(manifest.channels):
        if channel.name in (Channel.NCCT, Channel.CTA):
            low, high = channel.window
            image[index] = (np.clip(resampled[channel.name.value], low, high) - channel.mean) / channel.std
    return image


def _register(volume: Loaded, target: Loaded) -> None:
    """Register with ANTs, or with SimpleITK if ANTs is not installed."""
    if not installed("ants"):
        simpleitk_align(volume, target)
        return
    import ants

    fixed, moving = (
        ants.from_numpy(
            np.ascontiguousarray(np.clip(loaded.data, 0, 100), dtype=np.float32),
            spacing=[float(edge) for edge in np.linalg.norm(loaded.affine[:3, :3], axis=0)],
        )
        for loaded in (target, volume)
    )
    ants.registration(fixed, moving, type_of_transform="Affine")


def installed(module: str) -> bool:
    """Return whether the module can be found."""
    return find_spec(module) is not None


ALIGNERS: dict[str, tuple[str, Callable[[Loaded, Loaded], Array]]] = {
    "ants": ("ants", ants_align),
    "simpleitk": ("SimpleITK", simpleitk_align),
}
RESAMPLERS: dict[str, tuple[str, Callable[[Loaded, Grid, Array], Array]]] = {
    "scipy": ("scipy", scipy_resample),
    "monai": ("monai", monai_resample),
}
"""Functions by name, with the module that must be installed."""
