"""A self-contained HTML report of one prediction; it loads no external resource.

Design notes:
- Every figure has its table below it, so that the report can be read without the figures.
- Figures are SVG data URIs: sharp in print, and an image cannot run scripts.
- All values are escaped. The content security policy of the page allows only its own style and images.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from app.core.display_names import flag_text, interval_text, percent, rule_text
from app.core.explanation_text import BASE, Contribution, outside_text, points_text, reasons, side_text
from app.reporting.tables import FigureTable, region_table
from app.sdk.flags import Severity
from app.sdk.summary import SYNTHETIC_NOTICE, is_synthetic
from app.sdk.types import NOTICE, Attribution, Flag, Prediction

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b2733;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid #d5dde5}
.notice{background:#fff3cd;color:#5c4400;padding:.5rem 1rem;font-weight:600;text-align:center}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}caption{text-align:left;color:#5b6b7b}
th,td{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid #d5dde5;overflow-wrap:anywhere}
th,td.k{overflow-wrap:normal}@media(min-width:40rem){td.n{white-space:nowrap}}
@media(max-width:40rem){table{font-size:.85em}td,th{padding-right:.4rem}}
td.n,th.n{text-align:right}img{max-width:100%}.big{font-size:2.4rem;font-weight:650}
.headline{font-size:1.5rem;margin:0 1rem}
.first{font-size:1.2rem;font-weight:600}.withheld{border:3px solid #8a4b00;background:#fff3cd;padding:0 1rem}
.flags{list-style:none;padding:0}.flags li{margin:.4rem 0}.icon{height:1.1em;width:1.1em;vertical-align:-.15em}
figure{margin:1.2rem 0}figcaption{color:#5b6b7b}pre{white-space:pre-wrap;font-size:.85em}
@media print{body{margin:0;max-width:none}h2{break-after:avoid}figure,table{break-inside:avoid}}
"""
_UNBROKEN = 14  # letters of a word in a table that never breaks, such as "brainstem"
_ICONS = {
    Severity.WARNING: (
        '<svg class=icon viewBox="0 0 20 20" role=img aria-label=Warning><path d="M10 1 19.5 18.5H.5z" fill="#8a4b00"/>'
        '<path d="M10 7v6M10 15v2" stroke="#fff" stroke-width="2"/></svg>'
    ),
    Severity.INFO: (
        '<svg class=icon viewBox="0 0 20 20" role=img aria-label=Info><circle cx="10" cy="10" r="9" fill="#0072b2"/>'
        '<path d="M10 4v2M10 8.500v7" stroke="#fff" stroke-width="2"/></svg>'
    ),
}
_BREAK_IN_PERCENT = re.compile(r"(\d) %")  # a number and its sign stay on one line
_SUMMARY_ITEMS = 3  # contributions in the summary sentence, in each direction


class ReportFigure(NamedTuple):
    """A figure as the report shows it: SVG, the title for screen readers, and the table below it."""

    svg: bytes
    title: str
    table: FigureTable | None


class PublishedScores(NamedTuple):
    """Published scores of the patient: their table, and the sentences below it."""

    table: FigureTable
    notes: Sequence[str]


def report(
    prediction: Prediction, figures: Mapping[str, ReportFigure], card: str, published: PublishedScores | None = None
) -> str:
    """Return the report as HTML.

    Args:
        prediction: A finished prediction.
        figures: Figures by caption, in the order of the report.
        card: The model card, Markdown, shown as plain text.
        published: Published scores of the patient; None without them.
    """
    parts = [
        f"<h1>Refractory occlusion: prediction {escape(prediction.id)}</h1>",
        f"<p class=notice role=note>{escape(NOTICE)}</p>",
        _first_line(prediction),
        _probability(prediction),
        "<h2>Remarks on the input</h2>",
        _flags(prediction.flags, Severity.INFO) or "<p>No value was imputed, and no problem was found.</p>",
    ]
    if prediction.attribution is not None:
        parts += ["<h2>Contributions</h2>", *_contributions(prediction.attribution, prediction.flags)]
    if published is not None:
        notes = (f"<p>{escape(note)}</p>" for note in published.notes)
        parts += ["<h2>Published scores</h2>", _table("", published.table), *notes]
    parts += ["<h2>Figures</h2>", *(_figure(caption, drawing) for caption, drawing in figures.items())]
    parts += [
        "<h2>Record</h2>",
        _table(
            "",
            FigureTable(
                ("Item", "Value"),
                [
                    ("Subject", prediction.subject or "not given"),
                    ("Study Instance UID", prediction.study_instance_uid or "not given"),
                    ("Accession number", prediction.accession_number or "not given"),
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
    body = _BREAK_IN_PERCENT.sub("\\1&nbsp;%", "".join(parts))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>rlvo {escape(prediction.id)}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )


def _first_line(prediction: Prediction) -> str:
    """The summary; with warnings it is a box that lists them and what to do."""
    warnings = _flags(prediction.flags, Severity.WARNING)
    if not warnings:
        return f"<p class=first>{escape(prediction.summary)}</p>"
    advice = (
        "The probability and the contributions below serve to check the study. They are no decision."
        if prediction.withheld
        else "The decision was given in spite of these warnings."
    )
    line = f"<p class=first>{_ICONS[Severity.WARNING]} {escape(prediction.summary)}</p>"
    return f"<div class=withheld role=alert>{line}{warnings}<p>{advice}</p></div>"


def _flags(flags: Sequence[Flag], severity: Severity) -> str:
    """List of the flags of one severity: icon, word, text and code; empty if there is none."""
    items = [
        f"<li>{_ICONS[severity]} <b>{severity.capitalize()}:</b> {escape(flag_text(flag))} "
        f"<small>{escape(flag.name)}</small></li>"
        for flag in flags
        if flag.severity is severity
    ]
    return f"<ul class=flags>{''.join(items)}</ul>" if items else ""


def _probability(prediction: Prediction) -> str:
    assert prediction.probability is not None
    interval, decision, headline = prediction.interval, prediction.decision, prediction.headline
    word = f" <b class=headline>{headline.text}</b>" if headline else ""
    spread = f"; {interval_text(interval, prediction.folds)}" if interval else ""
    origin = f"<p><b>{escape(SYNTHETIC_NOTICE)}</b></p>" if is_synthetic(prediction.flags) else ""
    limit = ""
    if decision:
        side = "above" if decision.refractory else "below"
        limit = (
            f" The probability is {side} the threshold of {percent(decision.threshold)} "
            f"({escape(rule_text(decision.rule))})."
        )
    return (
        f"<p><span class=big>{percent(prediction.probability)}</span>{word}</p>{origin}"
        "<p>Probability of a refractory large-vessel occlusion of the anterior "
        f"circulation (final stenosis &gt; 50 %, eTICI 0-2a, or rescue treatment){spread}.{limit}</p>"
    )


def _contributions(attribution: Attribution, flags: Sequence[Flag]) -> list[str]:
    total = attribution.total
    raised, lowered = (reasons(attribution, sign)[:_SUMMARY_ITEMS] for sign in (1, -1))
    parts = [
        (
            f"<p>{escape(outside_text(attribution))} {_summary('Raised', raised, total)} "
            f"{_summary('Lowered', lowered, total)} Contributions to the log-odds add up from {attribution.base:+.3f}, "
            f"{BASE}, to {total:+.3f}. Points compare the probability with and without one contribution; they do not "
            "add up.</p>"
        ),
        f"<p>{escape(_method(attribution))} {escape(side_text(attribution.affected, flags))}</p>",
    ]
    if regions := region_table(attribution.regions, total):
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
    return f"{'; '.join(filter(None, parts))}."


def _summary(verb: str, items: Sequence[Contribution], total: float) -> str:
    """``Raised most by NIHSS 19 (+0.41 log-odds, +8.1 points) and CTA (+0.30 log-odds, +5.9 points).``"""
    if not items:
        return f"{verb} by no known value or image."
    named = [
        escape(f"{item.name} {item.value}".strip())
        + f" ({item.log_odds:+.2f} log-odds, {points_text(total, item.log_odds)})"
        for item in items
    ]
    return f"{verb} most by {' and '.join(filter(None, [', '.join(named[:-1]), named[-1]]))}."


def _table(caption: str, table: FigureTable) -> str:
    """Render a table; its last column, the numbers, is right-aligned, and no number or usual word breaks."""
    last = len(table.headers) - 1
    numbers = [column == last > 0 for column in range(len(table.headers))]
    headings = zip(table.headers, numbers, strict=True)
    head = "".join(f"<th scope=col{' class=n' if right else ''}>{escape(text)}</th>" for text, right in headings)
    body = "".join(
        "<tr>" + "".join(_cell(cell, right=right) for cell, right in zip(row, numbers, strict=True)) + "</tr>"
        for row in table.rows
    )
    caption_tag = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{caption_tag}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str, *, right: bool) -> str:
    """A cell of a table; only a word that is too long for a narrow screen breaks."""
    longest = max(map(len, text.split()), default=0)
    kinds = " ".join(name for name, holds in (("n", right), ("k", longest <= _UNBROKEN)) if holds)
    return f'<td class="{kinds}">{escape(text)}</td>' if kinds else f"<td>{escape(text)}</td>"


def _figure(caption: str, figure: ReportFigure) -> str:
    data = base64.b64encode(figure.svg).decode("ascii")
    table = _table("", figure.table) if figure.table else ""
    return (
        f'<figure><img alt="{escape(figure.title, quote=True)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption>{table}</figure>"
    )
