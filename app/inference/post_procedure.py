"""Names of what is known only after the puncture of the artery. None of it can be an input.

Design notes:
- A name of the record is compared with ``POST_PROCEDURE_FIELDS`` as a whole.
- A site chooses the names of its own variables, so ``is_near`` also finds variants by words and patterns:
  ``number_of_passes``, ``tici_final``, ``mrs_day_90``.
- Names and labels can be in other languages of Europe, so the words and stems of the commonest ones are listed. No list
  is complete: whether a value is known before the puncture stays the responsibility of the site.
- A history is known before the puncture: ``prior_angioplasty``. What exists only in this thrombectomy has no history.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# As an input, each would reveal the outcome to the model.
_POST_PROCEDURE = """
    passes first_pass_effect device devices technique stent_retriever aspiration puncture_time time_to_puncture
    onset_to_puncture door_to_puncture time_of_intervention recanalization_time recanalisation_time door_to_groin
    onset_to_groin door_to_recanalization onset_to_recanalization door_to_first_series procedure_time anesthesia
    anaesthesia operator_notes complications mtici etici tici mtici_postinterventional tici_postinterventional
    final_stenosis_percent residual_stenosis rescue_treatment rescue_stenting angioplasty tirofiban gp_iib_iiia
    reocclusion rlvo refractory unsuccessful_reperfusion follow_up followup_nihss nihss_24h discharge_nihss
    nihss_discharge mrs_24h mrs_discharge mrs_90 mrs_3_months mortality death infarct_volume lesion_volume
    hemorrhage haemorrhage sich dwi length_of_stay
"""
POST_PROCEDURE_FIELDS: Final = frozenset(_POST_PROCEDURE.split())

_WHOLE_ONLY: Final = frozenset({"dwi"})  # a scanner can make it before the puncture: ``dwi_aspects``
# Words that are in no field above and that no pattern below finds.
_OTHER_WORDS = """
    stent stents stenting stentriever rescue evt haemorrhagic hemorrhagic died dead survival attempt attempts retrievals
    balloon ballooning abciximab eptifibatide cangrelor fluoroscopy craniectomy hemicraniectomy dsa
    pases pasadas maniobras puncion rescate exitus muerte fallecido fallecimiento mortalidad seguimiento desenlace
    passagen manover manoever leistenpunktion punktion verstorben tod entlassung mortalitaet mortalitat nachsorge
    reststenose endstenose passages ponction deces sortie suivi mortalite passaggi puntura decesso dimissione morte
    mortalita passagens puncao obito desfecho mortalidade
"""
_WORDS: Final = frozenset(_OTHER_WORDS.split())
_NO_HISTORY: Final = re.compile(
    r"(?:^|_)(?:pass(?:es)?(?:count|number)?|first_pass_effect|groin|puncture|final|residual|discharge|follow_?up|outcome|"
    r"[a-z]?tici[a-z0-9]*|[a-z]*tici|rlvo[a-z0-9]*|[a-z]*rlvo|refractory|"
    r"(?:intra|peri|post)(?:procedural|interventional|operative)|numberofpasses)(?:_|$)"
)
_STEMS: Final = re.compile(r"(?:^|_)(?:recan|rekan|ricanal|reperfus|riperfus|th?rombe[ck]t|stentretriev|post_?evt)")
_AFTER: Final = re.compile(
    r"(?:^|_)(?:post|after)_(?:procedure|intervention|treatment|operation|op|angiography)(?:_|$)"
)
_LATER: Final = re.compile(
    r"(?:^|_)(?:(?:24|36|48|72)_?h(?:rs?|ours?)?|day_?\d+|d(?:1|2|3|5|7|14|28|30|90)|mrs90|mrs\d+m|\d+_?d(?:ays?)?|\d+_?m(?:onths?)?|month_?\d+)(?:_|$)"
)
_SCALE: Final = re.compile(
    r"(?:^|_)(?:mrs|nihss|gose?|barthel)_(?:\w+_)?(?:(?:24|48|72|90)|(?:three|six|twelve)_months?|alta)(?:_|$)"
)
_PROCEDURE: Final = re.compile(
    r"(?:^|_)(?:n(?:um|r|b)?passes|(?:procedure|procedural)_(?:duration|length|minutes)|(?:icu|hospital)_(?:days?|stay)|"
    r"(?:clot|thrombus)_(?:histology|pathology|composition)|last_recanali[sz]ation)(?:_|$)"
)
_HISTORY: Final = re.compile(r"(?:^|_)(?:prior|previous|history|past|last|before|prestroke|pre_stroke)(?:_|$)")
_SCORED: Final = re.compile(r"(?:^|_)(?:mrs|nihss|gose?|barthel)(?:\d+m)?(?:_|$)")
"""A score that is dated after the puncture is no history."""


def is_listed(name: str) -> bool:
    """Whether the last part of a dotted name is in ``POST_PROCEDURE_FIELDS``."""
    return name.rpartition(".")[2].lower().replace("-", "_") in POST_PROCEDURE_FIELDS


def is_near(name: str) -> bool:
    """Whether a name that a site chose is that of a field that is known only after the puncture, or a variant of it.

    Args:
        name: Name or label; case, accents, spaces and hyphens do not matter.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(c))
    words = re.sub(r"[^a-z0-9]+", "_", plain.casefold()).strip("_")
    if words in POST_PROCEDURE_FIELDS or any(pattern.search(words) for pattern in (_NO_HISTORY, _SCALE, _PROCEDURE)):
        return True
    if _SCORED.search(words) and _LATER.search(words):
        return True
    if _HISTORY.search(words):
        return False
    parts = any(f"_{field}_" in f"_{words}_" for field in POST_PROCEDURE_FIELDS - _WHOLE_ONLY)
    return (
        parts
        or not _WORDS.isdisjoint(words.split("_"))
        or any(pattern.search(words) for pattern in (_STEMS, _AFTER, _LATER))
    )
