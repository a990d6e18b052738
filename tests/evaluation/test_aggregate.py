"""Aggregates of a site: no small cell leaves, the preview shows everything, and sites are pooled without patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit

from app.evaluation import aggregate, centres, logistic, metrics, validation
from app.evaluation.aggregate import LEAST_PATIENTS, SMALL, Aggregate
from app.evaluation.validation import Groups, PredictionTable


def site(count: int, *, shift: float = 0.0, slope: float = 1.0, seed: int = 0, rare: int = 3) -> PredictionTable:
    """Predictions of a site, with ``rare`` patients of a rare level, of whom the first two have no value."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1.0, 1.2, count)
    outcomes = (rng.random(count) < expit(slope * odds + shift)).astype(np.float64)
    levels = np.array(["east", "west"])[rng.integers(0, 2, count)]
    levels[:rare] = "rare"
    levels[:2] = ""
    return PredictionTable(
        expit(odds),
        outcomes,
        dates=np.array(["2024-03-01"] * (count - 1) + ["2026-01-01"]),
        groups={"ward": Groups(levels, ("east", "west", "rare", ""))},
        characteristics={"ward": [level or None for level in levels], "lab": [None, *([1.0] * (count - 1))]},
    )


@pytest.mark.parametrize("count", [120, 400, 3000])
@pytest.mark.parametrize("rare", [3, 30, 70])
def test_no_cell_is_small_and_no_difference_of_cells_is(count: int, rare: int) -> None:
    found = aggregate.of(site(count, rare=rare), "north", "model", with_subgroups=True)
    for cells in (found.calibration, *found.subgroups.values()):
        assert cells
        assert sum(cell.patients for cell in cells) == found.patients == count
        assert sum(cell.events for cell in cells) == found.events
        for cell in cells:
            assert cell.patients >= LEAST_PATIENTS
            assert min(cell.events, cell.patients - cell.events) >= SMALL
    assert found.missing == {"ward": None, "lab": None}
    assert found.years == (2024, 2026)


def test_missing_values_beside_a_merged_cell_are_not_counted() -> None:
    """Else the cell "other levels" minus the missing values would be the three patients of the rare level."""
    table = site(600, rare=63)
    levels = np.array(table.groups["ward"].levels)
    levels[:60], levels[60:63] = "", "rare"
    table = replace(
        table,
        groups={"ward": Groups(levels, ("east", "west", "rare", ""))},
        characteristics={"ward": [level or None for level in levels]},
    )
    found = aggregate.of(table, "north", "model", with_subgroups=True)
    assert {cell.name: cell.patients for cell in found.subgroups["ward"]}["other levels"] == 63
    assert found.missing["ward"] is None
    alone = aggregate.of(table, "north", "model")
    assert not alone.subgroups
    assert alone.missing["ward"] == 60


def test_estimates_are_those_of_the_patients() -> None:
    table = site(500, slope=0.8)
    labels = table.outcomes.astype(np.int64)
    found = aggregate.of(table, "north", "model")
    scores = validation.scores("north", labels, table.probabilities)
    assert found.auc.value == pytest.approx(metrics.auc(labels, table.probabilities))
    assert found.auc.error == pytest.approx(scores.errors[0])
    assert found.observed_expected.error == pytest.approx(scores.errors[1])
    assert found.slope is not None
    assert found.slope.value == pytest.approx(metrics.calibration_slope(labels, table.probabilities).value)
    assert found.slope.error == pytest.approx(scores.errors[2])


def test_unknown_outcomes_are_counted_from_five_on() -> None:
    table = site(300)
    for hidden, shown in ((4, None), (5, 5)):
        outcomes = table.outcomes.copy()
        outcomes[10 : 10 + hidden] = np.nan
        assert aggregate.of(replace(table, outcomes=outcomes), "north", "model").outcome_unknown == shown


@pytest.mark.parametrize("count", [LEAST_PATIENTS - 1, 30])
def test_few_patients_are_refused_with_the_number_that_is_needed(count: int) -> None:
    with pytest.raises(ValueError, match="needed are 50, and 10 of each outcome"):
        aggregate.of(site(count), "north", "model")


def test_few_events_are_refused() -> None:
    table = site(200)
    with pytest.raises(ValueError, match="10 of each outcome"):
        aggregate.of(replace(table, outcomes=(np.arange(200) < 9).astype(float)), "north", "model")


def test_preview_shows_every_number_and_name_of_the_document() -> None:
    document = aggregate.of(site(400, rare=60), "north", "model@1.0.0", "sha256:ab", with_subgroups=True).model_dump(
        mode="json"
    )
    text = aggregate.preview(document)

    def leaves(value: object) -> list[object]:
        if isinstance(value, dict):
            return [leaf for inner in value.values() for leaf in leaves(inner)]
        return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list) else [value]

    found = [leaf for leaf in leaves(document) if leaf is not None]
    assert len(found) > 40
    for leaf in found:
        assert (f"{leaf:.6g}" if isinstance(leaf, float) else str(leaf)) in text


def test_bundle_with_a_small_cell_is_refused_when_it_is_read() -> None:
    document = aggregate.of(site(400), "north", "model").model_dump(mode="json")
    document["calibration"][0]["events"] = 4
    with pytest.raises(ValidationError):
        Aggregate.model_validate(document)


def test_bundle_whose_cells_do_not_sum_up_is_refused_when_it_is_read() -> None:
    document = aggregate.of(site(400), "north", "model").model_dump(mode="json")
    document["calibration"][0]["patients"] += 1
    with pytest.raises(ValidationError, match="do not sum up"):
        Aggregate.model_validate(document)


def bundles(count: int = 8, patients: int = 400) -> list[Aggregate]:
    shifts = np.random.default_rng(7).normal(0.4, 0.3, count)
    return [aggregate.of(site(patients, shift=s, seed=n), f"site-{n}", "model") for n, s in enumerate(shifts)]


def test_pooled_sites_equal_the_pooling_of_a_validation_with_patients() -> None:
    tables = [site(400, shift=s, seed=n) for n, s in enumerate([0.0, 0.3, 0.6, 0.1, -0.2])]
    scores = [validation.scores(str(n), t.outcomes.astype(np.int64), t.probabilities) for n, t in enumerate(tables)]
    expected = {one.measure: one for one in validation.pooled_over(scores)}
    found = {
        one.measure: one for one in centres.pool([aggregate.of(t, f"s{n}", "m") for n, t in enumerate(tables)]).pooled
    }
    assert set(found) == set(expected) == {"AUC", "O/E", "calibration slope"}
    for name, one in found.items():
        assert one.mean.value == pytest.approx(expected[name].mean.value, abs=1e-4)
        assert one.prediction == pytest.approx(expected[name].prediction, abs=2e-3)


def test_heterogeneity_is_found_where_it_is() -> None:
    found = {one.measure: one for one in centres.pool(bundles()).pooled}
    assert found["O/E"].p_equal < 0.001
    assert found["O/E"].i2 > 0.5
    assert found["AUC"].p_equal > 0.05


def test_recalibration_of_the_others_gains_at_the_site_what_the_patients_show() -> None:
    """The gain to second order is near that on the patients of the site that was left out."""
    shifts = np.random.default_rng(7).normal(0.4, 0.3, 8)
    for place, one in enumerate(centres.pool(bundles()).left_out):
        table = site(400, shift=shifts[place], seed=place)
        x, labels = logistic.log_odds(table.probabilities), table.outcomes.astype(np.int64)
        moved = logistic.log_likelihood(labels, one.intercept + one.slope * x)
        gain = (moved - logistic.log_likelihood(labels, x)) / len(labels)
        assert one.gain == pytest.approx(gain, abs=0.02)  # shifts of 0.4 on average are far from the start


def test_site_that_differs_lies_outside_of_what_the_others_predict() -> None:
    even = [aggregate.of(site(800, seed=n), f"site-{n}", "model") for n in range(6)]
    odd = aggregate.of(site(800, shift=2.0, seed=9), "odd", "model")
    found = {one.site: one for one in centres.pool([*even, odd]).left_out}
    assert found["odd"].inside[1] is False
    assert all(one.inside[0] for one in found.values())


def test_same_site_and_other_predictors_are_not_pooled() -> None:
    first = bundles(3)
    with pytest.raises(ValueError, match="same site"):
        centres.pool([*first, first[0]])
    other = first[1].model_copy(update={"predictor_digest": "sha256:other"})
    with pytest.raises(ValueError, match="different predictors"):
        centres.pool([first[0], other, first[2]])


def test_two_sites_are_listed_and_not_pooled() -> None:
    found = centres.pool(bundles(2))
    assert len(found.centres) == 2
    assert not found.pooled
    assert found.left_out[0].predictions == (None, None, None)
