"""Performance of a model by modality: present or absent as sent, and with a modality removed from every study.

Design notes:
- Development studies are scored by the fold that was not trained on them, test studies by the ensemble. Their
  probabilities are pooled after the calibration of each (``patient_files.py``).
- A removed modality has empty channels. Without perfusion maps, the perfusion numbers that were computed from them are
  missing too; those of the record stay. If the test part is large, it alone is scored without a modality, because each
  study needs a pass through the whole network.
- A group with fewer than five studies of either outcome is listed without scores, and its number is not shown if it is
  below five.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from app.evaluation.clusters import Clusters, of_patients
from app.evaluation.metrics import Array, Estimate, Labels, auc_estimate, brier_estimate
from app.evaluation.subgroups import MIN_EVENTS
from app.inference import defaults
from app.training import tasks
from app.training.dataset import Dataset, Vectors
from app.training.experiment import CHANNEL_NAMES, LOGISTIC, NETWORKS, ExperimentResult
from app.training.patient_files import fold_rules
from app.training.results_table import ModelScores
from app.training.tasks import TrainingContext

LARGE_TEST = 1000
"""Test studies from which on a removed modality is measured on the test part alone."""

MODALITIES = {"NCCT": ("ncct",), "CTA": ("cta", "vessels"), "perfusion maps": ("tmax", "rcbf")}


@dataclass(frozen=True)
class ModalityRow:
    """Scores of one group of studies; the estimates are None if one outcome is too rare."""

    name: str
    studies: int
    events: int
    auc: Estimate | None
    brier: Estimate | None


def measure(result: ExperimentResult, name: str, data: Dataset, device: torch.device) -> list[ModalityRow]:
    """Rows of the model ``name``, fitted on one split of the n studies of ``data``."""
    rows = np.sort(np.concatenate([result.split.develop, result.split.test]))
    whole = _probabilities(result, result.scores[name], result.scores[name], data.labels)
    lines = [_row("all studies, as sent", data.labels[rows], whole[rows], of_patients(data.groups[rows]))]
    for modality, channels in MODALITIES.items():
        columns = [CHANNEL_NAMES.index(channel) for channel in channels]
        present = np.asarray(data.presence[:, columns].any(axis=1))
        for state, mask in (("present", present), ("absent", ~present)):
            chosen = rows[mask[rows]]
            patients = of_patients(data.groups[chosen])
            lines.append(_row(f"{modality} {state}", data.labels[chosen], whole[chosen], patients))
    if name == LOGISTIC:
        return lines
    large = len(result.split.test) >= LARGE_TEST
    scored, which = (result.split.test, "the test part") if large else (rows, "all")
    if large:
        lines.append(_row("test part, as sent", data.labels[scored], whole[scored], of_patients(data.groups[scored])))
    for modality, channels in MODALITIES.items():
        if set(channels) & set(NETWORKS[name][1]):
            without = _without(result, name, data, channels, device, test_only=large)
            own = _probabilities(result, result.scores[name], without, data.labels)
            patients = of_patients(data.groups[scored])
            lines.append(_row(f"{modality} removed from {which}", data.labels[scored], own[scored], patients))
    return lines


def markdown(lines: Sequence[ModalityRow]) -> str:
    """The rows as a Markdown table."""
    table = [
        "| images | studies | with the outcome | AUC (95 % interval) | Brier (95 % interval) |",
        "|---|---|---|---|---|",
    ]
    for line in lines:
        if line.auc is None:
            count = f"<{MIN_EVENTS}" if 0 < line.studies < MIN_EVENTS else str(line.studies)
            table.append(f"| {line.name} | {count} | {'too few of one outcome' if line.studies else 'none'} | | |")
        else:
            table.append(f"| {line.name} | {line.studies} | {line.events} | {line.auc} | {line.brier} |")
    return "\n".join(table)


def section(lines: Sequence[ModalityRow]) -> list[str]:
    """Heading, note and table for a report; empty without rows."""
    if not lines:
        return []
    note = (
        "Development patients by the fold that was not trained on them, test patients by the ensemble. Removed: the "
        "modality is taken away from every study of the row, as if it had not been sent."
    )
    return ["## By modality", note, markdown(lines)]


def _row(name: str, labels: Labels, probabilities: Array, clusters: Clusters) -> ModalityRow:
    events = int(labels.sum())
    if min(events, len(labels) - events) < MIN_EVENTS:
        return ModalityRow(name, len(labels), events, None, None)
    area = auc_estimate(labels, probabilities, clusters=clusters)
    score = brier_estimate(labels, probabilities, clusters=clusters)
    return ModalityRow(name, len(labels), events, area, score)


def _probabilities(result: ExperimentResult, learnt: ModelScores, scores: ModelScores, labels: Labels) -> Array:
    """Probabilities (n,) by the rules of ``learnt``: out of fold for development studies, else of the ensemble."""
    split = result.split
    probabilities = np.full(len(labels), np.nan)
    for _, own in split.folds:
        probabilities[own] = fold_rules(learnt, labels, split, own).probabilities(scores.out_of_fold[own])
    probabilities[split.test] = learnt.rules(labels, split.develop).probabilities(scores.mean[split.test])
    return probabilities


def _without(
    result: ExperimentResult,
    name: str,
    data: Dataset,
    channels: Sequence[str],
    device: torch.device,
    *,
    test_only: bool,
) -> ModelScores:
    """Logits of the network ``name`` on studies without ``channels``; NaN out of fold with ``test_only``."""
    visible = NETWORKS[name][1]
    kept = [CHANNEL_NAMES.index(channel) for channel in visible if channel not in channels]
    perfusion = [None] * len(data) if "tmax" in channels else data.perfusion
    poorer = replace(data.only(kept), perfusion=perfusion)
    networks = result.networks[name]
    context = TrainingContext(
        poorer,
        Vectors.of(poorer, result.spec),
        defaults.GRID,
        CHANNEL_NAMES,
        device,
        reference=result.reference,
        left=result.left,
    )
    out_of_fold = np.full(len(data), np.nan)
    each = np.full((len(networks), len(data)), np.nan)
    for network in networks:
        network.to(device)
    if not test_only:
        for network, (_, own) in zip(networks, result.split.folds, strict=True):
            out_of_fold[own] = tasks.logits(network, context, own)
    each[:, result.split.test] = tasks.ensemble_logits(networks, context, result.split.test)
    for network in networks:
        network.to("cpu")
    return ModelScores(out_of_fold, each, ())
