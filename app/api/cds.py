"""Writes a finished prediction as a CDS Hooks card (cds-hooks.hl7.org, 2.0) for the page of the patient's record.

Design notes:
- A card informs. It suggests no order and never has the indicator `critical`, because this is research.
- The summary is complete by itself: headline, probability, origin of the model, and the research notice. The spread of
  the networks and the side of the threshold follow if they fit.
- If there are warnings, the summary is the first line of the answer: a withheld decision, or the warnings.
- Links in a card are absolute, so the report is linked only if the service knows its address (``RLVO_PUBLIC_URL``).
"""

from __future__ import annotations

from typing import Any

from app.core.display_names import flag_text, interval_text, percent, truncated
from app.core.explanation_text import contributions, grouped, outside_text, points_text
from app.sdk.errors import NotFinished, sealed_by
from app.sdk.flags import Severity
from app.sdk.summary import SYNTHETIC_SHORT, Headline, is_synthetic
from app.sdk.types import Prediction

MAX_CONTRIBUTIONS = 3
MAX_SUMMARY = 139  # characters; the specification allows fewer than 140

Card = dict[str, Any]


def cards(prediction: Prediction, public_url: str) -> dict[str, list[Card]]:
    """Returns the response of a CDS service, which holds one card.

    Raises:
        Sealed: A silent trial seals the answer.
        NotFinished: The prediction has no probability, because it is unfinished, failed or was cancelled.
    """
    if prediction.sealed is not None:
        raise sealed_by(prediction.sealed)
    if prediction.probability is None or prediction.finished is None:
        raise NotFinished("Only a prediction that succeeded has a card.")
    refractory = prediction.headline is Headline.REFRACTORY
    doubtful = bool(prediction.withheld or prediction.warnings)
    card: Card = {
        "uuid": prediction.id,
        "summary": _summary(prediction),
        "detail": _detail(prediction),
        "indicator": "warning" if refractory or doubtful else "info",
        "source": _source(prediction),
    }
    if public_url:
        base = public_url.rstrip("/")
        card["links"] = [
            {"label": "Report", "url": f"{base}/v1/predictions/{prediction.id}/report.html", "type": "absolute"}
        ]
    return {"cards": [card]}


def state_card(prediction: Prediction) -> Card:
    """Returns the card of a prediction without a result: unfinished or failed."""
    end = " Research use only."
    detail = [prediction.error.detail, ""] if prediction.error else []
    return {
        "uuid": prediction.id,
        "summary": truncated(f"rlvo: {prediction.summary}", MAX_SUMMARY - len(end)) + end,
        "detail": "\n".join([_study(prediction), "", *detail, f"**{prediction.notice}**"]),
        "indicator": "info",
        "source": _source(prediction),
    }


def _source(prediction: Prediction) -> dict[str, str]:
    return {"label": f"rlvo, {prediction.model.name} {prediction.model.version} (research use only)"}


def _study(prediction: Prediction) -> str:
    """By what a reader recognises the study: its accession number, and when it was sent."""
    name = f"Study {prediction.accession_number}" if prediction.accession_number else "Study"
    return f"{name}, sent on {prediction.created:%Y-%m-%d at %H:%M} UTC."


def _summary(prediction: Prediction) -> str:
    """One line of fewer than 140 characters, as the specification requires."""
    assert prediction.probability is not None
    end = f" {SYNTHETIC_SHORT}" if is_synthetic(prediction.flags) else ""
    end += " Research use only."
    if prediction.withheld or prediction.warnings:
        end = f" Probability {percent(prediction.probability)}.{end}"
        return truncated(prediction.summary, MAX_SUMMARY - len(end)) + end
    text = f"{prediction.headline.text}. " if prediction.headline else ""
    text += f"Refractory occlusion: {percent(prediction.probability)}"
    optional = []
    if prediction.interval is not None:
        optional.append(f" ({interval_text(prediction.interval, prediction.folds)})")
    if prediction.decision is not None:
        side = "above" if prediction.decision.refractory else "below"
        optional.append(f", {side} the threshold of {percent(prediction.decision.threshold)}")
    for part in optional:
        if len(text + part + ".") + len(end) <= MAX_SUMMARY:
            text += part
    return f"{text}.{end}"


def _detail(prediction: Prediction) -> str:
    """Markdown: summary and warnings, the research notice, the largest contributions, and the other flags."""
    flags = {severity: [flag for flag in prediction.flags if flag.severity is severity] for severity in Severity}
    lines = [f"**{prediction.summary}**", ""]
    if warnings := flags[Severity.WARNING]:
        lines += [*(f"- **Warning:** {flag_text(flag)}" for flag in warnings), ""]
    lines += [_study(prediction), "", f"**{prediction.notice}**", ""]
    if prediction.attribution is not None:
        total = prediction.attribution.total
        if first := outside_text(prediction.attribution):
            lines += [first, ""]
        largest = grouped(contributions(prediction.attribution))[:MAX_CONTRIBUTIONS]
        lines += ["Largest contributions:", ""]
        lines += [
            f"- {each.name}: {each.log_odds:+.2f} log-odds, {points_text(total, each.log_odds)}" for each in largest
        ]
        lines.append("")
    if infos := flags[Severity.INFO]:
        lines += ["Information on the input:", "", *(f"- Info: {flag_text(flag)}" for flag in infos), ""]
    return "\n".join(lines).rstrip()
