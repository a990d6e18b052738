"""Affine registration by SimpleITK, elastix and ANTs with their usual settings, for comparison with ``align``.

Design notes:
- Each library receives a stripped brain, cut out by a mask that comes with the head, and the MNI brain, both on 2 mm
  grids. The time of the stripping is not counted. rlvo starts from the whole head.
- Each function returns ``mni_from_world`` (4, 4), mm. The world of the images is called RAS+ everywhere, because the
  names of the axes do not change the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.imaging.io.nifti import Volume
from app.imaging.registration import brain_mask, template
from app.imaging.resample import resample

Array = NDArray[Any]

EDGE_MM, SOFT_HU = 2.0, 100.0


class Image(NamedTuple):
    """A brain in Hounsfield units clamped to 0..80, float32 (X, Y, Z), on a grid along the axes of its world."""

    data: Array
    affine: Array


def stripped(volume: Volume, mask: Volume, world_from_mni: Array) -> tuple[Image, Image]:
    """Return the brain of MNI152 (fixed) and of the head (moving): tissue of 0 to 100 HU inside the head's brain mask.

    Args:
        volume: The head in its pose.
        mask: Brain mask of the head before the pose.
        world_from_mni: The pose (4, 4), mm.
    """
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    ends = (corners * [*np.subtract(volume.shape, 1), 1] @ volume.affine.T)[:, :3]
    grid, shape = _grid(ends, EDGE_MM)
    hu = resample(volume.values(), np.linalg.inv(volume.affine) @ grid, shape, fill=-1000)
    inside = resample(mask.data, np.linalg.inv(mask.affine) @ np.linalg.inv(world_from_mni) @ grid, shape) > 0.5
    inside &= (hu > 0) & (hu < SOFT_HU)
    return Image(*_target()), Image(np.where(inside, np.clip(hu, 0, 80), 0).astype(np.float32), grid)


def _target() -> tuple[Array, Array]:
    grid, shape = _grid(np.array(template.BOX).T, EDGE_MM)
    hu, maps_affine = template.tissue()
    sampled = resample(hu, np.linalg.inv(maps_affine) @ grid, shape)
    return np.where(brain_mask.distance(grid, shape, np.eye(4)) < 0, sampled, 0).astype(np.float32), grid


def _grid(ends: Array, edge: float) -> tuple[Array, tuple[int, ...]]:
    """Return affine and shape of a grid along the world's axes that contains the points ``ends`` (n, 3), mm."""
    grid = np.diag([edge, edge, edge, 1.0])
    grid[:3, 3] = ends.min(axis=0)
    return grid, tuple(int(n) for n in np.ceil(np.ptp(ends, axis=0) / edge) + 1)


def _converted(image: Image, convert: Callable[[Array], Any]) -> Any:
    """Return the image of SimpleITK or ITK that ``convert`` makes from the array (z, y, x), with spacing and origin."""
    converted = convert(np.ascontiguousarray(image.data.T))
    converted.SetSpacing([EDGE_MM] * 3)
    converted.SetOrigin(image.affine[:3, 3].tolist())
    return converted


def simpleitk(fixed: Image, moving: Image) -> Array:
    """Register by Mattes mutual information on two levels: centres of mass, rigid, affine."""
    import SimpleITK as sitk  # noqa: N813 - the name in SimpleITK's documentation

    target, source = (_converted(image, sitk.GetImageFromArray) for image in (fixed, moving))
    transform: Any = sitk.CenteredTransformInitializer(
        target, source, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    for kind in ("rigid", "affine"):
        if kind == "affine":
            start = sitk.AffineTransform(3)
            start.SetCenter(transform.GetCenter())
            start.SetMatrix(transform.GetMatrix())
            start.SetTranslation(transform.GetTranslation())
            transform = start
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(0.2, 1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([2, 1])
        method.SetSmoothingSigmasPerLevel([2, 1])
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(target, source)
    return _mni_from_world(lambda point: np.array(transform.TransformPoint(point.tolist())))


def elastix(fixed: Image, moving: Image) -> Array:
    """Register by elastix's default rigid and affine parameter maps, starting from the centres of mass."""
    import itk

    parameters = itk.ParameterObject.New()
    for kind in ("rigid", "affine"):
        chosen = parameters.GetDefaultParameterMap(kind)
        chosen["AutomaticTransformInitialization"] = ["true" if kind == "rigid" else "false"]
        chosen["AutomaticTransformInitializationMethod"] = ["CenterOfGravity"]
        chosen["WriteResultImage"] = ["false"]
        parameters.AddParameterMap(chosen)
    target, source = (_converted(image, itk.image_view_from_array) for image in (fixed, moving))
    method = itk.ElastixRegistrationMethod.New(target, source)
    method.SetParameterObject(parameters)
    method.SetLogToConsole(False)
    method.UpdateLargestPossibleRegion()
    chain = method.GetTransformParameterObject()
    return _mni_from_world(lambda point: _elastix_point(chain, point))


def _elastix_point(chain: Any, point: Array) -> Array:
    # elastix composes T(x) = affine(rigid(x)): the first map is the initial transform.
    for n in (0, 1):
        one = chain.GetParameterMap(n)
        centre = np.array([float(x) for x in one["CenterOfRotationPoint"]])
        numbers = np.array([float(x) for x in one["TransformParameters"]])
        linear = numbers[:9].reshape(3, 3) if n else _euler(numbers[:3])
        point = linear @ (point - centre) + centre + numbers[-3:]
    return point


def _euler(angles: Array) -> Array:
    """Return the rotation of ITK's Euler3DTransform: z @ x @ y."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    rotation: Array = z @ x @ y
    return rotation


def _ants(kind: str) -> Callable[[Image, Image], Array]:
    def run(fixed: Image, moving: Image) -> Array:
        import ants

        def convert(image: Image) -> Any:
            return ants.from_numpy(image.data, origin=image.affine[:3, 3].tolist(), spacing=[EDGE_MM] * 3)

        result = ants.registration(convert(fixed), convert(moving), type_of_transform=kind, random_seed=1)
        transform = ants.read_transform(result["fwdtransforms"][0])
        return _mni_from_world(lambda point: np.array(transform.apply_to_point(point.tolist())))

    return run


def _mni_from_world(point_of: Callable[[Array], Array]) -> Array:
    """Return the inverse of an affine map (fixed -> moving points) that is given as a function."""
    world = np.eye(4)
    world[:3, 3] = point_of(np.zeros(3))
    world[:3, :3] = np.stack([point_of(axis) - world[:3, 3] for axis in np.eye(3)], axis=1)
    return np.linalg.inv(world)


REGISTRATIONS: dict[str, tuple[str, Callable[[Image, Image], Array]]] = {
    "SimpleITK, Mattes MI": ("SimpleITK", simpleitk),
    "elastix, affine": ("itk", elastix),
    "ANTs AffineFast": ("ants", _ants("AffineFast")),
    "ANTs Affine": ("ants", _ants("Affine")),
}
"""Functions by name, with the module that must be installed."""
