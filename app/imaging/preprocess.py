"""One patient's volumes to one tensor on the model's grid: the single path of training and of serving.

Steps: every volume is checked against its field; the CTA (or else the NCCT) is aligned to MNI space, and the NCCT to
the CTA; masks and maps follow in the frame they were sent in; each channel is interpolated once, windowed and
normalised.

Notable choices:
- Whatever was guessed, computed, left out or poor is a flag in the answer; nothing is filled in silence.
- A channel that the patient lacks is zero after normalisation, and its presence bit says so.
- Masks and maps carry no anatomy to align by: they are taken where their own coordinates put them, in the frame of the
  CTA or of the NCCT, whichever agrees better, and refused where that is not in the head at all.
- A mask that was sent wins over one that would be computed; so do maps over a raw series.
- CT stays in its stored integers until the one interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from app.core.concurrency import submit
from app.imaging import plausibility, vessels
from app.imaging.io.nifti import Volume
from app.imaging.model_grid import ChannelSpec, Grid
from app.imaging.perfusion import ctp
from app.imaging.perfusion import summary as perfusion
from app.imaging.registration import align, brain_mask
from app.imaging.resample import to_grid
from app.sdk.errors import FieldError, GeometryMismatch, MissingInput
from app.sdk.types import Channel, Flag, Input, PerfusionSummary

__all__ = ["PatientGrid", "PreprocessedImages", "Source", "prepare"]

_MAPS: Final = (Input.TMAX, Input.CBF, Input.CBV, Input.MTT)
_FILL: Final = {Channel.NCCT: -1000.0, Channel.CTA: -1000.0}
_LARGEST: Final = {Channel.TMAX: 60.0, Channel.RCBF: 10.0}
"""Beyond these a map's value is an artefact, and would bleed into its neighbours."""

_COVERED: Final = 0.9
_SLAB_COVERED: Final = 0.5
_OUTSIDE: Final = 0.1
_IN_BRAIN: Final = 0.5


@dataclass(frozen=True)
class PatientGrid:
    """A patient's own grid: voxel -> RAS+ mm, its shape, and RAS+ mm -> MNI152 mm."""

    affine: np.ndarray
    shape: tuple[int, int, int]
    mni_from_world: np.ndarray


@dataclass(frozen=True)
class Source:
    """What a channel shows: ``factor`` times an upload, or a volume that was ``computed`` from uploads."""

    upload: Input | None = None
    factor: float = 1.0
    computed: Volume | None = None


@dataclass(frozen=True)
class PreprocessedImages:
    """What a network is given of one patient's images, and what is needed to explain it.

    ``image``: (C, X, Y, Z) float32, normalised, zero where ``presence`` (C,) is False. ``grids``, ``sources``: of each
    present channel. ``volumes``: ``vessels`` (uint8, on the patient's grid) and ``aligned-<channel>`` (float32
    real-world values on the MNI grid).
    """

    image: np.ndarray
    presence: np.ndarray
    flags: tuple[Flag, ...]
    perfusion: PerfusionSummary | None
    grids: dict[Channel, PatientGrid]
    sources: dict[Channel, Source]
    volumes: dict[str, Volume]


@dataclass(frozen=True)
class _Placed:
    """A volume, and the way from its world to MNI space."""

    volume: Volume
    mni_from_world: np.ndarray
    source: Source = Source()

    @property
    def coverage(self) -> float:
        return brain_mask.coverage(self.volume.affine, self.volume.shape, self.mni_from_world)


@dataclass
class _Study:
    """What is known of the patient so far."""

    placed: dict[Channel, _Placed] = field(default_factory=dict)
    flags: list[Flag] = field(default_factory=list)

    def flag(self, code: str, detail: str) -> None:
        self.flags.append(Flag(code=code, detail=detail))

    def take(self, more: _Study) -> None:
        """What was found beside, in a study of its own."""
        self.placed |= more.placed
        self.flags += more.flags


def prepare(
    volumes: Mapping[Input, Volume],
    grid: Grid,
    channels: Sequence[ChannelSpec],
    *,
    segmenter: vessels.Segmenter = vessels.segment,
) -> PreprocessedImages:
    """The tensor of one patient.

    :param volumes: what was sent, at least ``cta`` or ``ncct``
    :param grid: the model's MNI152 grid
    :param channels: the model's channels, in its order
    :param segmenter: makes the vessel mask where none was sent
    :raises MissingInput: neither a CTA nor an NCCT to align by
    :raises ImplausibleModality: a volume is not what its field claims
    :raises GeometryMismatch: a mask or map does not lie in the head
    :raises InvalidVolume: a perfusion series has no usable time axis
    """
    if Input.CTA not in volumes and Input.NCCT not in volumes:
        raise MissingInput(
            "send a cta or an ncct: masks and perfusion maps alone cannot be placed in the head",
            errors=[FieldError(Input.CTA, "required unless ncct is sent")],
        )
    study = _Study()
    heads = _examine(study, volumes)
    _place_head(study, volumes, heads)
    perfused = _Study(dict(study.placed))
    beside = submit(partial(_place_perfusion, perfused, volumes))
    if Channel.VESSELS in {channel.name for channel in channels}:
        _place_vessels(study, volumes, segmenter)
    summary = beside.result()
    study.take(perfused)
    return _tensor(study, grid, channels, summary)


def _tensor(
    study: _Study, grid: Grid, channels: Sequence[ChannelSpec], summary: PerfusionSummary | None
) -> PreprocessedImages:
    image = np.zeros((len(channels), *grid.shape), np.float32)
    presence = np.zeros(len(channels), bool)
    grids: dict[Channel, PatientGrid] = {}
    sources: dict[Channel, Source] = {}
    shown: dict[str, Volume] = {}
    for index, channel in enumerate(channels):
        placed = study.placed.get(channel.name)
        if placed is None:
            study.flag("missing-modality", f"{channel.name}: not given; the model answers without it")
            continue
        source, mni_from_world = placed.volume, placed.mni_from_world
        values = to_grid(source, grid, np.linalg.inv(mni_from_world), fill=_FILL.get(channel.name, 0.0))
        image[index] = (np.clip(values, *channel.window) - channel.mean) / channel.std
        presence[index] = True
        x, y, z = source.shape
        grids[channel.name] = PatientGrid(source.affine, (x, y, z), mni_from_world)
        sources[channel.name] = placed.source
        shown[f"aligned-{channel.name}"] = Volume(values, np.asarray(grid.affine, np.float64))
        if channel.name is Channel.VESSELS:
            shown["vessels"] = source
    return PreprocessedImages(image, presence, tuple(dict.fromkeys(study.flags)), summary, grids, sources, shown)


def _examine(study: _Study, volumes: Mapping[Input, Volume]) -> dict[Input, align.RegistrationImage]:
    """What is doubtful about each volume, and the heads that can be aligned by; of several refusals, the first's."""

    def look(name: Input, volume: Volume) -> tuple[tuple[Flag, ...], align.RegistrationImage | None]:
        return plausibility.check(volume, name), align.RegistrationImage(volume) if name in (
            Input.CTA,
            Input.NCCT,
        ) else None

    begun = {name: submit(partial(look, name, volume)) for name, volume in volumes.items()}
    heads = {}
    for name, looked in begun.items():
        flags, head = looked.result()
        study.flags += [*volumes[name].flags, *flags]
        if head is not None:
            heads[name] = head
    return heads


# The head ----------------------------------------------------------------------------------------------------------


def _place_head(study: _Study, volumes: Mapping[Input, Volume], heads: Mapping[Input, align.RegistrationImage]) -> None:
    """Align the CTA, or else the NCCT, to MNI space, and the NCCT to the CTA."""
    cta, ncct = heads.get(Input.CTA), heads.get(Input.NCCT)
    beside = submit(partial(align.between, ncct, cta, rigid=True)) if cta and ncct else None
    if cta is not None:
        study.placed[Channel.CTA] = _Placed(volumes[Input.CTA], _to_mni(study, cta, Input.CTA), Source(Input.CTA))
    if ncct is not None:
        mni_from_ncct = _ncct_to_mni(study, ncct, beside.result() if beside else None)
        study.placed[Channel.NCCT] = _Placed(volumes[Input.NCCT], mni_from_ncct, Source(Input.NCCT))
    for name in (Channel.CTA, Channel.NCCT):
        if name in study.placed:
            _check_coverage(study, name)


def _to_mni(study: _Study, head: align.RegistrationImage, name: Input) -> np.ndarray:
    alignment = align.to_mni(head)
    if alignment.poor:
        study.flag("alignment-poor", f"{name}: the alignment to MNI space is poor; regions and maps may be misplaced")
    return alignment.mni_from_world


def _ncct_to_mni(study: _Study, ncct: align.RegistrationImage, to_cta: tuple[np.ndarray, float] | None) -> np.ndarray:
    """By way of the CTA where there is one and the two can be aligned; else directly."""
    if to_cta is None:
        return _to_mni(study, ncct, Input.NCCT)
    cta_from_ncct, quality = to_cta
    if quality >= align.POOR:
        mni_from_ncct: np.ndarray = study.placed[Channel.CTA].mni_from_world @ cta_from_ncct
        return mni_from_ncct
    study.flag("alignment-poor", "ncct: it could not be aligned to the cta, and was aligned by itself")
    return _to_mni(study, ncct, Input.NCCT)


def _check_coverage(study: _Study, name: Channel) -> None:
    placed = study.placed[name]
    if placed.coverage < _COVERED:
        study.flag("coverage", f"{name}: about {placed.coverage:.0%} of the brain lies in the field of view")
    willis = np.array(np.meshgrid(*brain_mask.WILLIS_MM)).reshape(3, -1).T
    reach = brain_mask.coverage(placed.volume.affine, placed.volume.shape, placed.mni_from_world, willis)
    if name is Channel.CTA and reach < 1:
        study.flag("coverage", "cta: the field of view does not hold the whole circle of Willis")


def _frames(study: _Study) -> list[np.ndarray]:
    """The ways to MNI space of the frames that a mask or map may be in, the likelier first."""
    return [study.placed[name].mni_from_world for name in (Channel.CTA, Channel.NCCT) if name in study.placed]


# Vessels -----------------------------------------------------------------------------------------------------------


def _place_vessels(study: _Study, volumes: Mapping[Input, Volume], segmenter: vessels.Segmenter) -> None:
    """The mask that was sent, or one computed from the CTA; without either the channel stays empty."""
    sent, cta = volumes.get(Input.VESSELS), study.placed.get(Channel.CTA)
    if sent is not None:
        mask = Volume(vessels.inside(sent).view(np.uint8), sent.affine)
        placed = _Placed(mask, _frames(study)[0], Source(Input.VESSELS))
        if cta is not None:
            _check_mask(cta, placed)
        study.placed[Channel.VESSELS] = placed
    elif cta is not None:
        bone = None
        if (ncct := study.placed.get(Channel.NCCT)) is not None:
            cta_from_ncct = np.linalg.inv(cta.mni_from_world) @ ncct.mni_from_world
            plain = ncct.volume
            bone = Volume(plain.data, cta_from_ncct @ plain.affine, plain.slope, plain.inter)
        mask = segmenter(cta.volume, cta.mni_from_world, bone)
        study.placed[Channel.VESSELS] = _Placed(mask, cta.mni_from_world, Source(computed=mask))
        study.flag("vessels-computed", "vessels: not given; segmented from the cta")


def _check_mask(cta: _Placed, mask: _Placed) -> None:
    """The mask must show what the CTA shows of the brain."""
    if mask.coverage >= _COVERED * cta.coverage:
        return
    raise GeometryMismatch(
        f"CTA is {_size(cta.volume)}, vessels {_size(mask.volume)}, and they do not cover the same part of the head: "
        "resample the mask onto the CTA or resend it",
        errors=[FieldError(Input.VESSELS, "does not lie on the CTA")],
    )


def _size(volume: Volume) -> str:
    return "x".join(str(n) for n in volume.shape)


# Perfusion ---------------------------------------------------------------------------------------------------------


def _place_perfusion(study: _Study, volumes: Mapping[Input, Volume]) -> PerfusionSummary | None:
    """Maps as sent or computed, their numbers, and Tmax and relative CBF as channels."""
    maps = {name: _clean(volumes[name]) for name in _MAPS if name in volumes}
    frame = _frames(study)[0]
    if Input.CTP in volumes and not {Input.TMAX, Input.CBF} <= maps.keys():
        computed = ctp.deconvolve(volumes[Input.CTP], frame)
        study.flags += computed.flags
        made = [name for name in _MAPS if name not in maps]
        study.flag("perfusion-computed", f"{', '.join(made)}: not given; computed from the ctp series")
        maps = {**computed.by_input(), **maps}
    if Input.TMAX not in maps and Input.CBF not in maps:
        return None
    frame = _frame_of(study, maps)
    found = perfusion.summarise(maps, frame)
    if Input.TMAX in maps:
        tmax = _capped(maps[Input.TMAX], Channel.TMAX)
        sent = Input.TMAX in volumes
        study.placed[Channel.TMAX] = _Placed(tmax, frame, Source(Input.TMAX) if sent else Source(computed=tmax))
    if Input.CBF in maps and found.reference_cbf:
        factor = 1 / found.reference_cbf
        rcbf = _capped(Volume(maps[Input.CBF].values() * np.float32(factor), maps[Input.CBF].affine), Channel.RCBF)
        sent = Input.CBF in volumes
        study.placed[Channel.RCBF] = _Placed(rcbf, frame, Source(Input.CBF, factor) if sent else Source(computed=rcbf))
    return found.summary


def _clean(volume: Volume) -> Volume:
    """A map as float32, 0 where its software wrote NaN because it saw no tissue."""
    return Volume(np.nan_to_num(volume.values(), copy=False, nan=0, posinf=0, neginf=0), volume.affine)


def _capped(volume: Volume, channel: Channel) -> Volume:
    return Volume(np.clip(volume.data, 0, _LARGEST[channel]), volume.affine)


def _frame_of(study: _Study, maps: Mapping[Input, Volume]) -> np.ndarray:
    """The frame in which the maps' tissue lies in the brain best.

    :raises GeometryMismatch: in none do they show the brain
    """
    for name, volume in maps.items():
        if max(_Placed(volume, frame).coverage for frame in _frames(study)) < _OUTSIDE:
            raise GeometryMismatch(
                f"the {name} map does not lie in the head that the CT shows: send it with the scanner's coordinates, "
                "or resampled onto the CT",
                errors=[FieldError(name, "lies outside the head")],
            )
    lead = maps[Input.TMAX] if Input.TMAX in maps else maps[Input.CBF]
    shares = [_share_in_brain(_Placed(lead, frame)) for frame in _frames(study)]
    best = int(np.argmax(np.array(shares) - 0.05 * np.arange(len(shares))))
    frame = _frames(study)[best]
    if shares[best] < _IN_BRAIN:
        study.flag("perfusion-misplaced", "perfusion: much of the maps' tissue lies outside the brain of the CT")
    if _Placed(lead, frame).coverage < _SLAB_COVERED:
        study.flag("coverage", "perfusion: the maps cover less than half of the brain; volumes are of what they cover")
    return frame


def _share_in_brain(placed: _Placed) -> float:
    """Which share of a map's tissue (what is above 0) lies within 5 mm of the brain."""
    volume = placed.volume
    tissue = volume.data > 0
    depth = brain_mask.distance(volume.affine, volume.shape, placed.mni_from_world)
    return float(np.mean(depth[tissue] < 5)) if tissue.any() else 0.0
