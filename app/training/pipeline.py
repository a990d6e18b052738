"""One training run from its arguments to a model version: seven stages, one module each, called in their order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from app.core.filesystem import locked_soon
from app.evaluation.clusters import of_patients
from app.evaluation.patient_groups import repeated_note
from app.network.ensemble import forbid_tf32, select_device
from app.training import (
    cohort,
    dicom_studies,
    distributed,
    input_checks,
    suspicious,
    training_overlap,
    unread_columns,
    variables,
)
from app.training.calibrate import calibrate
from app.training.dataset import Dataset
from app.training.errors import CohortFault
from app.training.evaluate import evaluate
from app.training.fit import fit
from app.training.options import TrainConfig
from app.training.own_variables import OwnColumns
from app.training.package import package
from app.training.preprocess import Filler, preprocess
from app.training.progress import ProgressReporter
from app.training.provenance import read_manifest
from app.training.split import check as check_split
from app.training.split import split


def run(config: TrainConfig, progress: ProgressReporter, fill: Filler | None = None) -> str:
    """Run all stages and return the results table as Markdown.

    ``fill`` prepares studies into the cache; by default ``config.jobs`` processes of this machine do. Under torchrun,
    only the first rank writes and reports; the other ranks return "".

    Raises:
        CohortFault: With every fault of the cohort, before anything is trained.
    """
    with distributed.process_group(_device(config.device)) as device:
        if not distributed.is_first_rank():
            progress = ProgressReporter()
        config.check()
        patients = cohort.read(
            config.cohort,
            drop_unknown=config.drop_unknown,
            target=config.target,
            rules=config.columns,
            date_format=config.date_format,
            own=OwnColumns(config.own_variables),
        )
        check_split(patients, config)  # before the images are prepared, which can take hours
        patients = dicom_studies.convert(patients, config.dicom, progress, jobs=config.jobs)
        suspicions = suspicious.check(patients, config.accept, accept_images=config.accept_flags)
        variables.select(config.variables, patients.own)
        data = preprocess(patients, progress, jobs=config.jobs, fill=fill)
        variables.check_values(config.variables, data)
        remarks = (*_check(patients, data, config), *filter(None, [suspicions]))
        splits = split(patients, data, config, device)
        with _alone(splits.folder):
            fitted = fit(splits, data, config, device, progress)
            if not distributed.is_first_rank():
                return ""
            evaluation = evaluate(fitted, splits, data, config)
            statistics = calibrate(fitted, data, config)
            return package(patients, splits, fitted, evaluation, statistics, data, config, remarks).summary


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a run during the block. Two processes would replace each other's checkpoints.

    Raises:
        CohortFault: Another process trains this run.
    """
    if not distributed.is_first_rank():
        yield
        return
    with locked_soon(folder) as held:
        if not held:
            fault = "another process trains on this cohort with these options; wait for its end"
            raise CohortFault([f"{fault}, and repeat the command: it continues from the networks of that run"])
        yield


def _check(patients: cohort.Cohort, data: Dataset, config: TrainConfig) -> tuple[str, ...]:
    """Remarks on the images, and on patients that the reused trunk was trained on, for the card and the report."""
    overlap = ""
    if config.trunk is not None:
        overlap = training_overlap.check(read_manifest(config.trunk), patients, data, accept=config.i_know)
    repeats = suspicious.SAME_IMAGE in suspicious.accepted(config.accept)
    images = input_checks.check(patients, data, accept=config.accept_flags, accept_repeats=repeats)
    repeated = repeated_note(of_patients(data.groups))
    remarks = overlap, repeated, images, unread_columns.of_training(patients, config.model, config.variables)
    return tuple(filter(None, remarks))


def _device(name: str) -> torch.device:
    forbid_tf32()  # what is not computed in bfloat16 must be float32, on a GPU too
    return select_device(name)
