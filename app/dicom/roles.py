"""The role of each series: rules on the headers, each with a name and a reason, and the best series of each role.

Design notes:
- Rules are asked in one order; the first one that fits decides. What a picture cannot be is asked first.
- The description of a series is read before its protocol name, which is often the same for a whole examination.
- The order of acquisition corrects what words say (`app.dicom.role_order`).
- A role that no word supports is doubtful: the answer then carries the flag ``series-role-doubtful``.
- Reasons are texts of this module. No text of a header is in them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from app.dicom.errors import refused
from app.dicom.role_choice import Choice, agent_named, other
from app.dicom.role_order import in_order_of_time
from app.dicom.stacks import Stack
from app.dicom.time_series import joined
from app.dicom.words import THRESHOLD, names
from app.sdk.series import SeriesRole

__all__ = ["Choice", "choose", "judge"]

LEAST_TIMES = 8  # time points of a perfusion series
LEAST_SLICES, LEAST_EXTENT_MM = 8, 40.0
WHOLE_HEAD_MM = 110.0
THIN_MM = 1.6
_MAPS = (SeriesRole.TMAX, SeriesRole.CBF, SeriesRole.CBV, SeriesRole.MTT)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_HARD_SIEMENS = re.compile(r"^[A-Z][a-z]?(\d{2})")
_HARD_CANON = re.compile(r"^FC(3\d|5\d|8\d)")
_HARD_PHILIPS = ("D", "E", "YA", "YB", "YC", "YD", "YE", "L")
_ELSEWHERE = ("CHEST", "THORAX", "ABDOMEN", "PELVIS", "SPINE", "HEART", "LUNG", "KNEE", "SHOULDER", "HIP", "EXTREMITY")
_HEAD = ("HEAD", "BRAIN", "SKULL", "NECK", "CEREBRAL", "CAROTID", "CIRCLE OF WILLIS", "KOPF", "TETE", "CABEZA")


def choose(stacks: Sequence[Stack], overrides: Mapping[str, SeriesRole] | None = None) -> list[Choice]:
    """Judge all stacks of a study and select the one to use for each role.

    Args:
        stacks: the stacks of the study.
        overrides: roles that the caller states, by Series Instance UID or series number.

    Returns:
        One choice for each stack; time points in series of their own are joined to one stack.

    Raises:
        InvalidDicom: an override names no series, or more than one.
    """
    stated = _stated(stacks, overrides or {})
    choices = [judge(stack) for stack in joined(stacks, LEAST_TIMES)]
    choices = in_order_of_time(choices)
    choices = [_overridden(choice, stated) for choice in choices]
    best: dict[SeriesRole, Choice] = {}
    favoured = _map_family(choices)
    for choice in choices:
        if choice.role is SeriesRole.OTHER or not choice.stack.placed:
            continue
        present = best.get(choice.role)
        if present is None or _rank(choice, favoured) > _rank(present, favoured):
            best[choice.role] = choice
    return [replace(choice, used=choice is best.get(choice.role)) for choice in choices]


def judge(stack: Stack) -> Choice:
    """Apply the rules to one stack."""
    for rule in _RULES:
        if (found := rule(stack)) is not None:
            return found
    return _contrast_or_not(stack)


def _not_a_picture(stack: Stack) -> Choice | None:
    """Objects, colours, other machines, and pictures without a place."""
    words = names(stack.facts.description)
    if not stack.frames:
        rule = "dose-report" if "dose" in words else "not-an-image"
        return other(stack, rule, "The objects of the series are no images.")
    if stack.facts.colour:
        return other(stack, "colour-picture", "A colour picture has no measured values.")
    if stack.facts.modality not in ("CT", "OT", "SC"):
        return other(stack, "other-modality", "The series is not of a CT.")
    if "LOCALIZER" in stack.types or "localizer" in words:
        return other(stack, "localizer", "The series is a localizer.")
    if "dose" in words:
        return other(stack, "dose-report", "The series is a report of dose or protocol.")
    if not stack.placed:
        capture = stack.facts.sop_class.startswith(_SECONDARY_CAPTURE)
        rule = "secondary-capture" if capture else "no-position"
        return other(stack, rule, "The slices do not say where they lie in the patient.")
    return None


def _time_series(stack: Stack) -> Choice | None:
    words = names(stack.facts.description)
    if words & {"tmax", "cbf", "cbv", "mtt", "other map"}:
        return None
    if "bolus" in words and stack.positions <= LEAST_SLICES:
        return other(stack, "bolus-tracking", "Few positions watch the arrival of the contrast agent.")
    if stack.positions <= 2 and stack.times >= 2 and (stack.positions == 1 or stack.times < LEAST_TIMES):
        return other(stack, "bolus-tracking", "One or two positions are repeated over time.")
    if stack.times >= LEAST_TIMES and stack.positions >= 2 and stack.axial:
        return Choice(stack, SeriesRole.CTP, "time-series", "The slices of each position are repeated over time.")
    return None


def _perfusion_map(stack: Stack) -> Choice | None:
    text = stack.facts.description
    words = names(text) | names(" ".join(stack.types))
    found = [role for role in _MAPS if role.value in words]
    if "other map" in words and not found:
        return other(stack, "other-map", "The series is a map that no model reads.")
    if not found:
        return None
    if THRESHOLD.search(re.sub(r"\[[^\]]*\]", "", text)):
        return other(stack, "threshold-picture", "The series shows a threshold of a map, not its values.")
    if "projection" in words or "processed" in words or "other map" in words or len(found) > 1:
        return other(stack, "map-picture", "The series shows a map with other things, or several maps.")
    if stack.positions < 2 or not stack.axial:
        return other(stack, "map-picture", "The map is a single slice, or not axial.")
    reason = f"The description or image type names {found[0].value.upper()}, and the slices have one value per pixel."
    return Choice(stack, found[0], "words-map", reason)


def _reformatted(stack: Stack) -> Choice | None:
    words = names(stack.facts.description)
    types = stack.types
    if types & {"MIP", "PROJECTION IMAGE", "VOLUME RENDERING"} or "projection" in words:
        return other(stack, "projection", "The series is a projection (MIP) or a rendering of a volume.")
    if not stack.axial:
        return other(stack, "not-axial", "The slices are coronal, sagittal or oblique.")
    if "vessel mask" in words:
        return Choice(stack, SeriesRole.VESSELS, "words-mask", "The description names a vessel mask.")
    if "processed" in words:
        return other(stack, "processed", "The series was computed from others: subtraction, one energy, or a summary.")
    if stack.facts.sop_class.startswith(_SECONDARY_CAPTURE):
        return other(stack, "secondary-capture", "The series is a capture of a screen or of a computed picture.")
    return None


def _part_of_body(stack: Stack) -> Choice | None:
    words, part = names(stack.facts.description), stack.facts.body_part
    if stack.positions < LEAST_SLICES or stack.extent_mm < LEAST_EXTENT_MM:
        return other(stack, "too-few-slices", "The series has too few slices for a head.")
    if words & {"head", "cta"}:
        return other(stack, "other-region", "The series shows a part of the skull.") if _skull_part(words) else None
    if "elsewhere" in words or (any(each in part for each in _ELSEWHERE) and not any(each in part for each in _HEAD)):
        return other(stack, "other-region", "The series shows another part of the body.")
    return None


def _skull_part(words: frozenset[str]) -> bool:
    return "elsewhere" in words and "cta" not in words


def _phase(stack: Stack) -> Choice | None:
    words = names(stack.facts.description)
    if "perfusion" in words and "cta" not in words:
        return other(stack, "perfusion-part", "The series belongs to a perfusion study, but has no time series.")
    if "venous" in words:
        return other(stack, "venous-phase", "The description names the veins.")
    if "late" in words:
        return other(stack, "late-phase", "The description names a late phase.")
    return None


def _contrast_or_not(stack: Stack) -> Choice:
    """CTA, NCCT, or a head after contrast, by the words of the description, the protocol, and the contrast agent."""
    text = names(stack.facts.description)
    agent = agent_named(stack)
    thin = stack.distance_mm <= THIN_MM or (stack.frames[0].thickness or 9.0) <= THIN_MM
    for place, words in (("description", text), ("protocol", names(stack.facts.protocol))):
        without, cta = "without contrast" in words, "cta" in words
        if cta and not without:
            if place == "protocol" and not (agent and thin):
                continue
            return Choice(
                stack, SeriesRole.CTA, "words-cta", f"The {place} names an angiography; the slices are axial."
            )
        if without and not cta and "after contrast" not in words:
            if place == "protocol" and agent:
                continue
            return Choice(stack, SeriesRole.NCCT, "words-ncct", f"The {place} says: without contrast agent.")
        if "after contrast" in words and place == "description":
            return other(stack, "after-contrast", "The description says: with contrast agent.")
    if agent:
        if thin and stack.extent_mm >= WHOLE_HEAD_MM:
            reason = "The header names a contrast agent, and the slices are thin."
            return Choice(stack, SeriesRole.CTA, "contrast-agent", reason, certain=False)
        return other(stack, "after-contrast", "The header names a contrast agent.")
    if "DERIVED" in stack.types and not text & {"head", "without contrast"}:
        return other(stack, "derived-unnamed", "The series was computed from others, and no word says what it shows.")
    head = "head" in text or any(each in stack.facts.body_part for each in _HEAD)
    reason = "The header names no contrast agent" + ("; the head is named." if head else ".")
    return Choice(stack, SeriesRole.NCCT, "no-contrast-agent", reason, certain=head)


_RULES: tuple[Callable[[Stack], Choice | None], ...] = (
    _not_a_picture,
    _time_series,
    _perfusion_map,
    _reformatted,
    _part_of_body,
    _phase,
)


def _hard_kernel(stack: Stack) -> bool:
    kernel = stack.frames[0].kernel.strip().upper()
    siemens = _HARD_SIEMENS.match(stack.frames[0].kernel.strip())
    if siemens and not kernel.startswith("FC"):
        return int(siemens[1]) >= 50
    named = {"hard kernel"} & (names(kernel.lower()) | names(stack.facts.description))
    return bool(named) or bool(_HARD_CANON.match(kernel)) or kernel in _HARD_PHILIPS


def _rank(choice: Choice, favoured: tuple[object, ...] | None) -> tuple[object, ...]:
    """Order of the candidates of one role; the largest is used."""
    stack = choice.stack
    reformatted = bool(stack.types & {"MPR", "REFORMATTED"}) or "reformatted" in names(stack.facts.description)
    order = -(stack.facts.number if stack.facts.number is not None else 10**9)
    if choice.rule == "stated":
        return (2, stack.positions, order)
    if choice.role in _MAPS:
        return (1, _family(stack) == favoured, stack.positions, order)
    if choice.role is SeriesRole.CTP:
        return (1, not reformatted, stack.positions * stack.times, order)
    return (
        1,
        stack.extent_mm >= WHOLE_HEAD_MM,
        not _hard_kernel(stack),
        not reformatted and "DERIVED" not in stack.types,
        choice.certain,
        -round(max(stack.distance_mm, stack.frames[0].thickness or 0.0), 1),
        -round(stack.distance_mm, 1),
        stack.positions,
        order,
    )


def _family(stack: Stack) -> tuple[object, ...]:
    """What the maps of one computation share."""
    frame = stack.frames[0]
    return (stack.facts.manufacturer, frame.rows, frame.columns, frame.spacing, stack.positions)


def _map_family(choices: Sequence[Choice]) -> tuple[object, ...] | None:
    """The family of maps with most roles: maps of two programs are not mixed."""
    pairs = {(_family(choice.stack), choice.role) for choice in choices if choice.role in _MAPS}
    counts = Counter(family for family, _ in pairs)
    return counts.most_common(1)[0][0] if counts else None


def _stated(stacks: Sequence[Stack], overrides: Mapping[str, SeriesRole]) -> dict[str, SeriesRole]:
    stated = {}
    for name, role in overrides.items():
        uids = {stack.facts.uid for stack in stacks if name in (stack.facts.uid, str(stack.facts.number))}
        if len(uids) != 1:
            detail = "names no series of the study" if not uids else "names several series: use the Series Instance UID"
            raise refused(f"An entry of series_roles {detail}.", field="series_roles")
        stated[uids.pop()] = role
    return stated


def _overridden(choice: Choice, stated: Mapping[str, SeriesRole]) -> Choice:
    role = stated.get(choice.stack.facts.uid)
    if role is None:
        return choice
    return Choice(choice.stack, role, "stated", "The caller states the role.")
