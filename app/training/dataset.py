"""Patients as arrays: images, records, labels and latents on which every model is trained and scored.

Design notes:
- Images are float16 on the model grid, already normalised; they may be a memory map.
- ``Vectors`` encodes each record once, as the service does. It also stores the encoding of a missing variable, so that
  training can make any variable missing.
- Dropout of a modality zeroes its channels and clears their presence bits. Without perfusion maps the perfusion numbers
  are dropped too in most cases; a site may send numbers without maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.imaging.model_grid import ChannelSpec, Grid
from app.inference import defaults, occlusion_side
from app.inference.clinical_encoder import PERFUSION, encode
from app.inference.model_input import ModelInput
from app.phantoms import biology, cohort
from app.phantoms.biology import Patient, Preset
from app.phantoms.cohort import PhantomImages
from app.phantoms.scene import PLAIN, Appearance
from app.registry.manifest import Clinical, ClinicalVariable
from app.sdk.clinical import ClinicalRecord, ImagingSigns, Side
from app.sdk.types import Channel, Flag, PerfusionSummary

Bits = NDArray[np.bool_]

# Targets of the auxiliary heads; none of them is an outcome. Phantoms have all of them.
LATENTS = ("truncal", "intensity", "clot_length_mm", "clot_hu", "calcified", "tmax6_ml", "core_ml")


@dataclass(frozen=True)
class Dataset:
    """Arrays of n patients.

    Attributes:
        images: (n, C, X, Y, Z) float16 on the model grid, zero where ``presence`` (n, C) is false.
        groups: (n,) patient numbers; rows of one patient stay together in every split.
        latents: (n, k) standardised, NaN where unknown.
        oracle: (n,) true probability of rLVO, for phantoms only.
        digests: Digests (n) of the images of each row, see ``provenance.image_digests``.
        flags: Flags (n) of the preparation of each row; None for a row that came prepared.
        clots: (n, X/2, Y/2, Z/2) float16, share of each cell of two voxels that the clot fills, for phantoms only.
        own: Own variables of the cohort.
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
    digests: Sequence[Mapping[str, str]] = ()
    flags: Sequence[Sequence[Flag] | None] = ()
    clots: NDArray[np.float16] | None = None
    own: tuple[ClinicalVariable, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, channels: Sequence[int]) -> Dataset:
        """The same patients with only these channels present; images are not copied."""
        kept = np.zeros(self.presence.shape[1], bool)
        kept[list(channels)] = True
        return replace(self, presence=self.presence & kept)

    def first(self, count: int) -> Dataset:
        """The first ``count`` patients; images are not copied."""
        rows = {name: part for name, part in vars(self).items() if part is not None and name != "own"}
        return replace(self, **{name: part[:count] for name, part in rows.items()})


@dataclass(frozen=True)
class Drawn:
    """Phantoms that are drawn already.

    Attributes:
        images: (n, C, X, Y, Z) float16; may be a memory map.
        protocols: (n, C + 3): presence, and the covered volumes of ``cohort.covered_ml``, NaN for the whole head. None:
            they are found again, which builds each scene.
        clots: (n, X/2, Y/2, Z/2) float16 or None.
    """

    images: NDArray[np.float16]
    protocols: NDArray[np.float64] | None = None
    clots: NDArray[np.float16] | None = None


def phantoms(
    patients: int,
    seed: int,
    preset: Preset,
    grid: Grid,
    channels: Sequence[ChannelSpec],
    *,
    appearance: Appearance = PLAIN,
    drawn: Drawn | None = None,
) -> Dataset:
    """Synthetic cohort, drawn directly on the model grid.

    ``appearance``: what varies between the patients besides biology. ``drawn``: images of the same patients that exist.
    """
    persons = biology.draw(patients, seed, preset)
    if drawn is None:
        drawn = Drawn(np.empty((patients, len(channels), *grid.shape), np.float16), _protocols(persons, channels))
        for one in cohort.grouped_images(persons, seed, grid, channels, appearance=appearance):
            keep(one, one.row, drawn)
    protocols = _protocols(persons, channels) if drawn.protocols is None else drawn.protocols
    if drawn.protocols is None and appearance.scanners:
        for row, patient_scene, _ in cohort.scenes(persons, seed, appearance):
            protocols[row] = _protocol(cohort.presence(patient_scene, channels), cohort.covered_ml(patient_scene))
    presence = protocols[:, : len(channels)] > 0
    volumes = np.asarray(protocols[:, len(channels) :]).tolist()
    covered = [None if np.isnan(row[0]) else (row[0], row[1], row[2]) for row in volumes]
    rngs = [np.random.default_rng([seed, 6, person.index]) for person in persons]
    perfused: Bits = np.all(presence[:, [channel.name is Channel.TMAX for channel in channels]], axis=1)
    records = [cohort.record(person, rng) for person, rng in zip(persons, rngs, strict=True)]
    measured = [cohort.measured_perfusion(*parts) for parts in zip(persons, rngs, covered, strict=True)]
    return Dataset(
        images=drawn.images,
        presence=presence,
        records=records,
        perfusion=[numbers if known else None for numbers, known in zip(measured, perfused, strict=True)],
        labels=np.array([person.refractory for person in persons], np.int64),
        groups=np.arange(patients),
        sites=np.full(patients, "phantom"),
        latents=np.array([standard_latents(person) for person in persons], np.float32),
        oracle=np.array([person.probability for person in persons]),
        clots=drawn.clots,
    )


def keep(one: PhantomImages, row: int, into: Drawn) -> None:
    """Write a rendered patient into ``row`` of the arrays ``into``, whose protocols are known."""
    assert into.protocols is not None
    into.images[row] = one.images
    into.protocols[row] = _protocol(one.presence, one.covered_ml)
    if into.clots is not None:
        into.clots[row] = cells_of_two(one.clot)


def _protocols(persons: Sequence[Patient], channels: Sequence[ChannelSpec]) -> NDArray[np.float64]:
    """Protocols (n, C + 3) of patients who have all series of the whole head."""
    return np.array([_protocol(np.ones(len(channels), bool), None)] * len(persons))


def _protocol(presence: Bits, covered_ml: tuple[float, float, float] | None) -> list[float]:
    return [*presence.astype(float), *(covered_ml or (np.nan,) * 3)]


def cells_of_two(volume: NDArray[np.float16]) -> NDArray[np.float16]:
    """Average a volume (x, y, z) over cells of two voxels along each axis: (x/2, y/2, z/2)."""
    x, y, z = (length // 2 for length in volume.shape)
    cells = volume.astype(np.float32).reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5))
    return np.asarray(cells, np.float16)


def standard_latents(person: biology.Patient) -> list[float]:
    """Standardised latents (k,) of a phantom, in the order of ``LATENTS``."""
    return _standardise({name: getattr(person, name) for name in LATENTS})


def known_latents(record: ClinicalRecord, perfusion: PerfusionSummary | None) -> list[float]:
    """Standardised latents (k,) of a real patient, NaN where unknown.

    Sources are the imaging signs of the record, and the perfusion numbers of the site or else of ``perfusion``.
    """
    signs, site_numbers = record.imaging_signs or ImagingSigns(), record.perfusion

    def number(name: str) -> float | None:
        value = getattr(site_numbers, name, None)
        return getattr(perfusion, name, None) if value is None else value

    return _standardise(
        {
            "truncal": signs.truncal_type,
            "intensity": number("hypoperfusion_intensity_ratio"),
            "clot_length_mm": signs.clot_length_mm,
            "clot_hu": signs.clot_hu,
            "calcified": signs.calcified_artery,
            "tmax6_ml": number("tmax6_ml"),
            "core_ml": number("core_ml"),
        }
    )


def _standardise(latents: Mapping[str, float | None]) -> list[float]:
    """Latents (k,) centred and scaled by the constants of the phantom model; NaN where unknown."""
    logarithms: dict[str, Callable[[float], float]] = {
        "tmax6_ml": lambda volume: np.log(max(volume, 1.0)),
        "core_ml": np.log1p,
    }
    names = ("truncal", "intensity", "length", "density", "calcified")
    scales = (*(biology.STANDARD[name] for name in names), (4.73, 0.5), (2.9, 0.8))
    scaled = []
    for name, (mean, deviation) in zip(LATENTS, scales, strict=True):
        value = latents[name]
        scaled.append(np.nan if value is None else (float(logarithms.get(name, float)(value)) - mean) / deviation)
    return scaled


@dataclass(frozen=True)
class Vectors:
    """Encoded clinical records of n patients.

    ``values`` (n, columns) and ``missing`` (n, variables) come from ``encode``. ``blank`` (columns,): encoding of
    missing variables; ``owner`` (columns,): variable of each column; ``scalars`` (variables,): is a perfusion number.
    """

    values: NDArray[np.float32]
    missing: NDArray[np.float32]
    blank: NDArray[np.float32]
    owner: NDArray[np.int64]
    scalars: Bits

    @classmethod
    def of(cls, data: Dataset, spec: Clinical) -> Vectors:
        """Encode every record; perfusion numbers of the maps fill gaps, as in the service."""
        rows = [encode(r, spec, p) for r, p in zip(data.records, data.perfusion, strict=True)]
        widths = [variable.width for variable in spec.variables]
        columns, variables = sum(widths), len(widths)
        return cls(
            values=np.array([row.values for row in rows], np.float32).reshape(len(rows), columns),
            missing=np.array([row.missing for row in rows], np.float32).reshape(len(rows), variables),
            blank=encode(ClinicalRecord(), spec).values,
            owner=np.repeat(np.arange(variables), widths),
            scalars=np.array([variable.name.startswith(PERFUSION) for variable in spec.variables]),
        )

    def first(self, count: int) -> Vectors:
        """Vectors of the first ``count`` patients."""
        return replace(self, values=self.values[:count], missing=self.missing[:count])

    @property
    def size(self) -> int:
        """Number of columns and missing bits, without the presence bits."""
        return len(self.blank) + len(self.scalars)

    def joined(self, rows: NDArray[np.int64], presence: Bits, hidden: Bits | None = None) -> NDArray[np.float32]:
        """Clinical vectors (n, size + C) of ``rows``, with the variables ``hidden`` (n, variables) made missing."""
        values, missing = self.values[rows], self.missing[rows]
        if hidden is not None:
            values = np.where(hidden[:, self.owner], self.blank, values)
            missing = np.maximum(missing, hidden)
        return np.concatenate([values, missing, presence], axis=1).astype(np.float32)


def affected_side(data: Dataset, row: int) -> Side | None:
    """Side of the occlusion by the record, and without it by the images, as in the service; None if neither shows it.

    Images of another release's layout show none.
    """
    recorded, image = data.records[row].occlusion_side, data.images[row]
    if recorded is not None or image.shape != (len(defaults.CHANNELS), *defaults.GRID.shape):
        return recorded
    shown = occlusion_side.shown_sides(image.astype(np.float32), data.presence[row], defaults.CHANNELS, defaults.GRID)
    return occlusion_side.compare(None, shown)[0]


def to_model_input(data: Dataset, vectors: Vectors, spec: Clinical, row: int) -> ModelInput:
    """One row of a data set as the input of a model version."""
    encoded = encode(data.records[row], spec, data.perfusion[row])
    presence = data.presence[row]
    image = data.images[row].astype(np.float32) * presence[:, None, None, None]
    return ModelInput(
        image=image,
        presence=presence,
        affected=affected_side(data, row),
        clinical=vectors.joined(np.array([row]), presence[None])[0],
        shown=encoded.shown,
        imputed=encoded.imputed,
        perfusion=data.perfusion[row],
    )


@dataclass(frozen=True)
class Dropout:
    """Dropout of a batch: channels still ``present`` (n, C), and variables ``hidden`` (n, variables)."""

    present: Bits
    hidden: Bits


def draw_dropout(presence: Bits, channels: Sequence[Channel], vectors: Vectors, rng: np.random.Generator) -> Dropout:
    """Draw the dropout of a batch; half of the patients keep all images, the others lose modalities or channels.

    One in twenty keeps only the NCCT and one in twenty no image, because the service predicts and explains such inputs.
    """
    n, count = presence.shape
    keep = np.ones((n, count), bool)
    modalities = [("ncct",), ("cta", "vessels"), ("tmax", "rcbf")]
    for modality in modalities:
        lost = np.asarray(rng.random(n) < 0.3)
        keep[:, [i for i, c in enumerate(channels) if c in modality]] &= ~lost[:, None]
    keep &= rng.random((n, count)) > 0.1
    keep[rng.random(n) < 0.5] = True
    uniform = rng.random(n)
    keep[uniform < 0.1] = False
    keep[uniform < 0.05] |= np.array([c == "ncct" for c in channels])
    present = presence & keep

    hidden = rng.random((n, len(vectors.scalars))) < 0.04
    hidden[rng.random(n) < 0.05] = True
    maps = [i for i, c in enumerate(channels) if c in ("tmax", "rcbf")]
    without = np.asarray(~present[:, maps].any(axis=1) & (rng.random(n) < 0.7))
    hidden |= without[:, None] & vectors.scalars
    return Dropout(present, hidden)


def no_dropout(presence: Bits, vectors: Vectors) -> Dropout:
    """Dropout that keeps everything."""
    return Dropout(presence, np.zeros((len(presence), len(vectors.scalars)), bool))
