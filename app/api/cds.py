"""A finished prediction as a CDS Hooks card (cds-hooks.hl7.org, 2.0), for the page of the patient's record.

Notable choices:
- A card informs: it suggests no order, and no indicator is `critical`, since this is research and no alarm.
- The summary stands alone: number, interval, side of the threshold, and that it is no ground for a decision.
- The link to the report is there only where the service knows its own address (``RLVO_PUBLIC_URL``): a card's links are
  absolute, and the address that a caller used is no address to repeat.
"""

from __future__ import annotations

from typing import Any

from app.core.display_names import label, percent
from app.sdk.errors import NotFinished
from app.sdk.types import ClinicalContribution, ModalityContribution, Prediction

LONGEST_SUMMARY = 140
"""Characters that a summary stays below, by the specification."""
REASONS = 3

Card = dict[str, Any]


def cards(prediction: Prediction, public_url: str) -> dict[str, list[Card]]:
    """The answer of a CDS service: one card.

    :raises NotFinished: there is no probability yet, or there never will be
    """
    if prediction.probability is None or prediction.finished is None:
        raise NotFinished("Only a prediction that succeeded has a card.")
    refractory = prediction.decision is not None and prediction.decision.refractory
    card: Card = {
        "uuid": prediction.id,
        "summary": _summary(prediction),
        "detail": _detail(prediction),
        "indicator": "warning" if refractory else "info",
        "source": {"label": f"rlvo, {prediction.model.name} {prediction.model.version} (research use only)"},
    }
    if public_url:
        where = public_url.rstrip("/")
        card["links"] = [
            {"label": "Report", "url": f"{where}/v1/predictions/{prediction.id}/report.html", "type": "absolute"}
        ]
    return {"cards": [card]}


def _summary(prediction: Prediction) -> str:
    assert prediction.probability is not None
    text = f"Refractory occlusion: {percent(prediction.probability)}"
    if prediction.interval is not None:
        text += f" ({percent(prediction.interval.low)} to {percent(prediction.interval.high)})"
    if prediction.decision is not None:
        side = "above" if prediction.decision.refractory else "below"
        text += f", {side} the threshold of {percent(prediction.decision.threshold)}"
    return f"{text}. Research use only."


def _detail(prediction: Prediction) -> str:
    """Markdown: the notice, the strongest reasons, and what was guessed or poor."""
    lines = [f"**{prediction.notice}**", ""]
    if prediction.attribution is not None:
        reasons: list[ClinicalContribution | ModalityContribution]
        reasons = [*prediction.attribution.clinical, *prediction.attribution.imaging]
        strongest = sorted(reasons, key=lambda each: -abs(each.contribution))[:REASONS]
        lines += ["What weighs most (log-odds):", "", *(_reason(each) for each in strongest), ""]
    if prediction.flags:
        lines += ["To be kept in mind:", "", *(f"- {flag.detail}" for flag in prediction.flags), ""]
    return "\n".join(lines).rstrip()


def _reason(reason: ClinicalContribution | ModalityContribution) -> str:
    if isinstance(reason, ModalityContribution):
        return f"- {reason.modality.upper()}: {reason.contribution:+.2f}"
    guessed = " (imputed)" if reason.imputed else ""
    return f"- {label(reason.variable)}{guessed}: {reason.contribution:+.2f}"
