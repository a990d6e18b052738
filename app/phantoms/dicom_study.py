"""A synthetic DICOM study as a stroke centre would send it: the series in use, and what lies beside them.

Design notes:
- ``draw_study`` draws the protocol; it decides which series there are, their slices, names and order.
- Volumes of a phantom give the pixels of NCCT, CTA and perfusion; without them, pictures are small and empty.
- Names are those of ``dicom_names.csv``: schemes in English, German, French and Spanish, and codes of vendors.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from app.dicom.writing import Syntax
from app.phantoms.dicom_series import COLOUR, DOSE_SR, SeriesPlan, files, planned_slices

__all__ = ["Protocol", "draw_study", "naming_schemes", "plan_study", "tilted", "write_study"]

_NAMES = Path(__file__).with_name("dicom_names.csv")
_AGENT = "Iomeprol 400"
_CORONAL = {"across": (1.0, 0.0, 0.0), "down": (0.0, 0.0, -1.0)}
_PAUSE_S = 60.0  # from series to series
_MAPS = ("tmax", "cbf", "cbv", "mtt")
Names = Mapping[str, str]
Volumes = Mapping[str, tuple[NDArray[Any], NDArray[np.float64]]]


@dataclass(frozen=True)
class Protocol:
    """How a study was acquired and sent.

    Attributes:
        tilt_degrees: gantry tilt of the NCCT.
        thick_only: no thin NCCT is sent.
        many_series: each time point of the perfusion is a series of its own.
        maps: grey perfusion maps with values are sent.
        agent_named: the header of contrast series names the agent.
        names_kept: 0: protocol name and body part are sent; 1: no protocol name; 2: neither.
        shuffled: numbers of the series do not follow the order of acquisition.
    """

    tilt_degrees: float = 0.0
    thick_only: bool = False
    many_series: bool = False
    perfusion: bool = True
    maps: bool = True
    agent_named: bool = True
    names_kept: int = 0
    shuffled: bool = False


@cache
def naming_schemes(file: Path | None = None) -> dict[str, dict[str, str]]:
    """Names of series by their kind, for each scheme of a file; of ``dicom_names.csv`` if none is given."""
    with (file or _NAMES).open(encoding="utf-8", newline="") as lines:
        return {row["scheme"]: dict(row) for row in csv.DictReader(lines, delimiter="|")}


def draw_protocol(rng: np.random.Generator) -> Protocol:
    """Draw the protocol of one study."""
    return Protocol(
        tilt_degrees=float(rng.choice([0.0, 0.0, 18.5, -12.0])),
        thick_only=bool(rng.random() < 0.2),
        many_series=bool(rng.random() < 0.25),
        perfusion=bool(rng.random() < 0.8),
        maps=bool(rng.random() < 0.7),
        agent_named=bool(rng.random() < 0.8),
        names_kept=int(rng.integers(3)),
        shuffled=bool(rng.random() < 0.3),
    )


def draw_study(seed: int, scheme: str | None = None) -> list[SeriesPlan]:
    """Plan a study with small empty pictures, for the rules on headers.

    Args:
        seed: seed of protocol and order.
        scheme: name of the naming scheme; drawn if not given.

    Returns:
        The series, in the order of their numbers.
    """
    rng = np.random.default_rng([seed, 21])
    schemes = naming_schemes()
    names = schemes[scheme or list(schemes)[int(rng.integers(len(schemes)))]]
    return plan_study(names, draw_protocol(rng), {}, rng)


def plan_study(names: Names, protocol: Protocol, volumes: Volumes, rng: np.random.Generator) -> list[SeriesPlan]:
    """Plan a study.

    Args:
        names: one scheme of ``naming_schemes``.
        protocol: what is sent.
        volumes: data (X, Y, Z), HU or the unit of a map, and affine of ``ncct``, ``cta``, ``tmax`` and ``cbf``; series
            without a volume have small empty pictures.
        rng: draws the order of the series.

    Returns:
        The series. Their ``truth`` is the role that each of them has.
    """
    plans = [*_ncct(names, protocol, volumes), *_cta(names, protocol, volumes)]
    if protocol.perfusion and names["ctp"]:
        plans += _perfusion(names, protocol, volumes)
    plans += _clutter(names)
    perfusion = next((k for k, plan in enumerate(plans) if plan.truth == "ctp"), 0)  # all its series start together
    plans = [
        replace(plan, start_s=_PAUSE_S * (perfusion if plan.truth == "ctp" else k)) for k, plan in enumerate(plans)
    ]
    if protocol.shuffled:
        plans = [plans[number] for number in rng.permutation(len(plans))]
    part = "HEAD" if protocol.names_kept < 2 else ""
    name = names["protocol"] if protocol.names_kept == 0 else ""
    numbered = [replace(plan, number=number) for number, plan in enumerate(plans, start=1)]
    return [
        replace(plan, protocol=name, body_part=part if plan.body_part else "", manufacturer=names["maker"])
        for plan in numbered
    ]


def write_study(
    folder: Path, plans: Sequence[SeriesPlan], study: object, *, syntaxes: Mapping[int, Syntax] | None = None
) -> int:
    """Write the files of a study; their names say nothing.

    Args:
        folder: folder to write to.
        plans: the series.
        study: any value that is the same for all series; UIDs are made of it.
        syntaxes: transfer syntax by series number; explicit VR little endian otherwise.

    Returns:
        The number of files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for plan in plans:
        for content in files(plan, study, syntax=(syntaxes or {}).get(plan.number, Syntax.EXPLICIT)):
            (folder / f"IM{count:06d}").write_bytes(content)
            count += 1
    return count


def tilted(data: NDArray[Any], affine: NDArray[np.float64], degrees: float) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Resample a volume to slices that are moved in their plane, as by a gantry tilt.

    Args:
        data: volume (X, Y, Z), HU.
        affine: voxel to RAS+ mm.
        degrees: angle of the tilt.

    Returns:
        The volume (X, Y, Z) as int16, -1024 HU outside, and its sheared affine.
    """
    moved = affine.copy()
    down = affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    moved[:3, 2] += down * np.tan(np.deg2rad(degrees)) * np.linalg.norm(affine[:3, 2])
    middle = np.array([*(np.array(data.shape) - 1) / 2, 1])
    moved[:3, 3] += (affine - moved)[:3] @ middle
    into = np.linalg.inv(affine) @ moved
    values = ndimage.affine_transform(data, into[:3, :3], into[:3, 3], order=1, mode="constant", cval=-1024)
    return values.astype(np.int16), moved


def _stacked(count: int, distance: float, tilt_degrees: float = 0.0, bottom: float = -60.0) -> dict[str, Any]:
    """Axial slices, moved within their plane by a gantry tilt."""
    tilt = np.deg2rad(tilt_degrees)
    down = (0.0, float(np.cos(tilt)), float(-np.sin(tilt)))
    positions = np.array([[-120.0, -120.0, bottom + distance * k / np.cos(tilt)] for k in range(count)])
    return {"down": down, "positions": positions, "thickness": distance}


def _placed(name: str, volumes: Volumes, fallback: dict[str, Any]) -> dict[str, Any]:
    if name not in volumes:
        return fallback
    data, affine = volumes[name]
    return planned_slices(data, affine) | {"thickness": float(np.linalg.norm(affine[:3, 2]))}


def _ncct(names: Names, protocol: Protocol, volumes: Volumes) -> Iterator[SeriesPlan]:
    tilt = protocol.tilt_degrees
    thin = _placed("ncct", volumes, _stacked(140, 1.0, tilt))
    thick = _stacked(30, 5.0, tilt)
    soft, hard = names["soft"], names["hard"]
    yield SeriesPlan("other", 0, names["localizer"], image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), **_localizer())
    if not protocol.thick_only:
        yield SeriesPlan("ncct", 0, names["thin"], kernel=soft, **thin)
        yield SeriesPlan("ncct", 0, names["bone"], kernel=hard, **(thin if "ncct" not in volumes else thick))
    if "ncct" not in volumes or protocol.thick_only:
        yield SeriesPlan("ncct", 0, names["thick"], kernel=soft, **(thin if "ncct" in volumes else thick))
    yield SeriesPlan("other", 0, names["coronal"], image_type=("DERIVED", "SECONDARY", "MPR"), **_coronal(40))


def _cta(names: Names, protocol: Protocol, volumes: Volumes) -> Iterator[SeriesPlan]:
    agent = _AGENT if protocol.agent_named else ""
    bolus = _stacked(1, 10.0) | {"times_s": tuple(float(k) for k in range(15))}
    yield SeriesPlan("other", 0, names["bolus"], contrast=agent, **bolus)
    fine = _stacked(300, 0.75, bottom=-140.0)
    yield SeriesPlan("cta", 0, names["cta"], kernel=names["soft"], contrast=agent, **_placed("cta", volumes, fine))
    derived: dict[str, Any] = {"image_type": ("DERIVED", "SECONDARY", "AXIAL", "MIP"), "contrast": agent}
    yield SeriesPlan("other", 0, names["cta_mip"], **derived, **_stacked(60, 3.0))
    derived["image_type"] = ("DERIVED", "SECONDARY", "REFORMATTED")
    yield SeriesPlan("other", 0, names["cta_coronal"], **derived, **_coronal(60))
    if names["late"]:
        yield SeriesPlan("other", 0, names["late"], kernel=names["soft"], contrast=agent, **_stacked(300, 0.75))
    if names["post"]:
        yield SeriesPlan("other", 0, names["post"], kernel=names["soft"], contrast=agent, **_stacked(30, 5.0))


def _perfusion(names: Names, protocol: Protocol, volumes: Volumes) -> Iterator[SeriesPlan]:
    agent = _AGENT if protocol.agent_named else ""
    times = tuple(1.5 * k for k in range(20))
    place = _stacked(8, 10.0, bottom=-10.0)
    plan = SeriesPlan("ctp", 0, names["ctp"], kernel="H20f", contrast=agent, times_s=times, **place)
    plan = replace(plan, **_placed("ctp", volumes, place))
    if protocol.many_series:
        yield from (replace(plan, times_s=(seconds,)) for seconds in times)
    else:
        yield plan
    if not protocol.maps:
        return
    for name in _MAPS:
        derived = ("DERIVED", "PRIMARY", "AXIAL")
        yield SeriesPlan(name, 0, names[name], image_type=derived, **_placed(name, volumes, place))
    yield SeriesPlan("other", 0, names["ttp"], image_type=("DERIVED", "PRIMARY", "AXIAL"), **place)
    colours: dict[str, Any] = {"sop_class": COLOUR, "image_type": ("DERIVED", "SECONDARY"), "colour": True}
    yield SeriesPlan("other", 0, names["colour"], **colours, **place)


def _clutter(names: Names) -> Iterator[SeriesPlan]:
    yield SeriesPlan("other", 0, names["dose"], modality="SR", sop_class=DOSE_SR, body_part="")
    screen: dict[str, Any] = {"sop_class": COLOUR, "image_type": ("DERIVED", "SECONDARY", "OTHER"), "body_part": ""}
    yield SeriesPlan("other", 0, names["dose"], **screen)


def _localizer() -> dict[str, Any]:
    positions = np.array([[-250.0, 0.0, 100.0]])
    return {"across": (0.0, 1.0, 0.0), "down": (0.0, 0.0, -1.0), "positions": positions}


def _coronal(count: int) -> dict[str, Any]:
    positions = np.array([[-100.0, -80.0 + 3.0 * k, 90.0] for k in range(count)])
    return _CORONAL | {"positions": positions, "thickness": 3.0}
