"""Fields and volumes that a version does not predict from, and a mask unlike those that it was trained on.

Design notes:
- A logistic version reads no voxel, and a network without fusion reads no record.
- A map is read if a channel shows it, or if a variable of the version is a number that the maps give.
- ``occlusion_side`` is read for the explanation, and ``perfusion.software`` describes other fields. Neither is listed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from app.inference.clinical_encoder import PERFUSION
from app.network.architecture import Fusion
from app.registry.manifest import Manifest
from app.sdk.clinical import SECOND_UNITS, ClinicalRecord
from app.sdk.types import Channel, Flag, Input

NOT_USED = "not-used"
ALWAYS_READ = frozenset({"occlusion_side", "perfusion.software"})
MAPS = frozenset({Input.TMAX, Input.CBF})
NUMBER_MAPS = {"core_ml": MAPS, "mismatch_ml": MAPS, "mismatch_ratio": MAPS, "cbv_index": MAPS | {Input.CBV}}
"""Maps that a number of the perfusion is computed from; every other number needs Tmax alone."""


@dataclass(frozen=True)
class ReadInputs:
    """What a version predicts from: image channels, and variables of the clinical record."""

    channels: frozenset[Channel]
    variables: frozenset[str]

    @classmethod
    def of(cls, manifest: Manifest) -> ReadInputs:
        """What the version of ``manifest`` reads."""
        logistic = manifest.kind == "logistic"
        names = frozenset(variable.name for variable in manifest.clinical.variables)
        return cls(
            channels=frozenset() if logistic else frozenset(channel.name for channel in manifest.channels),
            variables=names if logistic or manifest.architecture.fusion is not Fusion.NONE else frozenset(),
        )

    @property
    def volumes(self) -> frozenset[Input]:
        """Every volume that is read in some study, because it is needed or because it replaces one that is missing."""
        read = {Input(name) for name in (Channel.NCCT, Channel.CTA, Channel.VESSELS) if name in self.channels}
        if Channel.VESSELS in self.channels:
            read |= {Input.CTA, Input.NCCT}
        wanted = {Input.TMAX} if Channel.TMAX in self.channels else set()
        wanted |= {Input.CBF} if Channel.RCBF in self.channels else set()
        for name in self.variables:
            if name.startswith(PERFUSION):
                wanted |= NUMBER_MAPS.get(name.removeprefix(PERFUSION), {Input.TMAX})
        return frozenset(read | wanted | ({Input.CTP} if wanted else set()))

    @property
    def fields(self) -> frozenset[str]:
        """Dotted names of the fields of the record that are read, for the prediction or for its explanation."""
        software = {"perfusion.software"} if any(name.startswith(PERFUSION) for name in self.variables) else set()
        return self.variables | {"occlusion_side"} | software

    def unread(self, volumes: Collection[Input], record: ClinicalRecord) -> tuple[str, ...]:
        """Names of the sent volumes and fields that are not read, the volumes first."""
        read = self._read_volumes(frozenset(volumes), record)
        fields = (name for name in given_fields(record) if name not in self.variables | ALWAYS_READ)
        return (*(volume.value for volume in Input if volume in volumes and volume not in read), *fields)

    def _read_volumes(self, sent: frozenset[Input], record: ClinicalRecord) -> frozenset[Input]:
        read = {Input(name) for name in (Channel.NCCT, Channel.CTA, Channel.VESSELS) if name in self.channels}
        if Channel.VESSELS in self.channels and Input.VESSELS not in sent and Input.CTA in sent:
            read |= {Input.CTA, Input.NCCT}  # the mask comes from the CTA, without the bone that the NCCT shows
        wanted = {Input.TMAX} if Channel.TMAX in self.channels else set()
        wanted |= {Input.CBF} if Channel.RCBF in self.channels else set()
        for name in self.variables:
            if name.startswith(PERFUSION) and record.value(name) is None:
                wanted |= NUMBER_MAPS.get(name.removeprefix(PERFUSION), {Input.TMAX})
        if wanted and not sent >= MAPS:  # CTP replaces the maps that were not sent
            read.add(Input.CTP)
        return frozenset(read | wanted)


def given_fields(record: ClinicalRecord) -> Iterator[str]:
    """Dotted names of the fields that a record gives; a field in a second unit has the name of the first."""
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, BaseModel):
            yield from (f"{name}.{part}" for part in type(value).model_fields if getattr(value, part) is not None)
        elif isinstance(value, dict):  # own variables
            yield from (f"{name}.{part}" for part in value)
        elif value is not None:
            yield SECOND_UNITS.get(name, name)


def flags(manifest: Manifest, volumes: Collection[Input], record: ClinicalRecord) -> list[Flag]:
    """The flag ``not-used`` with the names of everything that was sent and is not read; empty if there is nothing."""
    names = ReadInputs.of(manifest).unread(volumes, record)
    if not names:
        return []
    return [Flag(code=NOT_USED, detail=f"{', '.join(names)}: given, but this version does not predict from it")]


def mask_flags(manifest: Manifest, volumes: Collection[Input]) -> list[Flag]:
    """The flag ``vessels-sent`` if the version reads a mask that was sent, and is known to have learned from others.

    The masks of phantoms are drawn as rlvo would compute them. A cohort of patients may have masks of its own.
    """
    if (
        Input.VESSELS not in volumes
        or not manifest.training.synthetic
        or Input.VESSELS not in ReadInputs.of(manifest).volumes
    ):
        return []
    detail = "vessels: the mask was sent; this version was trained on masks that rlvo computed from the cta"
    return [Flag(code="vessels-sent", detail=detail)]
