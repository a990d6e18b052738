"""The PDF of a report: what its tables say is complete."""

from __future__ import annotations

from app.reporting import document
from app.reporting.tables import FigureTable
from app.sdk.types import Attribution, PerfusionSummary
from tests.reporting.test_report import finished_prediction


def test_a_long_value_goes_on_in_the_next_line() -> None:
    value = "core 0 mL, Tmax > 6 s 70.9 mL, HIR 0.124"
    rows = [("perfusion", value, "+6.1"), ("sex", "male", "+3.4")]
    lines = [line.text for line in document._table(FigureTable(("Variable", "Value", "Points"), rows))]
    assert [" ".join(line.split()) for line in lines] == [
        "Variable Value Points",
        "perfusion core 0 mL, Tmax > 6 s 70.9 mL, HIR +6.1",
        "0.124",
        "sex male +3.4",
    ]
    assert len({len(line) for line in lines}) == 1  # the columns stay below each other


def test_maps_without_a_usable_number_are_told(attribution: Attribution) -> None:
    """Before, the heading of the perfusion stood above nothing."""
    sent = finished_prediction(attribution)
    said = "The perfusion maps give no usable numbers; the warnings say why."
    for summary, expected in ((PerfusionSummary(), True), (PerfusionSummary(core_ml=0.0), False)):
        lines = [line.text for line in document._lines(sent.model_copy(update={"perfusion": summary}))]
        assert "CT perfusion" in lines
        assert (said in lines) == expected


def test_a_printed_report_says_of_whom_and_when_it_is(attribution: Attribution) -> None:
    sent = finished_prediction(attribution).model_copy(update={"subject": "S1", "accession_number": "A7"})
    lines = [line.text for line in document._lines(sent)]
    assert {"Subject: S1", "Accession number: A7"} <= set(lines)
    assert any(line.endswith("created 2026-11-23T00:00:00+00:00") for line in lines)
    assert any(line.startswith("The contributions add up from") for line in lines)
