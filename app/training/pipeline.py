"""``rlvo train`` from its arguments to a version: what is read, what is kept for a resumed run, what is written.

Notable choices:
- What a run needs to go on lies in ``.runs`` beside the cohort, under a digest of all that makes a difference: the same
  command finds its own checkpoints, another command never finds them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from app.evaluation.metrics import best_f1_threshold, probabilities_of
from app.inference import preprocess_cache
from app.network.daft import Network
from app.training import cohort, cross_validation, distributed, experiment, preprocess, pretrained, report
from app.training import splits as protocol
from app.training.dataset import Dataset
from app.training.errors import CohortFault
from app.training.options import PublishedModel, Validation
from app.training.preprocess import Filler
from app.training.progress import ProgressReporter
from app.training.results_table import ORACLE, markdown
from app.training.splits import Split
from app.training.trainer import Recipe

PROTOCOLS = {
    Validation.PAPER: "80/20 frozen, stratified by outcome and site; four folds; ensemble of the folds",
    Validation.DATES: "the latest fifth for the test; four folds of the others; ensemble of the folds",
    Validation.SITES: "each site left out in turn; four folds of the others; ensemble of the folds",
    Validation.NESTED: "repeated nested cross-validation: five test parts, four folds of the others; ensembles",
}
MANY = (Validation.SITES, Validation.NESTED)
TAILS = Recipe(epochs=8, batch=64, rate=6e-3, patience=8, l2_to_init=1e-4)


NAMES = {
    PublishedModel.DAFT: experiment.DAFT,
    PublishedModel.FILM: "imaging + clinical, FiLM",
    PublishedModel.CONCAT: "imaging + clinical, concatenation",
    PublishedModel.IMAGING: "all imaging",
    PublishedModel.LOGISTIC: experiment.LOGISTIC,
}


@dataclass(frozen=True)
class TrainConfig:
    """The arguments of ``rlvo train``."""

    cohort: Path
    out: Path | None
    trunk: Path | None
    phantoms: int
    epochs: int
    seed: int
    device: str
    quick: bool
    drop_unknown: bool
    model: PublishedModel = PublishedModel.DAFT
    validation: Validation = Validation.PAPER
    repeats: int = 5
    jobs: int = 1
    report: Path | None = None


def train(order: TrainConfig, board: ProgressReporter, fill: Filler | None = None) -> str:
    """Carry out the order; answers the table as Markdown ("" on all ranks but the first).

    :param fill: prepares studies elsewhere; by default ``order.jobs`` processes of this machine do
    :raises CohortFault: with everything that is wrong with the cohort
    """
    kind = "cuda" if order.device == "auto" and torch.cuda.is_available() else order.device.replace("auto", "cpu")
    with distributed.process_group(torch.device(kind)) as device:
        return _train(
            order,
            device,
            board if distributed.is_first_rank() else ProgressReporter(),
            fill or preprocess.by_processes(order.jobs),
        )


def _train(order: TrainConfig, device: torch.device, board: ProgressReporter, fill: Filler) -> str:
    if order.out is not None and order.out.exists():
        raise CohortFault([f"version {order.out.name} exists; versions never change: choose another"])
    if order.out is not None and order.validation in MANY:
        fault = f"the validation `{order.validation}` trains many ensembles, and none of them is the version"
        raise CohortFault([f"{fault}: leave out --out, and train the version by `paper` or `dates`"])
    studies = cohort.read(order.cohort, drop_unknown=order.drop_unknown)
    data = _prepared(studies, board, fill)
    digest = protocol.digest_of([study.patient for study in studies.studies], data.labels)
    folder = studies.folder / ".runs" / _key(order, digest)
    parts = _splits(order, data, studies)  # before anything is trained: faults come first
    taught, notes = _taught(order, device, board, folder)
    plan = _plan(order, data, studies, taught)
    # Under torchrun a fold is spread over the ranks, and folds come one after another.
    jobs = 1 if distributed.is_distributed() else order.jobs
    count = sum(len(split.folds) for splits in parts.values() for split in splits)
    epochs = count * len(plan.networks) * plan.recipe.epochs
    with board.stage("training", epochs) as advance:

        def compare(name: str, split: Split) -> experiment.ExperimentResult:
            place = folder / name
            if distributed.is_first_rank():
                protocol.freeze(place / "split.json", split, digest)
            return experiment.compare(
                plan, data, split, device, board, taught=taught, folder=place, shared=folder, jobs=jobs, advance=advance
            )

        if order.validation in MANY:
            found = cross_validation.run(
                parts, data.labels, lambda name, split: compare(name, split).scored, experiment.DAFT
            )
            return _validated(order, plan, data, found, folder) if distributed.is_first_rank() else ""
        (split,) = parts["all"]
        result = compare("", split)
    if not distributed.is_first_rank():
        return ""
    if order.out is not None:
        chosen = NAMES[order.model]
        told = [_command(order)] if chosen == experiment.LOGISTIC else [*notes, _command(order)]
        experiment.publish(plan, result, data, split, digest, order.out, chosen=chosen, notes=told)
    return _finished(order, data, result, split, folder)


def _command(order: TrainConfig) -> str:
    """What to type to get the version again, for its card."""
    options = {"--phantoms": order.phantoms, "--seed": order.seed, "--model": order.model.value}
    if order.validation is not Validation.PAPER:
        options["--validation"] = order.validation.value
    if order.trunk is not None:
        options["--trunk"] = f"{order.trunk.parent.name}/{order.trunk.name}"
    elif not order.phantoms:
        options |= {"--epochs": order.epochs}
    given = " ".join(f"{name} {value}" for name, value in options.items() if value)
    return f"Made by `rlvo train {order.cohort.name} {given}`."


def _prepared(studies: cohort.Cohort, board: ProgressReporter, fill: Filler) -> Dataset:
    """The cohort's arrays: prepared by the first rank, read by the others."""
    cache = studies.folder / ".prepared"
    if distributed.is_first_rank():
        with board.stage("preparing", len(studies.studies)) as advance:
            data = preprocess.dataset(studies, cache, lambda: advance(1), fill=fill)
    distributed.barrier()
    return data if distributed.is_first_rank() else preprocess.dataset(studies, cache)


def _plan(
    order: TrainConfig, data: Dataset, studies: cohort.Cohort, taught: Network | None
) -> experiment.ExperimentPlan:
    name, number = (order.out.parent.name, order.out.name) if order.out else ("untitled", "0.0.0")
    networks = tuple(experiment.NETWORKS)
    if order.quick:
        networks = tuple(model for model in networks if model == NAMES[order.model])
    return experiment.ExperimentPlan(
        name=name,
        version=number,
        data=_describe(data, order.cohort),
        target=studies.target,
        synthetic=data.oracle is not None,
        seed=order.seed,
        code_version=_code_version(),
        recipe=TAILS if taught else Recipe(epochs=order.epochs),
        networks=networks,
        protocol=PROTOCOLS[order.validation],
    )


def _finished(
    order: TrainConfig, data: Dataset, result: experiment.ExperimentResult, split: Split, folder: Path
) -> str:
    """The table, and the report of the test part."""
    chances, limits = {}, {}
    for name in dict.fromkeys((NAMES[order.model], experiment.DAFT, experiment.LOGISTIC, ORACLE)):
        if name in result.scored:
            scored = result.scored[name]
            learnt = scored.rules(data.labels, split.develop)
            line = learnt.calibration
            chances[name] = probabilities_of(scored.mean[split.test], line.slope, line.intercept)
            limits[name] = learnt.threshold.value
    if data.oracle is not None:
        chances[ORACLE] = data.oracle[split.test]
    text = markdown(result.rows, "DAFT")
    chosen = NAMES[order.model]
    place = report.write(
        order.report or folder / "report",
        f"{order.cohort.name}: the test part",
        [text],
        data,
        split.test,
        chances,
        chosen,
        limits[chosen],
    )
    return f"{text}\n\nFigures, decision curve and subgroups: {place}"


def _validated(
    order: TrainConfig,
    plan: experiment.ExperimentPlan,
    data: Dataset,
    found: cross_validation.CrossValidation,
    folder: Path,
) -> str:
    """The table over sites or repeats, and the report of all who were tested."""
    text = cross_validation.markdown(found, "DAFT")
    chosen = NAMES[order.model]
    labels = data.labels[found.tested]
    shown = dict.fromkeys((chosen, experiment.DAFT, experiment.LOGISTIC, ORACLE))
    chances = {name: found.chances[name] for name in shown if name in found.chances}
    place = report.write(
        order.report or folder / "report",
        f"{order.cohort.name}: {plan.protocol}",
        [text],
        data,
        found.tested,
        chances,
        chosen,
        best_f1_threshold(labels, chances[chosen]),
    )
    return f"{text}\n\nFigures, decision curve and subgroups: {place}"


def _splits(order: TrainConfig, data: Dataset, studies: cohort.Cohort) -> dict[str, list[Split]]:
    """By block, the splits that the validation asks for; the cohort's own folds where it has a ``fold`` column."""
    labels, groups, sites = data.labels, data.groups, data.sites
    match order.validation:
        case Validation.PAPER:
            return {"all": [_split(data, studies, order.seed)]}
        case Validation.DATES:
            undated = [f"row {study.row}, column date: missing" for study in studies.studies if not study.date]
            if undated:
                raise CohortFault(undated)
            dates = [study.date for study in studies.studies]
            return {"all": [protocol.by_date(labels, groups, sites, dates, order.seed)]}
        case Validation.SITES:
            return {site: [split] for site, split in protocol.by_site(labels, groups, sites, order.seed).items()}
        case Validation.NESTED:
            return protocol.nested(labels, groups, sites, order.seed, order.repeats)


def _split(data: Dataset, studies: cohort.Cohort, seed: int) -> protocol.Split:
    """The cohort's own folds where it has a ``fold`` column, else drawn ones."""
    own = np.array([study.fold for study in studies.studies])
    if own[0]:
        return protocol.given(own, data.labels)
    return protocol.split(data.labels, data.groups, data.sites, seed)


def _taught(
    order: TrainConfig, device: torch.device, board: ProgressReporter, folder: Path
) -> tuple[Network | None, list[str]]:
    """An image side that stays as it is, from a version or taught by phantoms; None for training end to end."""
    if order.trunk is not None:
        network, note = pretrained.of_version(order.trunk)
        return network, [note]
    if order.phantoms:
        network, note = pretrained.by_phantoms(order.phantoms, order.seed, device, folder, board)
        return network, [note]
    return None, []


def _describe(data: Dataset, path: Path) -> str:
    sites = len(set(data.sites.tolist()))
    kind = "Synthetic patients (phantoms)" if data.oracle is not None else "Patients"
    return f"{kind} of the cohort {path.stem}, {sites} site{'s' if sites > 1 else ''}"


def _code_version() -> str:
    try:
        return version("rlvo-service")
    except PackageNotFoundError:
        return ""


def _key(order: TrainConfig, digest: str) -> str:
    apart = ("jobs", "report", "out", "model")  # they change no number
    given = {name: str(value) for name, value in asdict(order).items() if name not in apart}
    made = given | {"cohort": digest, "layout": preprocess_cache.layout()}
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
