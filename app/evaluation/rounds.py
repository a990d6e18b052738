"""Documents of a federated fit, and what a site and the coordinator compute from them.

Design notes:
- A plan is fixed at the start. Each round carries it, so that one file is all that a site needs.
- The state of the coordinator is a function of the rounds and answers: ``replay`` computes it again from them. A
  coordinator that is killed loses nothing.
- The answer of a site depends on the round and its data only, so a site that is killed gives the same answer again.
- A site that is left out stays out. The fit is then that of the sites that are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from app.core.schema import FrozenModel
from app.evaluation import aggregate, federated, logistic, recalibration
from app.evaluation.aggregate import LEAST_EVENTS, LEAST_PATIENTS, MANY, SITE_PATTERN, Number, Text
from app.evaluation.federated import Contribution, Fit
from app.evaluation.metrics import Array, Labels
from app.evaluation.recalibration import Recalibration

Site = Annotated[str, Field(pattern=SITE_PATTERN)]
LARGEST_FIT = 256
"""Parameters of one fit; its answer holds about half of their square."""


class Kind(StrEnum):
    """What is fitted: a recalibration (intercept; intercept and slope), or the heads of the folds of a version."""

    RECALIBRATION = "recalibration"
    HEADS = "heads"


class Plan(FrozenModel):
    """A federated fit as all sites agree on it.

    Attributes:
        predictor: Version as NAME@VERSION, or another name.
        sites: Sites that take part.
        quorum: Sites without which there is no result.
        least_patients: Patients that each site needs.
        rounds: Most rounds.
        ridge: Penalty of half the squared parameters, without the intercept.
        columns: Parameters of each fit; the first is the intercept.
        nonce: Random text, so that no two plans are equal.
    """

    kind: Kind
    predictor: Text
    predictor_digest: Text = ""
    sites: tuple[Site, ...] = Field(min_length=2, max_length=1000)
    quorum: int = Field(ge=2)
    least_patients: int = Field(default=LEAST_PATIENTS, ge=LEAST_PATIENTS, le=MANY)
    rounds: int = Field(default=10, ge=1, le=50)
    ridge: float = Field(default=0.0, ge=0, le=1e9)
    columns: tuple[Annotated[int, Field(ge=1, le=LARGEST_FIT)], ...] = Field(min_length=1, max_length=64)
    nonce: Text

    @model_validator(mode="after")
    def _sites_differ(self) -> Self:
        if len({site.casefold() for site in self.sites}) < len(self.sites):
            raise ValueError("a site is named twice")
        if self.quorum > len(self.sites):
            raise ValueError("the quorum is larger than the number of sites")
        if self.kind is Kind.RECALIBRATION and self.columns != (1, 2):
            raise ValueError("a recalibration has two fits, of 1 and 2 parameters")
        return self

    def start(self) -> list[Fit]:
        """Fits before the first round: the predictions as they are."""
        if self.kind is Kind.RECALIBRATION:
            return [Fit.start([0.0]), Fit.start([0.0, 1.0])]
        return [Fit.start([0.0] * size) for size in self.columns]

    def penalty(self, size: int) -> Array:
        """Ridge penalty of a fit with this number of parameters."""
        if self.kind is Kind.RECALIBRATION:
            return np.zeros(size)
        return np.concatenate([[0.0], np.full(size - 1, self.ridge)])


class Round(FrozenModel):
    """One round: the parameters of each fit; no parameters: this fit has ended."""

    schema_version: Literal[1] = 1
    plan: Plan
    number: int = Field(ge=1, le=50)
    left_out: tuple[Site, ...] = ()
    parameters: tuple[tuple[Number, ...], ...]

    @model_validator(mode="after")
    def _fits_the_plan(self) -> Self:
        sizes = zip(self.parameters, self.plan.columns, strict=False)
        if len(self.parameters) != len(self.plan.columns) or any(own and len(own) != size for own, size in sizes):
            raise ValueError("the parameters do not fit the plan")
        if self.number > self.plan.rounds or not set(self.left_out) <= set(self.plan.sites):
            raise ValueError("the round does not fit the plan")
        return self

    @property
    def sites(self) -> list[str]:
        """Sites that answer."""
        return [site for site in self.plan.sites if site not in self.left_out]


class Sums(FrozenModel):
    """Sums of one fit; ``information`` is the upper triangle of the matrix, row by row."""

    log_likelihood: Number
    gradient: tuple[Number, ...] = Field(max_length=LARGEST_FIT)
    information: tuple[Number, ...] = Field(max_length=LARGEST_FIT * (LARGEST_FIT + 1) // 2)


class Answer(FrozenModel):
    """Answer of one site to one round; no sums: this fit has ended."""

    schema_version: Literal[1] = 1
    round_digest: Text
    number: int = Field(ge=1, le=50)
    site: Site
    patients: int = Field(ge=LEAST_PATIENTS, le=MANY)
    events: int = Field(ge=LEAST_EVENTS, le=MANY)
    sums: tuple[Sums | None, ...] = Field(max_length=64)


class FitResult(FrozenModel):
    """Estimate of one fit, its covariance as the upper triangle, and its log-likelihood without the penalty."""

    parameters: tuple[Number, ...]
    covariance: tuple[Number, ...]
    log_likelihood: Number


class Result(FrozenModel):
    """Result of a plan.

    ``as_predicted`` is the log-likelihood at the start of the last fit: of the predictions as they are, or of its fold.
    """

    schema_version: Literal[1] = 1
    plan: Plan
    rounds: int
    sites: tuple[Site, ...]
    left_out: tuple[Site, ...]
    patients: int
    events: int
    as_predicted: Number
    fits: tuple[FitResult, ...]


@dataclass(frozen=True)
class SitePatients:
    """Patients (n) of one site as the fits of a plan see them: ``designs`` (n, k) and ``offsets`` (n,) of each fit.

    ``values`` are the unknown values of one patient, see ``federated.least_patients``.
    """

    labels: Labels
    designs: Sequence[Array]
    offsets: Sequence[Array]
    values: int


@dataclass(frozen=True)
class State:
    """State of the coordinator after some rounds: the fits, and the sites whose sums they are."""

    fits: Sequence[Fit]
    sites: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether every fit has ended."""
        return all(fit.done for fit in self.fits)


def recalibration_patients(labels: Labels, log_odds: Array) -> SitePatients:
    """Patients (n,) of a recalibration, with their predicted log-odds (n,)."""
    ones = np.ones((len(labels), 1))
    zero = np.zeros(len(labels))
    return SitePatients(labels, [ones, np.column_stack([ones, log_odds])], [log_odds, zero], 2)


def head_patients(labels: Labels, features: Array, log_odds: Array) -> SitePatients:
    """Patients (n,) of a fit of heads: ``features`` (folds, n, c) and calibrated ``log_odds`` (folds, n)."""
    ones = np.ones((len(labels), 1))
    designs = [np.hstack([ones, own]) for own in features]
    shared = all(np.array_equal(features[0], own) for own in features[1:])
    return SitePatients(
        labels, designs, list(log_odds), head_values(features.shape[0], features.shape[2], shared=shared)
    )


def head_values(folds: int, size: int, *, shared: bool) -> int:
    """Unknown values of one patient in a fit of heads with this number of inputs, which the folds may share."""
    return 1 + (size if shared else folds * size)


def sums_of(found: Contribution) -> Sums:
    """The document of sums."""
    places = np.triu_indices(len(found.gradient))
    return Sums(
        log_likelihood=found.log_likelihood,
        gradient=tuple(found.gradient.tolist()),
        information=tuple(found.information[places].tolist()),
    )


def answer(given: Round, digest: str, site: str, patients: SitePatients) -> Answer:
    """Sums of a site at the parameters of a round.

    Args:
        given: The round.
        digest: Its digest.
        site: Name of the site.
        patients: Its patients.

    Raises:
        ValueError: The site does not take part, has too few patients, or the parameters single out patients.
    """
    if site not in given.sites:
        raise ValueError(f"{site} does not take part in this round")
    labels, plan = patients.labels, given.plan
    needed = max(plan.least_patients, federated.least_patients(plan.columns, patients.values, plan.rounds))
    aggregate.check_size(labels, needed, "for this plan")
    sums = [
        sums_of(federated.contribution(design, labels, offset, np.asarray(parameters))) if parameters else None
        for design, offset, parameters in zip(patients.designs, patients.offsets, given.parameters, strict=True)
    ]
    return Answer(
        round_digest=digest,
        number=given.number,
        site=site,
        patients=len(labels),
        events=int(labels.sum()),
        sums=tuple(sums),
    )


def first_round(plan: Plan) -> Round:
    """The first round of a plan."""
    return Round(plan=plan, number=1, parameters=tuple(tuple(fit.parameters.tolist()) for fit in plan.start()))


def replay(rounds: Sequence[tuple[Round, Mapping[str, Answer]]], left_out: Sequence[str]) -> State:
    """State after some rounds, each with the answers of its sites.

    Args:
        rounds: The rounds from the first on.
        left_out: Sites that are left out after the last round.

    Raises:
        ValueError: The answers of a site do not fit each other or the plan, or the sums have no estimate.
    """
    plan = rounds[0][0].plan
    state = State(plan.start(), plan.sites)
    after = [*(given.left_out for given, _ in rounds[1:]), tuple(left_out)]
    for (given, answers), gone in zip(rounds, after, strict=True):
        sites = tuple(site for site in plan.sites if site not in gone)
        fits = state.fits
        if sites != state.sites:  # another sum: the values of the sums before cannot be compared
            fits = [replace(fit, value=None, done=False) for fit in fits]
        fits = [
            _advanced(plan, fit, [answers[site].sums[place] for site in sites]) if given.parameters[place] else fit
            for place, fit in enumerate(fits)
        ]
        state = State(fits, sites)
    _check_counts([answers for _, answers in rounds])
    return state


def next_round(before: Round, state: State) -> Round:
    """The round after ``before``.

    Raises:
        ValueError: The plan allows no more rounds.
    """
    if before.number >= before.plan.rounds:
        raise ValueError(f"{before.number} rounds did not suffice, and the plan allows no more")
    return Round(
        plan=before.plan,
        number=before.number + 1,
        left_out=tuple(site for site in before.plan.sites if site not in state.sites),
        parameters=tuple(() if fit.done else tuple(fit.parameters.tolist()) for fit in state.fits),
    )


def result(rounds: Sequence[tuple[Round, Mapping[str, Answer]]], state: State) -> Result:
    """Result of the rounds, in whose state every fit has ended."""
    plan, first = rounds[0][0].plan, rounds[0][1]
    at_start = [one for site in state.sites if (one := first[site].sums[-1]) is not None]
    fits = []
    for fit in state.fits:
        assert fit.value is not None
        size = len(fit.base)
        penalised = float((plan.penalty(size) * fit.base**2).sum()) / 2
        covariance = fit.covariance[np.triu_indices(size)]
        fits.append(
            FitResult(
                parameters=tuple(fit.parameters.tolist()),
                covariance=tuple(covariance.tolist()),
                log_likelihood=fit.value + penalised,
            )
        )
    return Result(
        plan=plan,
        rounds=len(rounds),
        sites=state.sites,
        left_out=tuple(site for site in plan.sites if site not in state.sites),
        patients=sum(first[site].patients for site in state.sites),
        events=sum(first[site].events for site in state.sites),
        as_predicted=sum(one.log_likelihood for one in at_start),
        fits=tuple(fits),
    )


def recalibration_of(found: Result) -> Recalibration:
    """Closed test and shrinkage of a federated recalibration, as ``recalibrate`` of all patients gives them.

    Raises:
        ValueError: The sites have too few patients of one outcome, or the result is of another kind.
    """
    if found.plan.kind is not Kind.RECALIBRATION:
        raise ValueError("the result is no recalibration")
    one, both = (
        logistic.LogisticFit(np.asarray(fit.parameters), square(fit.covariance), fit.log_likelihood, converged=True)
        for fit in found.fits
    )
    return recalibration.of_fits(found.as_predicted, one, both, found.patients, found.events)


def square(triangle: Sequence[float]) -> Array:
    """Symmetric matrix (k, k) of an upper triangle.

    Raises:
        ValueError: The numbers are no triangle.
    """
    size = int((np.sqrt(8 * len(triangle) + 1) - 1) / 2)
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size)] = triangle
    return matrix + np.triu(matrix, 1).T


def _advanced(plan: Plan, fit: Fit, sums: Sequence[Sums | None]) -> Fit:
    size = len(fit.parameters)
    parts = []
    for one in sums:
        if one is None or len(one.gradient) != size or len(one.information) != size * (size + 1) // 2:
            raise ValueError("the sums of an answer do not fit the plan")
        parts.append(Contribution(one.log_likelihood, np.asarray(one.gradient), square(one.information)))
    return federated.advance(fit, federated.total(parts), plan.penalty(size))


def _check_counts(answers: Sequence[Mapping[str, Answer]]) -> None:
    """Check that each site answered every round with the same patients."""
    counts: dict[str, tuple[int, int]] = {}
    for one in (one for each in answers for one in each.values()):
        if counts.setdefault(one.site, (one.patients, one.events)) != (one.patients, one.events):
            raise ValueError(f"the patients of {one.site} changed between the rounds; start again with one data set")
