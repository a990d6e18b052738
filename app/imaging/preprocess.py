"""Turn one patient's volumes into the input tensor on the model's grid, for training and for serving.

Steps: check each volume against its field; register the CTA (or else the NCCT) to MNI space, and the NCCT to the CTA;
add masks and maps in the frame of one of them; interpolate each channel once, clip it to its window, normalise it.

Design notes:
- Everything that is assumed, computed, missing or poor is a flag in the answer.
- A missing channel is zero after normalisation, and False in ``presence``.
- Masks and maps are not registered. They keep their coordinates, in the frame (CTA or NCCT) that agrees better. One
  that was sent has priority over a computed one.
- CT values stay in their stored integer type until the interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from app.core.concurrency import submit
from app.core.display_names import channel_label
from app.imaging import mask_check, plausibility, slices_check, study_check, vessels
from app.imaging.aligned_study import AlignedStudy, AlignedVolume, PatientGrid, Source
from app.imaging.io import duplicates
from app.imaging.io.nifti import Volume
from app.imaging.model_grid import ChannelSpec, Grid
from app.imaging.perfusion import background, ctp, map_check
from app.imaging.perfusion import summary as perfusion
from app.imaging.registration import align, brain_mask, transform_check
from app.imaging.resample import to_grid
from app.sdk.errors import FieldError, GeometryMismatch, MissingInput
from app.sdk.types import Channel, Flag, Input, PerfusionSummary

__all__ = ["PreprocessedImages", "prepare"]

_MAPS: Final = (Input.TMAX, Input.CBF, Input.CBV, Input.MTT)
_FILL: Final = {Channel.NCCT: -1000.0, Channel.CTA: -1000.0}
_MAX_VALUE: Final = {Channel.TMAX: 60.0, Channel.RCBF: 10.0}  # more is an artefact, which interpolation would spread
_MIN_COVERAGE: Final = 0.9
_MIN_MAP_COVERAGE: Final = 0.5
_MIN_OVERLAP: Final = 0.1
_MIN_IN_BRAIN: Final = 0.5
_ROUNDING_MM: Final = 0.05


@dataclass(frozen=True)
class PreprocessedImages:
    """The image input of a network for one patient, with the data that an explanation needs.

    Attributes:
        image: (C, X, Y, Z) float32, normalised; zero where ``presence`` is False.
        presence: (C,) bool; ``grids`` and ``sources`` are those of the present channels.
        volumes: ``vessels`` (uint8, patient's grid) and ``aligned-<channel>`` (float32, real values, MNI grid).
        lesions: ``core`` and ``tmax6`` (uint8, grid of the perfusion maps), where their volumes are stated.
    """

    image: np.ndarray
    presence: np.ndarray
    flags: tuple[Flag, ...]
    perfusion: PerfusionSummary | None
    grids: dict[Channel, PatientGrid]
    sources: dict[Channel, Source]
    volumes: dict[str, Volume]
    lesions: dict[str, Volume] = field(default_factory=dict)


def prepare(
    volumes: Mapping[Input, Volume],
    grid: Grid,
    channels: Sequence[ChannelSpec],
    *,
    segmenter: vessels.Segmenter = vessels.segment,
) -> PreprocessedImages:
    """Make the input tensor of one patient.

    Args:
        volumes: the volumes that were sent, at least ``cta`` or ``ncct``.
        grid: the model's MNI152 grid.
        channels: the model's channels, in its order.
        segmenter: makes the vessel mask if none was sent.

    Raises:
        MissingInput: there is neither a CTA nor an NCCT.
        ImplausibleModality: a volume does not show what its field claims.
        GeometryMismatch: a mask or map does not lie in the head, or a head contradicts its header.
        InvalidVolume: a perfusion series has no usable time axis.
    """
    if Input.CTA not in volumes and Input.NCCT not in volumes:
        raise MissingInput(
            "send a cta or an ncct: masks and perfusion maps alone cannot be aligned to the head",
            errors=[FieldError(Input.CTA, "required unless ncct is sent")],
        )
    study = AlignedStudy()
    checked = _check_volumes(study, volumes)
    _align_heads(study, volumes, checked.heads)
    perfusion_study = AlignedStudy(dict(study.aligned))
    perfusion_task = submit(partial(_add_perfusion, perfusion_study, volumes, checked.maps))
    if Channel.VESSELS in {channel.name for channel in channels}:
        _add_vessels(study, volumes, segmenter)
    summary = perfusion_task.result()
    study.merge(perfusion_study)
    return _tensor(study, grid, channels, summary)


def _tensor(
    study: AlignedStudy, grid: Grid, channels: Sequence[ChannelSpec], summary: PerfusionSummary | None
) -> PreprocessedImages:
    image = np.zeros((len(channels), *grid.shape), np.float32)
    presence = np.zeros(len(channels), bool)
    grids: dict[Channel, PatientGrid] = {}
    sources: dict[Channel, Source] = {}
    outputs: dict[str, Volume] = {}
    for index, channel in enumerate(channels):
        aligned = study.aligned.get(channel.name)
        if aligned is None:
            study.flag("missing-modality", f"{channel_label(channel.name)}: not given; the model predicts without it")
            continue
        source, mni_from_world = aligned.volume, aligned.mni_from_world
        fill = _FILL.get(channel.name, 0.0)
        _check_parts(study, channel, source, grid)
        values = to_grid(source, grid, np.linalg.inv(mni_from_world), fill=fill, parts=channel.parts)
        image[index] = (np.clip(values, *channel.window) - channel.mean) / channel.std
        presence[index] = True
        x, y, z = source.shape
        grids[channel.name] = PatientGrid(source.affine, (x, y, z), mni_from_world)
        sources[channel.name] = aligned.source
        outputs[f"aligned-{channel.name}"] = Volume(values, np.asarray(grid.affine, np.float64))
        if channel.name is Channel.VESSELS:
            outputs["vessels"] = source
    flags = tuple(dict.fromkeys(study.flags))
    return PreprocessedImages(image, presence, flags, summary, grids, sources, outputs, study.lesions)


def _check_parts(study: AlignedStudy, channel: ChannelSpec, source: Volume, grid: Grid) -> None:
    """Flag slices that are thicker than the parts of a voxel whose highest value the version reads."""
    part_mm = np.linalg.norm(np.asarray(grid.affine)[:3, :3], axis=0).max() / channel.parts
    slice_mm = max(source.spacing_mm)
    if channel.parts > 1 and slice_mm > part_mm + _ROUNDING_MM and not study.has("slice-thickness", channel.name):
        study.flag(
            "density-averaged",
            f"{channel.name}: slices of {slice_mm:.1f} mm; the version reads parts of {part_mm:.1f} mm, so the density "
            "of a clot is averaged with the tissue beside it",
        )


_CleanedMap = tuple[Volume, tuple[Flag, ...]]  # as ``background.clean`` returns it


@dataclass(frozen=True)
class _CheckedVolumes:
    """The CTs prepared for registration, and the perfusion maps that were sent."""

    heads: dict[Input, align.RegistrationImage]
    maps: dict[Input, _CleanedMap]


def _check_volumes(study: AlignedStudy, volumes: Mapping[Input, Volume]) -> _CheckedVolumes:
    """Add the plausibility flags of each volume, and prepare CTs and maps; the first refusal is raised."""
    duplicates.check_voxels(volumes)
    checked = _CheckedVolumes({}, {})

    def check(name: Input, volume: Volume) -> tuple[Flag, ...]:
        if name in _MAPS:
            checked.maps[name] = background.clean(volume, name)
            return plausibility.check(checked.maps[name][0], name)
        flags = plausibility.check(volume, name)
        if name not in (Input.CTA, Input.NCCT):
            return flags
        checked.heads[name] = align.RegistrationImage(volume)
        return (*flags, *slices_check.check(checked.heads[name], name))

    tasks = {name: submit(partial(check, name, volume)) for name, volume in volumes.items()}
    for name, task in tasks.items():
        flags = task.result()
        read = name is not Input.CTP or _needs_series(volumes)
        study.flags += [*(volumes[name].flags if read else ()), *flags]
    plausibility.check_exchange(study.flags)
    return checked


# The head ----------------------------------------------------------------------------------------------------------


def _align_heads(
    study: AlignedStudy, volumes: Mapping[Input, Volume], heads: Mapping[Input, align.RegistrationImage]
) -> None:
    """Register the CTA (or else the NCCT) to MNI space, and the NCCT to the CTA."""
    cta, ncct = heads.get(Input.CTA), heads.get(Input.NCCT)
    pair_task = submit(partial(align.coregister, ncct, cta, rigid=True)) if cta and ncct else None
    if cta is not None:
        study.aligned[Channel.CTA] = AlignedVolume(
            volumes[Input.CTA], _to_mni(study, cta, Input.CTA), Source(Input.CTA), cta.coarse
        )
    if ncct is not None:
        pair = pair_task.result() if pair_task else None
        mni_from_ncct = _ncct_to_mni(study, ncct, pair)
        if cta is not None and pair is not None:
            study.flags += study_check.check_inside(ncct, cta, pair, study.aligned[Channel.CTA].mni_from_world)
        study.aligned[Channel.NCCT] = AlignedVolume(volumes[Input.NCCT], mni_from_ncct, Source(Input.NCCT), ncct.coarse)
    for name in (Channel.CTA, Channel.NCCT):
        if name in study.aligned:
            _check_coverage(study, name)


def _to_mni(study: AlignedStudy, head: align.RegistrationImage, name: Input) -> np.ndarray:
    alignment = align.to_mni(head)
    study.flags += transform_check.check(head, alignment, name)
    if alignment.poor:
        study.flag("alignment-poor", f"{name}: the alignment to MNI space is poor; regions and maps may be misplaced")
    return alignment.mni_from_world


def _ncct_to_mni(study: AlignedStudy, ncct: align.RegistrationImage, to_cta: align.Coregistration | None) -> np.ndarray:
    """MNI from NCCT: through the CTA if the two can be aligned, otherwise directly."""
    if to_cta is None:
        return _to_mni(study, ncct, Input.NCCT)
    mni_from_ncct: np.ndarray = study.aligned[Channel.CTA].mni_from_world @ to_cta.fixed_from_moving
    if not study_check.is_other_head(to_cta):
        return mni_from_ncct
    if to_cta.quality < align.POOR_QUALITY:
        study.flag("alignment-poor", "ncct: it could not be aligned to the cta; it was aligned to MNI space directly")
    else:
        study.flag("study-mismatch", "ncct: its skull has another size or shape than that of the cta")
    alone = _to_mni(study, ncct, Input.NCCT)
    return alone if to_cta.quality < align.POOR_QUALITY else mni_from_ncct


def _check_coverage(study: AlignedStudy, name: Channel) -> None:
    aligned = study.aligned[name]
    if aligned.coverage < _MIN_COVERAGE:
        study.flag("coverage", f"{name}: about {aligned.coverage:.0%} of the brain lies in the field of view")
    willis = np.array(np.meshgrid(*brain_mask.WILLIS_MM)).reshape(3, -1).T
    reach = brain_mask.coverage(aligned.volume.affine, aligned.volume.shape, aligned.mni_from_world, willis)
    if name is Channel.CTA and reach < 1:
        study.flag("coverage", "cta: the field of view does not hold the whole circle of Willis")


def _frames(study: AlignedStudy) -> list[np.ndarray]:
    """MNI from world of each frame that a mask or map may be in, the more likely one first."""
    return [study.aligned[name].mni_from_world for name in (Channel.CTA, Channel.NCCT) if name in study.aligned]


# Vessels -----------------------------------------------------------------------------------------------------------


def _add_vessels(study: AlignedStudy, volumes: Mapping[Input, Volume], segmenter: vessels.Segmenter) -> None:
    """Add the mask that was sent, or one segmented from the CTA; without both, the channel stays empty."""
    sent, cta = volumes.get(Input.VESSELS), study.aligned.get(Channel.CTA)
    if sent is not None:
        mask = Volume(vessels.is_vessel(sent).view(np.uint8), sent.affine)
        aligned = AlignedVolume(mask, _frames(study)[0], Source(Input.VESSELS))
        if cta is not None:
            _check_mask(cta, aligned)
        _check_mask_content(study, aligned)
        study.aligned[Channel.VESSELS] = aligned
    elif cta is not None:
        bone = None
        if (ncct := study.aligned.get(Channel.NCCT)) is not None:
            cta_from_ncct = np.linalg.inv(cta.mni_from_world) @ ncct.mni_from_world
            plain = ncct.volume
            bone = Volume(plain.data, cta_from_ncct @ plain.affine, plain.slope, plain.inter)
        mask = segmenter(cta.volume, cta.mni_from_world, bone)
        study.aligned[Channel.VESSELS] = AlignedVolume(mask, cta.mni_from_world, Source(computed=mask))
        study.flag("vessels-computed", "vessels: not given; segmented from the cta")
        study.flags += mask.flags
        _check_vessels(study, study.aligned[Channel.VESSELS])


def _check_mask(cta: AlignedVolume, mask: AlignedVolume) -> None:
    """Check that the mask covers the part of the brain that the CTA covers."""
    if mask.coverage >= _MIN_COVERAGE * cta.coverage:
        return
    raise GeometryMismatch(
        f"CTA is {_size(cta.volume)}, vessels {_size(mask.volume)}, and they do not cover the same part of the head: "
        "resample the mask onto the CTA or send it again",
        errors=[FieldError(Input.VESSELS, "does not lie on the CTA")],
    )


def _check_mask_content(study: AlignedStudy, mask: AlignedVolume) -> None:
    """Check a mask that was sent against the CT that it belongs to."""
    kind = Input.CTA if Channel.CTA in study.aligned else Input.NCCT
    if not study.poorly_aligned:
        study.flags += mask_check.content(mask.volume, study.aligned[Channel(kind)].volume, kind, mask.mni_from_world)
    _check_vessels(study, mask)


def _check_vessels(study: AlignedStudy, mask: AlignedVolume) -> None:
    """Check how much the mask holds, and how bright the arteries in it are on the CTA and the NCCT."""
    complete = mask.coverage >= _MIN_COVERAGE and not study.poorly_aligned
    study.flags += mask_check.amount(mask.volume, mask.mni_from_world, complete=complete)
    cta = study.aligned.get(Channel.CTA)
    unsure = study.poorly_aligned or study.has("vessels-misplaced") or study.has("contrast-doubtful", Input.CTA)
    if cta is None or unsure:
        return
    study.flags += mask_check.contrast(mask.volume, cta.volume, mask.mni_from_world)
    ncct = study.aligned.get(Channel.NCCT)
    if ncct is not None and not study.has("study-mismatch") and not study.has("contrast-doubtful", Input.NCCT):
        maps = mask.mni_from_world, np.linalg.inv(ncct.mni_from_world) @ mask.mni_from_world
        study.flags += mask_check.plain_blood(mask.volume, cta.volume, ncct.volume, maps)


def _size(volume: Volume) -> str:
    return "x".join(str(n) for n in volume.shape)


# Perfusion ---------------------------------------------------------------------------------------------------------


def _add_perfusion(
    study: AlignedStudy, volumes: Mapping[Input, Volume], sent: Mapping[Input, _CleanedMap]
) -> PerfusionSummary | None:
    """Add Tmax and relative CBF, from maps that were sent or computed; return the volumes and ratios of the maps."""
    maps = {name: sent[name][0] for name in _MAPS if name in sent}
    as_sent = {name for name in maps if not sent[name][1]}
    study.flags += [flag for name in maps for flag in sent[name][1]]
    if _needs_series(volumes):
        computed = ctp.deconvolve(volumes[Input.CTP], _frames(study)[0])
        study.flags += computed.flags
        missing = [name for name in _MAPS if name not in maps]
        study.flag("perfusion-computed", f"{', '.join(missing)}: not given; computed from the ctp series")
        maps = {**computed.by_input(), **maps}
    if Input.TMAX not in maps and Input.CBF not in maps:
        return None
    frame = _frame_of(study, maps)
    found = map_check.check(maps, frame, _plainest_ct(study), computed=Input.TMAX not in volumes)
    study.flags += found.flags
    measurement = perfusion.summarise(maps, frame)
    if Input.TMAX in maps:
        tmax = _capped(maps[Input.TMAX], Channel.TMAX)
        source = Source(Input.TMAX) if Input.TMAX in as_sent else Source(computed=tmax)
        study.aligned[Channel.TMAX] = AlignedVolume(tmax, frame, source)
    if Input.CBF in maps and measurement.reference_cbf:
        factor = 1 / measurement.reference_cbf
        rcbf = _capped(Volume(maps[Input.CBF].values() * np.float32(factor), maps[Input.CBF].affine), Channel.RCBF)
        source = Source(Input.CBF, factor) if Input.CBF in as_sent else Source(computed=rcbf)
        study.aligned[Channel.RCBF] = AlignedVolume(rcbf, frame, source)
    misplaced = study.has("perfusion-misplaced")  # the part of the tissue outside of the brain would be missing
    summary = PerfusionSummary() if misplaced else map_check.withhold(measurement.summary, found.blanked)
    lesions = {"core": (summary.core_ml, measurement.core), "tmax6": (summary.tmax6_ml, measurement.delayed)}
    lead = maps[Input.TMAX] if Input.TMAX in maps else maps[Input.CBF]
    study.lesions = {
        name: Volume(mask.astype(np.uint8), lead.affine)
        for name, (volume_ml, mask) in lesions.items()
        if volume_ml and mask is not None
    }
    return summary


def _needs_series(volumes: Mapping[Input, Volume]) -> bool:
    """Whether maps are computed from a series, because Tmax or CBF was not sent."""
    return Input.CTP in volumes and not {Input.TMAX, Input.CBF} <= volumes.keys()


def _plainest_ct(study: AlignedStudy) -> map_check.PlacedVolume:
    """The NCCT, or else the CTA, in MNI space."""
    aligned = study.aligned[Channel.NCCT if Channel.NCCT in study.aligned else Channel.CTA]
    return map_check.PlacedVolume(aligned.volume, aligned.mni_from_world)


def _capped(volume: Volume, channel: Channel) -> Volume:
    return Volume(np.clip(volume.data, 0, _MAX_VALUE[channel]), volume.affine)


def _frame_of(study: AlignedStudy, maps: Mapping[Input, Volume]) -> np.ndarray:
    """The frame (MNI from world) in which the largest share of the maps' tissue lies in the brain."""
    for name, volume in maps.items():
        if max(AlignedVolume(volume, frame).coverage for frame in _frames(study)) < _MIN_OVERLAP:
            raise GeometryMismatch(
                f"the {name} map does not lie in the head that the CT shows: send it with the scanner's coordinates, "
                "or resampled onto the CT",
                errors=[FieldError(name, "lies outside the head")],
            )
    lead = maps[Input.TMAX] if Input.TMAX in maps else maps[Input.CBF]
    shares = [_share_in_brain(AlignedVolume(lead, frame)) for frame in _frames(study)]
    best = int(np.argmax(np.array(shares) - 0.05 * np.arange(len(shares))))
    frame = _frames(study)[best]
    if shares[best] < _MIN_IN_BRAIN:
        study.flag("perfusion-misplaced", "perfusion: much of the maps' tissue lies outside the brain of the CT")
    else:
        heads = [study.aligned[name].coarse for name in (Channel.CTA, Channel.NCCT) if name in study.aligned]
        study.flags += study_check.check_maps(maps, heads[best])
    if AlignedVolume(lead, frame).coverage < _MIN_MAP_COVERAGE:
        study.flag("coverage", "perfusion: the maps cover less than half of the brain; volumes are of that part only")
    return frame


def _share_in_brain(aligned: AlignedVolume) -> float:
    """Share of a map's tissue (values above 0) that lies within 5 mm of the brain."""
    volume = aligned.volume
    tissue = volume.data > 0
    depth = brain_mask.distance(volume.affine, volume.shape, aligned.mni_from_world)
    return float(np.mean(depth[tissue] < 5)) if tissue.any() else 0.0
