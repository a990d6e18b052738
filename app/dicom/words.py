"""Words by which series descriptions name an image, in English, German, French and Spanish, and codes of vendors.

Design notes:
- A text is compared in lower case without accents; signs become spaces, and letters are parted from digits.
- ``c+``, ``c/c``, ``c-`` and ``s/c`` (with and without contrast agent) become the words ``cplus`` and ``cminus``.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

__all__ = ["THRESHOLD", "WORDS", "names", "plain"]

_CONTRAST_SIGN: Final = (
    (re.compile(r"\b(?:ce?|iv|km)\s?\+|\bc/c\b|\bapc\b"), " cplus "),
    (re.compile(r"\b(?:ce?|iv|km)\s?-(?![a-z0-9])|\bs/c\b|\bspc\b"), " cminus "),
)
_CASE_CHANGE: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_PARTS: Final = re.compile(r"(?<=[a-z])(?=[0-9])|(?<=[0-9])(?=[a-z])")
_SIGNS: Final = re.compile(r"[^a-z0-9]+")
THRESHOLD: Final = re.compile(r"[<>%]")
"""Signs of a picture that shows a threshold of a map, such as ``CBF<30%``."""

_SOURCES: Final = {
    "localizer": r"scanogram\w*|topograf\w*|"
    r"scout|topogram|locali[sz]er|surview|scano|ubersicht|uebersicht|pilot|reperage|localizador|"
    r"planning",
    "dose": r"dosis(blatt|blad)|dosimetr\w*|"
    r"(?<!i )dose|dosis|dosi(s|en)?protokoll|patient protocol|exam(en)? protocol|protocol page",
    "bolus": r"bolus|tracking|tracker|monitor\w*|smart ?prep|sure ?start|timing|test ?inj\w*|premon\w*|locator|"
    r"care ?bolus|seguimiento|rastreo|suivi|kontrollschicht|test scan",
    "projection": r"mip|mips|minip|vr|vrt|3 ?d|volume render\w*|ssd|rotation|rotacion|kurv\w*|curved",
    "reformatted": r"mpr|reformat\w*|reform|cor|coronale?|coronaux|koronar|kor|sag|sagittale?|sagital|obl\w*",
    "processed": r"risultati|results|"
    r"vnc|virtual non|subtr\w*|sustrac\w*|bone ?remov\w*|bonesub\w*|ohne knochen|sin hueso|"
    r"sans os|iod\w*|"
    r"mono ?energ\w*|mono ?[0-9]+|kev|dsa|hidden|overlay|fusion|summary|resumen|zusammenfassung|"
    r"synthese|report|"
    r"informe|bericht|snapshot|screen\w*|captur\w*",
    "tmax": r"t?tmax|tmaxs|tmx|t ?max\w*|time to max\w*|zeit bis (zum )?max\w*|temps (au|jusqu au|a) max\w*|"
    r"temps max\w*|"
    r"tiempo (al?|hasta (el )?)? ?max\w*",
    "cbf": r"bld ?fl\w*|fluxo sanguineo|flusso (ematico|sanguigno)|bloedstroom|"
    r"r?cbf(map\w*|karte)?|(cerebral )?blood ?flow|blutfluss|debit sanguin|flujo sanguineo|"
    r"flux sanguin|fsc|dsc",
    "cbv": r"bld ?vol\w*|volume (ematico|sanguigno|sanguineo)|bloedvol\w*|"
    r"r?cbv(map\w*|karte)?|(cerebral )?blood ?vol\w*|blutvol\w*|volume sanguin|volumen sanguineo|vsc",
    "mtt": r"mean tt|tempo (medio )?(di|de) transito|transittijd|t(ps)? transit|"
    r"r?mtt(map\w*|karte)?|(mean )?transit\w*|mittl(ere)? (durchgangs|transit)\w*|"
    r"temps (de )?transit|tiempo (de )?transito|ttm",
    "other map": r"time to pk|tempo (al|di|ate o) pic\w*|zeit bis (zum )?gipfel|"
    r"ttp|ttd|tts|time to (peak|start|drain)|zeit bis (zum )?peak|temps au pic|"
    r"tiempo (al|hasta el) pico|"
    r"perme\w*|penumbra|mismatch|core|kernzone|prolonged|tissue (class\w*|at risk)|aif|vof|delay map|psvr",
    "vessel mask": r"vessels? ?(mask|seg\w*)|gefass?(maske|segm\w*)|gefaess(maske|segm\w*)|"
    r"gefa(e?ss?|sz) ?maske|"
    r"masque (vasculaire|vaisseaux)|mascara (vascular|vasos)",
    "perfusion": r"perfusie|doorbloeding|"
    r"ctp|perf|perfusion|perfusao|perfu\w*|vpct|pct|neuro ?pct|dyn\w*|4 ?d|hirnperf\w*|shuttle|"
    r"toggl\w*",
    "cta": r"vasi|vaten|halsvaten|hersenvaten|epiaort\w*|"
    r"\w*cta\w*|angio\w*|\w+angio\w*|willis|cow|carot\w*|karot\w*|art|arter\w*|arch to vertex|tsa|"
    r"troncs?|supra ?aort\w*|gefass\w*|gefaess\w*|halsgef\w*|vaisseaux|vasos|circulo|polygone|poligono",
    "late": r"verzog\w*|verzoeg\w*|laat|ritard\w*|(2 ?nd|second|zweit\w*) (pass|run|phase|durchgang|lauf)|"
    r"late|spat\w*|spaet\w*|tardi\w*|delay\w*|retard\w*|ph(ase)? ?[23]|fase ?[23]|"
    r"[23] ?(nd|rd|eme|e)? ?phase|"
    r"p ?[23]|equilib\w*|nachlauf|nachscan|angio\w* (2 ?nd|second)|second phase|third phase|retrasad\w*",
    "venous": r"veneus\w*|"
    r"ven|venous|venos\w*|veneux|veineu\w*|venoes\w*|ctv|venogr\w*|phlebo\w*|flebo\w*",
    "after contrast": r"m km|(met|na|com|pos|con|dopo) (mdc|mezzo di contrasto|contrast\w*)|mdc|contrasto|"
    r"cplus|mit (km|kontrast\w*)|nach (km|kontrast\w*)|avec (inj\w*|pdc|contraste|iv)|"
    r"con (contraste|civ|iv)|"
    r"post ?(contrast\w*|km|iv|inj\w*)?|with (contrast|iv)|w ?contrast|contrast|kontrast\w*|"
    r"contraste|inject\w*|km|ce|"
    r"cect|enhanced|iv ?plus|apres inj\w*",
    "without contrast": r"o km|sense contrast|bez kontrast\w*|utan k(ontrast)?|"
    r"(sem|senza|zonder) (mdc|mezzo di contrasto|contrast\w*|iv)|"
    r"blanco|leer|leeraufnahme|basale|dirett[ao]|simples|smdc|w ?o ?(ivcon\w*)|"
    r"ncct|nect|nc|nativ\w*|non ?(contrast\w*|enh\w*|inj\w*|con)|without( contrast| iv)?|"
    r"w ?o( contrast| iv)?|"
    r"wo|woc|ohne (km|kontrast\w*)|sans (inj\w*|contraste|pdc|iv|produit)|"
    r"sin (contraste|civ|iv)|simple|plain|cminus|"
    r"unenh\w*|basal|vacio|spont\w*|precontrast|pre contrast|si",
    "head": r"hersen\w*|hoofd\w*|schedel\w*|testa|cabeca|encefal\w*|beroerte|ictal|\w*neurocran\w*|"
    r"\w*head|brain|cereb\w*|crani\w*|crane|\w*schadel\w*|\w*schaedel\w*|\w*kopf|hirn|neuro\w*|"
    r"enceph\w*|cabeza|tete|"
    r"cct|skull|stroke|avc|schlaganfall|ictus|apoplex\w*|cerveau|cerebro|craneo|std|gehirn|hd",
    "elsewhere": r"thora\w*|chest|lung\w*|abdom\w*|pelvi\w*|becken|poumons?|torax|pulm\w*|spine|wirbel\w*|"
    r"rachis|columna|lws|"
    r"hws|bws|lumb\w*|cervical spine|knie|extrem\w*|sinus\w*|orbit\w*|petr\w*|felsenbein\w*|"
    r"rocher\w*|penasco\w*|facial|"
    r"gesicht\w*|massif|nnh|temporal bone|heart|herz|coeur|corazon",
    "hard kernel": r"bot|osso|ossea|oss[ei]\w*|"
    r"bone|knochen|os|hueso|osseu\w*|hart|dur|duro|hard|sharp|scharf|lung|detail|boneplus|edge",
}
WORDS: Final = {kind: re.compile(rf"(?<![a-z0-9])(?:{source})(?![a-z0-9])") for kind, source in _SOURCES.items()}
"""What a word says, by its kind."""
_AFTER, _WITHOUT = WORDS["after contrast"], WORDS["without contrast"]


def plain(text: str) -> str:
    """A text in lower case with single spaces, without accents and signs."""
    split = _CASE_CHANGE.sub(" ", text) if not text.isupper() else text
    letters = "".join(
        each for each in unicodedata.normalize("NFKD", split.replace("ß", "ss")) if not unicodedata.combining(each)
    ).lower()
    for sign, word in _CONTRAST_SIGN:
        letters = sign.sub(word, letters)
    return _SIGNS.sub(" ", _PARTS.sub(" ", letters)).strip()


def names(text: str) -> frozenset[str]:
    """Kinds of words that a text contains."""
    prepared = plain(text)
    found = {kind for kind, pattern in WORDS.items() if pattern.search(prepared)}
    if "without contrast" in found and not _AFTER.search(_WITHOUT.sub(" ", prepared)):
        found.discard("after contrast")  # "without contrast" also contains "contrast"
    return frozenset(found)
