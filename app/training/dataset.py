"""Patients as arrays: what every model of the protocol is trained and scored on, row for row the same.

Notable choices:
- Images are kept as float16 on the model's grid, already normalised; they may be a memory map.
- ``Vectors`` encodes the records once, by the same ``clinical.encode`` as the service, and remembers what each
  variable becomes when it is missing, so that training can make any variable missing at will.
- A modality is dropped as a whole: its channel is zeroed and its presence bit cleared, and with the perfusion maps go
  the perfusion numbers (most of the time: a site may send numbers without maps).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.imaging.model_grid import ChannelSpec, Grid
from app.inference import clinical_encoder
from app.inference.clinical_encoder import PERFUSION, encode
from app.phantoms import biology, cohort
from app.phantoms.biology import Preset
from app.registry.manifest import Clinical
from app.sdk.clinical import ClinicalRecord, ImagingSigns
from app.sdk.types import Channel, PerfusionSummary

Bits = NDArray[np.bool_]

# Label-free targets of the auxiliary heads, with the transform that makes them about normal. Phantoms know them all.
LATENTS = ("truncal", "intensity", "clot_length_mm", "clot_hu", "calcified", "tmax6_ml", "core_ml")


@dataclass(frozen=True)
class Dataset:
    """n patients.

    ``images`` (n, C, X, Y, Z) float16, zero where ``presence`` (n, C) is false. ``labels`` (n,) 0/1. ``groups`` (n,):
    patient numbers (rows of one patient are never separated). ``sites`` (n,). ``latents`` (n, k) standardised, NaN
    where unknown. ``oracle`` (n,): the true chance of rLVO, for phantoms only. ``scanners`` (n,): by name, "" unknown.
    """

    images: NDArray[np.float16]
    presence: Bits
    records: Sequence[ClinicalRecord]
    perfusion: Sequence[PerfusionSummary | None]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    sites: NDArray[np.str_]
    latents: NDArray[np.float32]
    oracle: NDArray[np.float64] | None = None
    scanners: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, channels: Sequence[int]) -> Dataset:
        """The same patients with only these channels present (no image is copied)."""
        kept = np.zeros(self.presence.shape[1], bool)
        kept[list(channels)] = True
        return replace(self, presence=self.presence & kept)

    def first(self, count: int) -> Dataset:
        """The first ``count`` patients (no image is copied)."""
        return Dataset(
            images=self.images[:count],
            presence=self.presence[:count],
            records=self.records[:count],
            perfusion=self.perfusion[:count],
            labels=self.labels[:count],
            groups=self.groups[:count],
            sites=self.sites[:count],
            latents=self.latents[:count],
            oracle=None if self.oracle is None else self.oracle[:count],
            scanners=None if self.scanners is None else self.scanners[:count],
        )


def phantoms(
    patients: int,
    seed: int,
    preset: Preset,
    grid: Grid,
    channels: Sequence[ChannelSpec],
    *,
    into: NDArray[np.float16] | None = None,
    drawn: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Dataset:
    """A synthetic cohort by the fast path.

    :param into: the images' place, perhaps a memory map
    :param drawn: the images are there already, as an earlier call with the same arguments left them
    """
    people = biology.draw(patients, seed, preset)
    images = np.empty((patients, len(channels), *grid.shape), np.float16) if into is None else into
    for row, image in enumerate(() if drawn else cohort.images(people, seed, grid, channels)):
        images[row] = image
        advance()
    chance = [np.random.default_rng([seed, 6, person.index]) for person in people]
    return Dataset(
        images=images,
        presence=np.ones((patients, len(channels)), bool),
        records=[cohort.record(person, rng) for person, rng in zip(people, chance, strict=True)],
        perfusion=[cohort.measured(person, rng) for person, rng in zip(people, chance, strict=True)],
        labels=np.array([person.refractory for person in people], np.int64),
        groups=np.arange(patients),
        sites=np.full(patients, "phantom"),
        latents=np.array([standard_latents(person) for person in people], np.float32),
        oracle=np.array([person.probability for person in people]),
    )


def standard_latents(person: biology.Patient) -> list[float]:
    """A phantom's latents, centred and scaled."""
    return standardised(
        truncal=person.truncal,
        intensity=person.intensity,
        length_mm=person.clot_length_mm,
        density_hu=person.clot_hu,
        calcified=person.calcified,
        tmax6_ml=person.tmax6_ml,
        core_ml=person.core_ml,
    )


def known_latents(record: ClinicalRecord, perfusion: PerfusionSummary | None) -> list[float]:
    """What is known of a patient's latents, centred and scaled, NaN for the rest: signs that a reader saw, perfusion
    numbers of the site or computed here. None of it is an outcome.
    """
    signs, sites = record.imaging_signs or ImagingSigns(), record.perfusion

    def number(name: str) -> float | None:
        found = getattr(sites, name, None)
        return getattr(perfusion, name, None) if found is None else found

    return standardised(
        truncal=signs.truncal_type,
        intensity=number("hypoperfusion_intensity_ratio"),
        length_mm=signs.clot_length_mm,
        density_hu=signs.clot_hu,
        calcified=signs.calcified_artery,
        tmax6_ml=number("tmax6_ml"),
        core_ml=number("core_ml"),
    )


def standardised(
    *,
    truncal: float | None,
    intensity: float | None,
    length_mm: float | None,
    density_hu: float | None,
    calcified: float | None,
    tmax6_ml: float | None,
    core_ml: float | None,
) -> list[float]:
    """``LATENTS`` about normal, by the constants of the phantoms' process; NaN where unknown."""
    plain = {
        "truncal": truncal,
        "intensity": intensity,
        "length": length_mm,
        "density": density_hu,
        "calcified": calcified,
    }
    middles = biology.STANDARD
    scaled = [np.nan if v is None else (float(v) - middles[name][0]) / middles[name][1] for name, v in plain.items()]
    return [
        *scaled,
        np.nan if tmax6_ml is None else float((np.log(max(tmax6_ml, 1.0)) - 4.73) / 0.5),
        np.nan if core_ml is None else float((np.log1p(core_ml) - 2.9) / 0.8),
    ]


@dataclass(frozen=True)
class Vectors:
    """The clinical side of n patients as numbers.

    ``values`` (n, columns) and ``missing`` (n, variables) as ``encode`` gives them; ``blank`` (columns,): what a
    missing variable's columns hold; ``owner`` (columns,): the variable of each column; ``scalars`` (variables,): which
    variables are perfusion numbers.
    """

    values: NDArray[np.float32]
    missing: NDArray[np.float32]
    blank: NDArray[np.float32]
    owner: NDArray[np.int64]
    scalars: Bits

    @classmethod
    def of(cls, data: Dataset, spec: Clinical) -> Vectors:
        """Encode every record, perfusion numbers filled in from the maps as the service does."""
        rows = [encode(r, spec, p) for r, p in zip(data.records, data.perfusion, strict=True)]
        widths = [clinical_encoder.width(variable) for variable in spec.variables]
        columns, variables = sum(widths), len(widths)
        return cls(
            values=np.array([row.values for row in rows], np.float32).reshape(len(rows), columns),
            missing=np.array([row.missing for row in rows], np.float32).reshape(len(rows), variables),
            blank=encode(ClinicalRecord(), spec).values,
            owner=np.repeat(np.arange(variables), widths),
            scalars=np.array([variable.name.startswith(PERFUSION) for variable in spec.variables]),
        )

    def first(self, count: int) -> Vectors:
        """Those of the first ``count`` patients."""
        return replace(self, values=self.values[:count], missing=self.missing[:count])

    @property
    def size(self) -> int:
        """Columns and missing bits; the presence bits come on top."""
        return len(self.blank) + len(self.scalars)

    def joined(self, rows: NDArray[np.int64], presence: Bits, hidden: Bits | None = None) -> NDArray[np.float32]:
        """The network's clinical vectors (n, size + C) of ``rows``, with ``hidden`` (n, variables) made missing."""
        values, missing = self.values[rows], self.missing[rows]
        if hidden is not None:
            values = np.where(hidden[:, self.owner], self.blank, values)
            missing = np.maximum(missing, hidden)
        return np.concatenate([values, missing, presence], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Dropout:
    """What a batch goes without: channels still ``present`` (n, C), and variables ``hidden`` (n, variables)."""

    present: Bits
    hidden: Bits


def draw_dropout(presence: Bits, channels: Sequence[Channel], vectors: Vectors, rng: np.random.Generator) -> Dropout:
    """Half of the patients keep everything; the others lose modalities, single channels or facts.

    One in twenty keeps only the NCCT and one in twenty no image at all: both are asked of the model when it serves
    and when it explains.
    """
    n, count = presence.shape
    keep = np.ones((n, count), bool)
    pairs = [("ncct",), ("cta", "vessels"), ("tmax", "rcbf")]
    for pair in pairs:
        lost = np.asarray(rng.random(n) < 0.3)
        keep[:, [i for i, c in enumerate(channels) if c in pair]] &= ~lost[:, None]
    keep &= rng.random((n, count)) > 0.1
    keep[rng.random(n) < 0.5] = True
    fate = rng.random(n)
    keep[fate < 0.1] = False
    keep[fate < 0.05] |= np.array([c == "ncct" for c in channels])
    present = presence & keep

    hidden = rng.random((n, len(vectors.scalars))) < 0.04
    hidden[rng.random(n) < 0.05] = True
    maps = [i for i, c in enumerate(channels) if c in ("tmax", "rcbf")]
    without = np.asarray(~present[:, maps].any(axis=1) & (rng.random(n) < 0.7))
    hidden |= without[:, None] & vectors.scalars
    return Dropout(present, hidden)


def no_dropout(presence: Bits, vectors: Vectors) -> Dropout:
    """Everything that a patient has; perfusion numbers only where there are maps to read them from."""
    return Dropout(presence, np.zeros((len(presence), len(vectors.scalars)), bool))
