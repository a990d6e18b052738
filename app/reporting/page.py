"""A self-contained HTML report of one prediction; it loads no external resource.

Design notes:
- Every figure has its table below it, so that the report can be read without the figures.
- Figures are SVG data URIs: sharp in print, and an image cannot run scripts.
- All values are escaped. The content security policy of the page allows only its own style and images.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from app.core.display_names import interval_text, percent
from app.reporting.drawing import Drawing, FigureTable
from app.reporting.figures import contributions, region_table
from app.sdk.types import NOTICE, Attribution, Prediction

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b2733;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid #d5dde5}
.notice{background:#fff3cd;color:#5c4400;padding:.5rem 1rem;font-weight:600;text-align:center}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}caption{text-align:left;color:#5b6b7b}
th,td{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid #d5dde5;overflow-wrap:anywhere}
td.n,th.n{text-align:right}img{max-width:100%}.big{font-size:2.4rem;font-weight:650}
figure{margin:1.2rem 0}figcaption{color:#5b6b7b}pre{white-space:pre-wrap;font-size:.85em}
@media print{body{margin:0;max-width:none}h2{break-after:avoid}figure,table{break-inside:avoid}}
"""
_SUMMARY_ITEMS = 3  # contributions in the summary sentence, in each direction


def report(prediction: Prediction, figures: Mapping[str, Drawing], card: str) -> str:
    """Return the report as HTML.

    Args:
        prediction: A finished prediction.
        figures: Drawings by caption, in the order of the report.
        card: The model card, Markdown, shown as plain text.
    """
    parts = [
        f"<h1>Refractory occlusion: prediction {escape(prediction.id)}</h1>",
        f"<p class=notice role=note>{escape(NOTICE)}</p>",
        _probability(prediction),
        "<h2>Remarks on the input</h2>",
        _list([flag.detail for flag in prediction.flags] or ["No value was imputed, and no problem was found."]),
    ]
    if prediction.attribution is not None:
        parts += ["<h2>Contributions</h2>", *_contributions(prediction.attribution)]
    parts += ["<h2>Figures</h2>", *(_figure(caption, drawing) for caption, drawing in figures.items())]
    parts += [
        "<h2>Record</h2>",
        _table(
            "",
            FigureTable(
                ("Item", "Value"),
                [
                    ("Subject", prediction.subject or "not given"),
                    ("Model", f"{prediction.model.name}@{prediction.model.version}"),
                    ("Version digest", prediction.model.digest),
                    ("Created", prediction.created.isoformat(timespec="seconds")),
                    *((f"Input {name}", f"sha256:{item.sha256}") for name, item in prediction.inputs.items()),
                ],
            ),
        ),
        "<h2>Model card</h2>",
        f"<pre>{escape(card)}</pre>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>rlvo {escape(prediction.id)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _probability(prediction: Prediction) -> str:
    assert prediction.probability is not None
    assert prediction.decision is not None
    interval, decision = prediction.interval, prediction.decision
    spread = f"; {interval_text(interval)}" if interval else ""
    side = "above" if decision.refractory else "below"
    return (
        f"<p><span class=big>{percent(prediction.probability)}</span> probability of a refractory large vessel "
        f"occlusion (final stenosis &gt; 50 %, eTICI 0-2a, or rescue treatment){spread}. This is {side} the version's "
        f"threshold of {percent(decision.threshold)} ({escape(decision.rule)}).</p>"
    )


def _contributions(attribution: Attribution) -> list[str]:
    items = contributions(attribution)
    raised = [item for item in items if item[2] > 0][:_SUMMARY_ITEMS]
    lowered = [item for item in items if item[2] < 0][:_SUMMARY_ITEMS]
    parts = [
        (
            f"<p>Contributions to the log-odds add up from {attribution.base:+.3f}, the average training patient, "
            f"to {attribution.total:+.3f}. {_summary('Raised', raised)} {_summary('Lowered', lowered)}</p>"
        ),
        f"<p>{escape(_method(attribution))}</p>",
    ]
    if regions := region_table(attribution.regions):
        parts.append(_table("Image contributions by region", regions))
    return parts


def _method(attribution: Attribution) -> str:
    """Describe the method of the contributions and their standard error."""
    images = {
        "exact": "images: every subset of the modalities, and integrated gradients",
        "fast": "images: the fast method (its agreement with the exact one is in docs/explanation.md)",
    }
    parts = ["Shapley values of the calibrated log-odds", images.get(attribution.method or "", "")]
    if attribution.error:
        parts.append(f"clinical contributions are sampled, with a standard error of at most {attribution.error:.3f}")
    sentence = "; ".join(filter(None, parts))
    side = f" The occlusion is on the {attribution.affected}." if attribution.affected else ""
    return f"{sentence}.{side}"


def _summary(verb: str, items: Sequence[tuple[str, str, float]]) -> str:
    """``Raised most by NIHSS 19 (+0.41) and image: cta (+0.30).``"""
    if not items:
        return f"{verb} by nothing."
    named = [escape(f"{name} {value}".strip() + f" ({part:+.2f})") for name, value, part in items]
    return f"{verb} most by {' and '.join(filter(None, [', '.join(named[:-1]), named[-1]]))}."


def _list(items: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _table(caption: str, table: FigureTable) -> str:
    """Render a table; its last column, the numbers, is right-aligned."""
    last = len(table.headers) - 1
    kinds = [" class=n" if column == last > 0 else "" for column in range(len(table.headers))]
    head = "".join(f"<th scope=col{kind}>{escape(text)}</th>" for text, kind in zip(table.headers, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in table.rows
    )
    caption_tag = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{caption_tag}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figure(caption: str, drawing: Drawing) -> str:
    data = base64.b64encode(drawing.svg()).decode("ascii")
    table = _table("", drawing.table) if drawing.table else ""
    return (
        f'<figure><img alt="{escape(drawing.title, quote=True)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption>{table}</figure>"
    )
