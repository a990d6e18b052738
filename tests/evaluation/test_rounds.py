"""Federated fits: the same estimate as on one table, also after halved steps and without a site that was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy.special import expit

from app.evaluation import federated, logistic, recalibration, rounds
from app.evaluation.federated import Fit
from app.evaluation.rounds import Answer, Kind, Plan, Result, Round, SitePatients

NAMES = ("a", "b", "c", "d", "e")
EXACT = 1e-8


def patients(count: int, seed: int, *, shift: float = 0.6, slope: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1.0, 1.2, count)
    return (rng.random(count) < expit(slope * odds + shift)).astype(np.int64), odds


def plan(**given: object) -> Plan:
    defaults: dict[str, object] = {"kind": Kind.RECALIBRATION, "predictor": "m", "sites": NAMES, "quorum": 4}
    return Plan.model_validate({**defaults, "columns": (1, 2), "nonce": "x", **given})


def run(own: Plan, sites: Mapping[str, SitePatients], gone: Mapping[int, Sequence[str]] = {}) -> Result:
    """Run the rounds; ``gone`` are the sites that do not answer any more from a round on."""
    given, played = rounds.first_round(own), []
    left_out: list[str] = []
    while True:
        left_out += gone.get(given.number, [])
        answers: dict[str, Answer] = {
            site: rounds.answer(given, "digest", site, sites[site]) for site in given.sites if site not in left_out
        }
        played.append((given, answers))
        state = rounds.replay(played, left_out)
        if state.done:
            return rounds.result(played, state)
        given = rounds.next_round(given, state)


def joined(names: Sequence[str], sizes: Sequence[int] = (90, 150, 60, 300, 120)) -> tuple[np.ndarray, np.ndarray]:
    parts = [patients(size, seed) for seed, (size, name) in enumerate(zip(sizes, NAMES, strict=True)) if name in names]
    return np.concatenate([labels for labels, _ in parts]), np.concatenate([odds for _, odds in parts])


def recalibration_sites(sizes: Sequence[int] = (90, 150, 60, 300, 120)) -> dict[str, SitePatients]:
    return {
        name: rounds.recalibration_patients(*patients(size, seed))
        for seed, (name, size) in enumerate(zip(NAMES, sizes, strict=True))
    }


def centralised(labels: np.ndarray, odds: np.ndarray) -> tuple[logistic.LogisticFit, logistic.LogisticFit]:
    ones = np.ones((len(odds), 1))
    return logistic.fit(ones, labels, offset=odds), logistic.fit(np.column_stack([ones, odds]), labels)


def test_federated_recalibration_equals_that_of_all_patients() -> None:
    found = run(plan(), recalibration_sites())
    labels, odds = joined(NAMES)
    one, both = centralised(labels, odds)
    assert np.abs(np.subtract(found.fits[0].parameters, one.coefficients)).max() < EXACT
    assert np.abs(np.subtract(found.fits[1].parameters, both.coefficients)).max() < EXACT
    chosen = rounds.recalibration_of(found)
    expected = recalibration.recalibrate(labels, expit(odds))
    assert chosen.update is expected.update is recalibration.Update.BOTH
    for name in ("intercept", "slope", "shrinkage", "p_any", "p_slope"):
        assert getattr(chosen, name) == pytest.approx(getattr(expected, name), abs=EXACT)
    assert (found.patients, found.events) == (len(labels), labels.sum())


def test_site_that_is_left_out_in_a_later_round_leaves_no_trace_in_the_estimate() -> None:
    found = run(plan(), recalibration_sites(), {3: ["d"]})
    assert found.left_out == ("d",)
    labels, odds = joined(["a", "b", "c", "e"])
    _, both = centralised(labels, odds)
    assert np.abs(np.subtract(found.fits[1].parameters, both.coefficients)).max() < EXACT
    assert found.as_predicted == pytest.approx(logistic.log_likelihood(labels, odds))
    assert found.patients == len(labels)


def test_site_that_is_left_out_after_a_fit_had_ended_reopens_it() -> None:
    sites = recalibration_sites()
    last = run(plan(), sites).rounds
    found = run(plan(), sites, {last: ["d"]})
    one, both = centralised(*joined(["a", "b", "c", "e"]))
    assert np.abs(np.subtract(found.fits[0].parameters, one.coefficients)).max() < EXACT
    assert np.abs(np.subtract(found.fits[1].parameters, both.coefficients)).max() < EXACT


def test_federated_heads_equal_the_penalised_fit_of_all_patients() -> None:
    rng = np.random.default_rng(3)
    sites, features = {}, []
    for name in NAMES[:3]:
        own, odds = rng.normal(size=(2, 700, 6)), rng.normal(-1, 0.5, (2, 700))
        labels = (rng.random(700) < expit(odds[0] + own[0] @ [0.5, -0.4, 0.2, 0, 0, 0])).astype(np.int64)
        sites[name] = rounds.head_patients(labels, own, odds)
        features.append((labels, own, odds))
    found = run(plan(kind=Kind.HEADS, sites=NAMES[:3], quorum=3, columns=(7, 7), ridge=10.0), sites)
    labels = np.concatenate([one[0] for one in features])
    for fold, fit in enumerate(found.fits):
        design = np.hstack([np.ones((2100, 1)), np.concatenate([one[1][fold] for one in features])])
        offset = np.concatenate([one[2][fold] for one in features])
        ridge = np.array([0.0] + [10.0] * 6)
        expected = logistic.fit(design, labels, offset=offset, ridge=ridge)
        assert np.abs(np.subtract(fit.parameters, expected.coefficients)).max() < EXACT


def test_step_that_lowers_the_likelihood_is_halved() -> None:
    """From a far start Newton's first step overshoots; the fit still ends at the estimate."""
    labels, odds = joined(NAMES)
    design, penalty = np.column_stack([np.ones_like(odds), odds]), np.zeros(2)
    fit, halved = Fit.start([1.0, 2.5]), 0
    for _ in range(60):
        before = fit.base
        fit = federated.advance(fit, federated.contribution(design, labels, 0 * odds, fit.parameters), penalty)
        halved += fit.base is before
        if fit.done:
            break
    assert halved >= 1
    assert np.abs(fit.parameters - centralised(labels, odds)[1].coefficients).max() < EXACT


def test_separated_outcomes_have_no_estimate() -> None:
    odds = np.linspace(-2, 2, 100)
    sites = {name: rounds.recalibration_patients((odds > 0).astype(np.int64), odds) for name in NAMES}
    with pytest.raises(ValueError, match=r"no estimate|patients carry the sums|more"):
        run(plan(rounds=10), sites)


def test_round_that_singles_out_patients_is_refused() -> None:
    """With a steep slope, the weights p (1 - p) pick the few patients near one prediction."""
    sites = recalibration_sites()
    fair = rounds.first_round(plan())
    rounds.answer(fair, "digest", "a", sites["a"])
    steep = fair.model_copy(update={"parameters": ((), (20.0, 25.0))})
    with pytest.raises(ValueError, match="single patients"):
        rounds.answer(steep, "digest", "a", sites["a"])


def test_site_with_too_few_patients_for_the_numbers_of_a_plan_is_refused() -> None:
    """Heads of 41 parameters: a round gives 903 numbers, and a patient has 41 unknown values."""
    own = plan(kind=Kind.HEADS, columns=(41,), rounds=10)
    needed = federated.least_patients((41,), 41, 10)
    assert needed == 221
    rng = np.random.default_rng(1)
    for count, refused in ((needed - 1, True), (needed, False)):
        labels = (np.arange(count) % 3 == 0).astype(np.int64)
        site = rounds.head_patients(labels, rng.normal(size=(1, count, 40)), np.zeros((1, count)))
        if refused:
            with pytest.raises(ValueError, match="needed are 221"):
                rounds.answer(rounds.first_round(own), "digest", "a", site)
        else:
            rounds.answer(rounds.first_round(own), "digest", "a", site)


def test_few_events_of_all_sites_give_no_closed_test() -> None:
    sites = {
        name: rounds.recalibration_patients(*patients(60, seed, shift=-0.8)) for seed, name in enumerate(NAMES[:2])
    }
    found = run(plan(sites=NAMES[:2], quorum=2), sites)
    with pytest.raises(ValueError, match=r"needs 50: \d+ more"):
        rounds.recalibration_of(found)


def test_site_whose_patients_change_between_the_rounds_is_refused() -> None:
    sites = recalibration_sites()
    first = rounds.first_round(plan())
    answers = {site: rounds.answer(first, "d", site, sites[site]) for site in NAMES}
    second = rounds.next_round(first, rounds.replay([(first, answers)], ()))
    others = {site: rounds.answer(second, "d", site, sites[site]) for site in NAMES}
    others["b"] = others["b"].model_copy(update={"patients": others["b"].patients + 1})
    with pytest.raises(ValueError, match="patients of b changed"):
        rounds.replay([(first, answers), (second, others)], ())


def test_sums_of_another_size_are_refused() -> None:
    sites = recalibration_sites()
    first = rounds.first_round(plan())
    answers = {site: rounds.answer(first, "d", site, sites[site]) for site in NAMES}
    wrong = answers["c"].sums[0]
    answers["c"] = answers["c"].model_copy(update={"sums": (wrong, wrong)})
    with pytest.raises(ValueError, match="do not fit the plan"):
        rounds.replay([(first, answers)], ())


def test_rounds_end_with_those_of_the_plan() -> None:
    with pytest.raises(ValueError, match="allows no more"):
        run(plan(rounds=2), recalibration_sites())


@pytest.mark.parametrize(
    "wrong", [{"sites": ("a", "A")}, {"quorum": 6}, {"columns": (1, 3)}, {"sites": ("a",)}, {"least_patients": 49}]
)
def test_plan_that_cannot_be_kept_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        plan(**wrong)


def test_round_must_fit_its_plan() -> None:
    given = rounds.first_round(plan()).model_dump()
    for wrong in ({"parameters": ((0.0, 1.0), (0.0,))}, {"number": 11}, {"left_out": ("z",)}):
        with pytest.raises(ValueError, match="fit the plan"):
            Round.model_validate(given | wrong)
