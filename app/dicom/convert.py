"""From the files of a study to the volumes of a prediction: the entry of this package.

Design notes:
- Headers are read once for all files, pixels only for the series that are used.
- The written volumes hold no text and no identifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from app.dicom import assemble
from app.dicom.addressing import read_address
from app.dicom.conversion import Conversion
from app.dicom.errors import DEFAULT, DicomLimits, Unreadable, mismatch, refused, too_large
from app.dicom.files import Files, open_files
from app.dicom.frames import Instance
from app.dicom.one_patient import check_one_patient
from app.dicom.prepared import Prepared
from app.dicom.roles import Choice, choose
from app.dicom.stacks import make_stacks
from app.imaging.io import nifti
from app.sdk.series import SeriesRole
from app.sdk.types import Flag, Input

__all__ = ["convert", "read_choices"]

_FIELD_RULES = ("localizer", "bolus-tracking", "colour-picture", "projection", "not-an-image", "no-position")


def convert(
    source: Path,
    target: Path,
    *,
    overrides: Mapping[str, SeriesRole] | None = None,
    only: Input | None = None,
    limits: DicomLimits = DEFAULT,
    addressed: bool = False,
    prepared: Prepared | None = None,
) -> Conversion:
    """Convert the series of a study that a prediction can use.

    Args:
        source: a folder, or a ZIP archive.
        target: folder for the volumes.
        overrides: roles that the caller states, by Series Instance UID or series number.
        only: the input that the archive was sent as; its best series gets this role.
        limits: largest sizes.
        addressed: also read the return address.
        prepared: what was read of the files before, with these limits; what is used of it is forgotten.

    Returns:
        The volumes, and what each series was taken for.

    Raises:
        InvalidDicom: the study has no usable series, or a used series is incomplete.
        PatientMismatch: the files belong to several patients or studies.
        DecompressedTooLarge: the study is larger than the limits.
    """
    files = open_files(source, limits)
    prepared = prepared or Prepared(limits)
    instances, flags = _read_instances(files, limits, prepared)
    choices = choose(make_stacks(instances), overrides)
    if only is not None:
        choices = _only(choices, only)
    pixels = assemble.Pixels(files, limits, prepared, {each.file: each.digest for each in instances})
    volumes = {}
    for choice in choices:
        if not choice.used:
            continue
        name = Input(choice.role.value)
        kind = assemble.series if name is Input.CTP else assemble.single_volume
        volume = kind(choice.stack, pixels, name.value)
        volumes[name] = target / f"{name.value}.nii"
        nifti.write(volumes[name], volume.data, volume.affine, time_step_s=volume.time_step_s)
        flags += [*volume.flags, *_doubts(choice, name)]
    if not volumes:
        raise refused(_nothing_to_use(choices))
    address = read_address(choices, instances, files, limits) if addressed else None
    return Conversion(
        volumes,
        tuple(choice.summary() for choice in choices),
        tuple(flags),
        address,
        series_uids=tuple(choice.stack.series or (choice.stack.facts.uid,) for choice in choices),
        study_uid=next((each.study_uid for each in instances if each.study_uid), ""),
        patient={kind: value for each in reversed(instances) for kind, value in each.patient.items() if value},
    )


def read_choices(
    files: Files, overrides: Mapping[str, SeriesRole] | None = None, limits: DicomLimits = DEFAULT
) -> tuple[list[Choice], list[Flag]]:
    """Read all headers of a study and choose the series.

    Args:
        files: the files of the study.
        overrides: roles that the caller states.
        limits: largest sizes.

    Returns:
        One choice for each series or part of it, and flags of the study.

    Raises:
        InvalidDicom: there is no DICOM file, or two files contradict each other.
        PatientMismatch: the files belong to several patients or studies.
        DecompressedTooLarge: the study is larger than the limits.
    """
    instances, flags = _read_instances(files, limits, Prepared(limits))
    return choose(make_stacks(instances), overrides), flags


def _read_instances(files: Files, limits: DicomLimits, prepared: Prepared) -> tuple[list[Instance], list[Flag]]:
    instances: list[Instance] = []
    unreadable: Counter[str] = Counter()
    size = 0
    for number in range(len(files)):
        try:
            data = files.read(number)
            size += len(data)
            if size > limits.max_study_bytes:
                raise too_large(f"The study inflates to more than {limits.max_study_bytes} bytes, the limit.")
            instances.append(prepared.instance(data, number))
        except Unreadable as error:
            unreadable[str(error)] += 1
    if not instances:
        raise refused(_no_instances(unreadable))
    _check_one_study(instances)
    flags = []
    damaged = sum(count for reason, count in unreadable.items() if reason != "is not DICOM")
    if damaged:
        detail = f"{damaged} DICOM files of the study are damaged or incomplete, and were kept out"
        flags.append(Flag(code="files-kept-out", detail=detail))
    return instances, flags


def _no_instances(unreadable: Counter[str]) -> str:
    if not unreadable:
        return "The study is empty: send the DICOM files of one study."
    reasons = "; ".join(f"{count}: the file {reason}" for reason, count in unreadable.most_common(3))
    return f"The study has no DICOM file that can be read ({reasons}). Send the DICOM files of one study."


def _check_one_study(instances: Sequence[Instance]) -> None:
    check_one_patient((instance.patient for instance in instances), "files")
    studies = {instance.study_uid for instance in instances} - {""}
    if len(studies) > 1:
        raise mismatch(f"The files belong to {len(studies)} studies by their Study Instance UID. Send one study.")


def _only(choices: Sequence[Choice], name: Input) -> list[Choice]:
    """The choices with at most one used: the series of this role, or the only series that can have it."""
    role = SeriesRole(name.value)
    fitting = [choice for choice in choices if choice.used and choice.role is role]
    if not fitting:
        possible = [each for each in choices if each.stack.placed and each.rule not in _FIELD_RULES]
        if len(possible) != 1:
            count = f"{len(possible)} series" if possible else "no series"
            detail = f"{name.value}: the archive has {count} that could be meant, and no rule decides."
            raise refused(f"{detail} Send one series, or the study as the part study with series_roles.", name.value)
        fitting = possible
    chosen = fitting[0]
    stated = Choice(chosen.stack, role, "field", "The archive was sent in the field of this role.", used=True)
    changed = stated if chosen.role is not role else chosen
    return [changed if each is chosen else replace(each, used=False) for each in choices]


def _doubts(choice: Choice, name: Input) -> list[Flag]:
    flags = []
    if not choice.certain:
        detail = f"{name.value}: the headers of the series do not say clearly what it is"
        flags.append(Flag(code="series-role-doubtful", detail=detail))
    if choice.stack.facts.lossy:
        flags.append(Flag(code="lossy-compression", detail=f"{name.value}: the series was compressed with loss"))
    return flags


def _nothing_to_use(choices: Sequence[Choice]) -> str:
    rules = Counter(choice.rule for choice in choices)
    shown = ", ".join(f"{count} {rule}" for rule, count in rules.most_common(8))
    return (
        f"The study has no series that a prediction can use ({shown}). Send a head CT, a CTA or perfusion maps, or "
        "state the role of a series with series_roles."
    )
