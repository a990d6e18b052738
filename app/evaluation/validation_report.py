"""Report of a validation as Markdown, as one HTML file without external resources, and as CSV files.

Design notes:
- The report is a list of sections. A section is text, tables and plots; every plot has its table.
- All texts of the table are escaped. The HTML needs no script.
- Table 1 and the flow show every count, also small ones, so the report stays in the hospital.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from app.core import csv_text
from app.core.csv_text import Cell
from app.core.filesystem import atomic_directory
from app.evaluation import baseline_table, score_comparison, smooth_calibration, svg_plots, tripod
from app.evaluation.clusters import chosen
from app.evaluation.equal_probabilities import all_equal
from app.evaluation.logistic import log_odds
from app.evaluation.metrics import Estimate
from app.evaluation.patient_groups import repeated_note
from app.evaluation.report_sections import Plot, ReportTable, Section
from app.evaluation.score_comparison import ScoreComparison
from app.evaluation.validation import Measure, PooledMeasure, Scores, Validation

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#1b2733;max-width:64rem;margin:2rem auto;padding:0 1rem}"
    "h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid #d5dde5}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid #d5dde5}svg{max-width:100%}"
    "@media print{body{margin:0;max-width:none}h2{break-after:avoid}svg,table{break-inside:avoid}}"
)

_ENDS = ("", "_low", "_high")


def sections(
    result: Validation,
    source: str,
    more: Sequence[Section] = (),
    items: Mapping[str, str] | None = None,
    *,
    first: Sequence[Section] = (),
) -> list[Section]:
    """Return the sections of the report.

    Args:
        result: The validation.
        source: Name of the table.
        more: Sections that stand before the items of TRIPOD+AI.
        items: Texts of items of TRIPOD+AI, by number, which replace those of the table.
        first: Sections that a reader must know before the numbers.
    """
    found = [
        *first,
        _flow(result),
        _table_one(result),
        Section("Performance", [_measures(result.measures), PERFORMANCE_NOTE, *_repeated(result)]),
        _calibration(result),
        _decisions(result),
        _coverage(result),
        _by("Subgroups", "subgroups-auc", result.subgroups, result),
        _by("Sites", "sites-auc", result.sites, result),
        _pooled(result),
        _bounds(result),
        _published(result),
        *more,
        _tripod(result, source, items or {}),
    ]
    return [section for section in found if section.parts]


def markdown(title: str, found: Sequence[Section]) -> str:
    """Return the report as Markdown; a plot is a link to its file."""
    parts = [f"# {title}"]
    for section in found:
        parts.append(f"## {section.title}")
        for part in section.parts:
            if isinstance(part, ReportTable):
                parts.append(baseline_table.markdown(part.head, part.rows))
            else:
                parts.append(f"![{part.name}]({part.name}.svg)" if isinstance(part, Plot) else part)
    return "\n\n".join(parts) + "\n"


def html(title: str, found: Sequence[Section]) -> str:
    """Return the report as one HTML file."""
    parts = [f"<h1>{escape(title)}</h1>"]
    for section in found:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        for part in section.parts:
            if isinstance(part, ReportTable):
                parts.append(_html_table(part))
            else:
                parts.append(f"<figure>{part.svg}</figure>" if isinstance(part, Plot) else f"<p>{escape(part)}</p>")
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def write(
    folder: Path,
    title: str,
    result: Validation,
    source: str,
    *,
    more: Sequence[Section] = (),
    items: Mapping[str, str] | None = None,
    first: Sequence[Section] = (),
) -> str:
    """Write ``report.md``, ``report.html``, the plots and the CSV files into a folder; return the Markdown.

    Args:
        folder: The folder; a report that is there already is replaced.
        title: Title of the report.
        result: The validation.
        source: Name of the table.
        more: Sections that stand before the items of TRIPOD+AI.
        items: Texts of items of TRIPOD+AI, by number, which replace those of the table.
        first: Sections that stand at the top.
    """
    found = sections(result, source, more, items, first=first)
    text = markdown(title, found)
    with atomic_directory(folder) as draft:
        (draft / "report.md").write_text(text, encoding="utf-8")
        (draft / "report.html").write_text(html(title, found), encoding="utf-8")
        for section in found:
            for part in section.parts:
                if isinstance(part, Plot):
                    (draft / f"{part.name}.svg").write_text(part.svg, encoding="utf-8")
        for name, (head, rows) in csv_files(result).items():
            csv_text.write(draft / f"{name}.csv", head, rows)
        shutil.rmtree(folder, ignore_errors=True)
    return text


def csv_files(result: Validation) -> dict[str, tuple[list[str], list[list[Cell]]]]:
    """Return head and rows of each CSV file, by its name."""
    ends = ["value", "low", "high"]
    every = [*result.measures, *result.at_threshold, *result.coverage]
    files: dict[str, tuple[list[str], list[list[Cell]]]] = {
        "flow": (["step", "patients"], [[name, count] for name, count in result.table.flow]),
        "measures": (["measure", *ends, "method"], [[one.key, *_cells(one.estimate), one.method] for one in every]),
        "decisions": (
            ["threshold", *ends, "of_treating_all"],
            [[one.threshold, *_cells(one.net_benefit), one.of_all] for one in result.decisions],
        ),
    }
    for name, rows in (("subgroups", result.subgroups), ("sites", result.sites)):
        if rows:
            names = [f"{measure}{end}" for measure in ("auc", "oe", "slope") for end in _ENDS]
            files[name] = (["name", "patients", "events", *names], [_score_cells(one) for one in rows])
    if result.pooled:
        head = ["measure", "sites", *ends, "prediction_low", "prediction_high", "tau", "i2"]
        files["pooled"] = (
            head,
            [[one.measure, one.sites, *_cells(one.mean), *one.prediction, one.tau, one.i2] for one in result.pooled],
        )
    if result.smooth is not None:
        curve = result.smooth.curve
        assert curve.low is not None
        assert curve.high is not None
        columns = zip(curve.x, curve.y, curve.low, curve.high, strict=True)
        files["calibration"] = (["predicted", "observed", "low", "high"], [[*map(float, row)] for row in columns])
    if result.bounds:
        head = ["measure", "known", "lowest", "highest", "weighted", "weighted_low", "weighted_high"]
        files["missing-outcomes"] = (
            head,
            [[one.name, one.known, one.low, one.high, *_cells(one.weighted)] for one in result.bounds],
        )
    if compared := _comparisons(result):
        head = ["score", "patients", "events", *(f"{of}{end}" for of in ("auc", "version_auc") for end in _ENDS), "p"]
        files["published-scores"] = (
            head,
            [[one.name, one.patients, one.events, *_cells(one.score), *_cells(one.version), one.p] for one in compared],
        )
    return files


def _html_table(table: ReportTable) -> str:
    head = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in table.head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(estimate: Estimate | None) -> list[Cell]:
    return [None] * 3 if estimate is None else [estimate.value, estimate.low, estimate.high]


def _score_cells(one: Scores) -> list[Cell]:
    shown = one.auc is not None
    estimates = (one.auc, one.observed_expected, one.slope)
    return [one.name, one.patients, one.events if shown else None, *(c for e in estimates for c in _cells(e))]


def _flow(result: Validation) -> Section:
    with_outcome = int(result.labels.sum())
    steps = [*result.table.flow, ("analysed, with the outcome", with_outcome)]
    return Section("Flow of the patients", [ReportTable(["step", "patients"], [[n, str(c)] for n, c in steps])])


def _table_one(result: Validation) -> Section:
    """Variables by outcome; patients without an outcome have a column of their own."""
    table = result.table
    if not table.characteristics:
        return Section("Table 1")
    groups = {"all": np.ones(len(table), bool), "with the outcome": table.outcomes == 1}
    groups["without"] = table.outcomes == 0
    if not table.known.all():
        groups["outcome unknown"] = ~table.known
    described = [baseline_table.Characteristic(name, values) for name, values in table.characteristics.items()]
    pairs = [("with the outcome", "without")]
    lines = baseline_table.rows(described, groups, pairs)
    return Section("Table 1", [ReportTable(baseline_table.heads(groups, pairs), baseline_table.cells_of(lines))])


def _measures(measures: Sequence[Measure]) -> ReportTable:
    rows = [[one.name, one.text, one.ideal, one.method] for one in measures]
    return ReportTable(["measure", "value (95 % interval)", "ideal", "method"], rows)


PERFORMANCE_NOTE = (
    "O/E is the observed by the expected number of outcomes. The scaled Brier score is 0 for a model that gives every "
    "patient the prevalence."
)


def _repeated(result: Validation) -> list[str]:
    """Sentence on patients with several studies; empty without any."""
    note = repeated_note(chosen(result.table.clusters, result.table.known))
    return [note] if note else []


def _calibration(result: Validation) -> Section:
    smooth = result.smooth
    if smooth is None:
        return Section("Calibration curve", [f"The curve cannot be estimated: {_without_curve(result)}."])
    kind = f"a restricted cubic spline with {smooth.knots} knots" if smooth.knots else "a line"
    note = (
        f"Logistic regression of the outcome on {kind} of the predicted log-odds (Harrell 2015). The band is the 95 % "
        "interval at each point. The curve ends at the 1 % and 99 % quantile of the predictions."
    )
    curve = smooth.curve
    assert curve.low is not None
    assert curve.high is not None
    points = np.unique(np.linspace(0, len(curve.x) - 1, 8).astype(int))
    rows = [[f"{c[p]:.3f}" for c in (curve.x, curve.y, curve.low, curve.high)] for p in points]
    plot = Plot("smooth-calibration", svg_plots.calibration(smooth, result.probabilities))
    return Section("Calibration curve", [note, plot, ReportTable(["predicted", "observed", "low", "high"], rows)])


def _without_curve(result: Validation) -> str:
    """Why there is no smooth curve; see ``smooth_calibration.smooth``."""
    events = int(result.labels.sum())
    if min(events, len(result.labels) - events) < smooth_calibration.FEWEST:
        return "one outcome is too rare"
    equal = all_equal(log_odds(result.probabilities))
    return "the probabilities are all equal" if equal else "the probabilities separate the outcomes, or nearly do"


def _decisions(result: Validation) -> Section:
    rows = [[f"{one.threshold:.3g}", _signed(one.net_benefit), f"{one.of_all:+.3f}"] for one in result.decisions]
    parts: list[str | ReportTable | Plot] = [
        ReportTable(["act above", "net benefit per patient (95 % interval)", "of acting on all"], rows)
    ]
    if result.at_threshold:
        parts += [f"Decisions at the threshold {result.threshold:.3g}:", _measures(result.at_threshold)]
    return Section("Decisions", parts)


def _signed(one: Estimate) -> str:
    return f"{one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f})"


def _coverage(result: Validation) -> Section:
    if not result.coverage:
        return Section("Conformal sets")
    nominal = "" if result.level is None else f" The nominal coverage of each class is {result.level:g}."
    text = f"A set covers a patient if it contains the class that occurred.{nominal}"
    return Section("Conformal sets", [text, _measures(result.coverage)])


def _by(title: str, name: str, rows: Sequence[Scores], result: Validation) -> Section:
    if not rows:
        return Section(title)
    head = [title.lower().removesuffix("s"), "patients", "with the outcome", "AUC", "O/E", "calibration slope"]
    lines = [
        [one.name, str(one.patients), "too few of one outcome", "", "", ""]
        if one.auc is None
        else [one.name, str(one.patients), str(one.events), str(one.auc), str(one.observed_expected), str(one.slope)]
        for one in rows
    ]
    shown = [(one.name, one.auc) for one in rows if one.auc is not None]
    reference = next(one.estimate.value for one in result.measures if one.key == "auc")
    plots = (
        [Plot(name, svg_plots.forest(shown, reference, f"AUC with 95 % interval: {title.lower()}"))] if shown else []
    )
    return Section(title, [*plots, ReportTable(head, lines)])


POOLED_HEAD = ("measure", "sites", "mean (95 % interval)", "95 % prediction interval", "tau", "I2")


def pooled_cells(one: PooledMeasure) -> list[str]:
    """Cells of a pooled measure in the columns ``POOLED_HEAD``."""
    ends = f"{one.prediction[0]:.3f} to {one.prediction[1]:.3f}"
    return [one.measure, str(one.sites), str(one.mean), ends, f"{one.tau:.3f}", f"{100 * one.i2:.0f} %"]


def _pooled(result: Validation) -> Section:
    if not result.pooled:
        return Section("Pooled over the sites")
    note = (
        "Random effects (REML, Hartung-Knapp), AUC as log-odds and O/E as logarithm (Debray et al. 2017). The "
        "prediction interval is where a new site is expected. Only sites with ten patients of either outcome take part."
    )
    rows = [pooled_cells(one) for one in result.pooled]
    return Section("Pooled over the sites", [note, ReportTable(POOLED_HEAD, rows)])


def _bounds(result: Validation) -> Section:
    if not result.bounds:
        return Section("Missing outcomes")
    note = (
        "The extremes are the lowest and the highest value over all outcomes that the patients without one may have. "
        "The weighted estimate assumes that prediction, site and subgroups explain which outcomes are missing."
    )
    rows = [
        [
            one.name,
            f"{one.known:.3f}",
            f"{one.low:.3f} to {one.high:.3f}",
            "too few patients" if one.weighted is None else str(one.weighted),
        ]
        for one in result.bounds
    ]
    head = ["measure", "known patients", "extremes", "weighted (95 % interval)"]
    return Section("Missing outcomes", [note, ReportTable(head, rows)])


def _published(result: Validation) -> Section:
    """Published scores against the version, on the patients with an outcome; empty for a table without records."""
    found = _comparisons(result)
    if not found:
        return Section("Published scores")
    table = ReportTable(score_comparison.HEAD, score_comparison.cells(found))
    return Section("Published scores", [table, *score_comparison.notes(found)])


def _comparisons(result: Validation) -> list[ScoreComparison]:
    if not result.table.records:
        return []
    records = [record for record, known in zip(result.table.records, result.table.known, strict=True) if known]
    clusters = chosen(result.table.clusters, result.table.known)
    return score_comparison.compare(records, result.labels, result.probabilities, clusters)


def _tripod(result: Validation, source: str, more: Mapping[str, str]) -> Section:
    found = tripod.items(result, source, more)
    rows = [[one.number, one.asks, one.text or tripod.BLANK] for one in found]
    blank = f"Blank, to be written by the authors: {', '.join(tripod.blanks(found))}."
    return Section("TRIPOD+AI", [blank, ReportTable(["item", "asks for", "from the data"], rows)])
