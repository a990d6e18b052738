"""Writes a finished prediction as a CDS Hooks card (cds-hooks.hl7.org, 2.0) for the page of the patient's record.

Design notes:
- A card informs. It suggests no order and never has the indicator `critical`, because this is research.
- The summary is complete by itself: probability, spread of the folds, side of the threshold, and the research notice.
- If there are warnings, the summary is the first line of the answer: a withheld decision, or the warnings.
- Links in a card are absolute, so the report is linked only if the service knows its address (``RLVO_PUBLIC_URL``).
"""

from __future__ import annotations

from typing import Any

from app.core.display_names import flag_text, interval_text, label, percent, truncated
from app.sdk.errors import NotFinished
from app.sdk.flags import Severity
from app.sdk.types import ClinicalContribution, ModalityContribution, Prediction

MAX_CONTRIBUTIONS = 3
MAX_SUMMARY = 139  # characters; the specification allows fewer than 140

Card = dict[str, Any]


def cards(prediction: Prediction, public_url: str) -> dict[str, list[Card]]:
    """Returns the response of a CDS service, which holds one card.

    Raises:
        NotFinished: The prediction has no probability, because it is unfinished, failed or was cancelled.
    """
    if prediction.probability is None or prediction.finished is None:
        raise NotFinished("Only a prediction that succeeded has a card.")
    refractory = prediction.decision is not None and prediction.decision.refractory
    doubtful = bool(prediction.withheld or prediction.warnings)
    card: Card = {
        "uuid": prediction.id,
        "summary": _summary(prediction),
        "detail": _detail(prediction),
        "indicator": "warning" if refractory or doubtful else "info",
        "source": {"label": f"rlvo, {prediction.model.name} {prediction.model.version} (research use only)"},
    }
    if public_url:
        base = public_url.rstrip("/")
        card["links"] = [
            {"label": "Report", "url": f"{base}/v1/predictions/{prediction.id}/report.html", "type": "absolute"}
        ]
    return {"cards": [card]}


def _summary(prediction: Prediction) -> str:
    """One line of fewer than 140 characters, as the specification requires."""
    assert prediction.probability is not None
    if prediction.withheld or prediction.warnings:
        end = f" Probability {percent(prediction.probability)}. Research use only."
        return truncated(prediction.summary, MAX_SUMMARY - len(end)) + end
    text = f"Refractory occlusion: {percent(prediction.probability)}"
    if prediction.interval is not None:
        text += f" ({interval_text(prediction.interval)})"
    if prediction.decision is not None:
        side = "above" if prediction.decision.refractory else "below"
        text += f", {side} the threshold of {percent(prediction.decision.threshold)}"
    return f"{text}. Research use only."


def _detail(prediction: Prediction) -> str:
    """Markdown: summary and warnings, the research notice, the largest contributions, and the other flags."""
    flags = {severity: [flag for flag in prediction.flags if flag.severity is severity] for severity in Severity}
    lines = [f"**{prediction.summary}**", ""]
    if warnings := flags[Severity.WARNING]:
        lines += [*(f"- **Warning:** {flag_text(flag)}" for flag in warnings), ""]
    lines += [f"**{prediction.notice}**", ""]
    if prediction.attribution is not None:
        contributions: list[ClinicalContribution | ModalityContribution]
        contributions = [*prediction.attribution.clinical, *prediction.attribution.imaging]
        largest = sorted(contributions, key=lambda each: -abs(each.contribution))[:MAX_CONTRIBUTIONS]
        lines += ["Largest contributions (log-odds):", "", *(_line(each) for each in largest), ""]
    if infos := flags[Severity.INFO]:
        lines += ["Information on the input:", "", *(f"- Info: {flag_text(flag)}" for flag in infos), ""]
    return "\n".join(lines).rstrip()


def _line(contribution: ClinicalContribution | ModalityContribution) -> str:
    if isinstance(contribution, ModalityContribution):
        return f"- {contribution.modality.upper()}: {contribution.contribution:+.2f}"
    imputed = " (imputed)" if contribution.imputed else ""
    return f"- {label(contribution.variable)}{imputed}: {contribution.contribution:+.2f}"
