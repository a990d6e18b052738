"""A model version of the store or of a folder, and its predictions for a cohort."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from app.core.config import Settings
from app.registry.manifest import Manifest
from app.registry.model_store import ModelStore, StoredVersion
from app.sdk.errors import ModelNotFound, ModelNotReady
from app.sdk.summary import SYNTHETIC_NOTICE
from app.sdk.types import NOTICE


@dataclass(frozen=True)
class Version:
    """A model version. Research use only.

    Attributes:
        name: Name of the model.
        version: Version number, such as ``2.3.0``.
        folder: Its folder.
        target: Outcome that it predicts.
        threshold: Probability from which its decision is positive.
        level: Nominal coverage of its conformal sets; None: it has none.
        notice: What it may be used for.
        manifest: Its whole manifest.
    """

    name: str
    version: str
    folder: Path
    target: str
    threshold: float
    level: float | None
    notice: str
    manifest: Manifest = field(repr=False)

    def card(self) -> str:
        """The model card, Markdown; empty if the version has none."""
        path = self.folder / "card.md"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def load_version(reference: str | Path, *, store: str | Path | None = None) -> Version:
    """Find a model version, and check the digests of its files.

    Args:
        reference: ``name``, ``name/1.0.0``, ``name@1.0.0`` or ``name@alias`` of the model store, or a folder with a
            ``manifest.json``. A name alone is the champion, or else the newest version.
        store: Model store; None: that of ``RLVO_MODEL_STORE``, or the versions that come with rlvo.

    Returns:
        The version.

    Raises:
        rlvo errors: ``ModelNotFound`` if there is no such version; ``ModelNotReady`` if a file is missing or differs
            from the manifest, or if a signature is required (``RLVO_TRUSTED_KEYS``) and missing.
    """
    config = Settings()
    folder = Path(reference)
    if (folder / "manifest.json").is_file():
        models = ModelStore(folder.resolve().parents[1], config.trusted)
        entry = models.read(folder)
    else:
        models = ModelStore(config.model_store if store is None else Path(store), config.trusted)
        entry = _resolved(models, str(reference))
    models.verify(entry)
    return _version(entry)


def _resolved(models: ModelStore, reference: str) -> StoredVersion:
    try:
        return models.resolve(reference.replace("/", "@", 1) if "@" not in reference else reference)
    except (ModelNotFound, ModelNotReady) as error:
        held = ", ".join(f"{name}/{one.version}" for name in models.names() for one in models.versions(name))
        error.add_note(f"The model store {models.folder.absolute()} has {held or 'no version'}.")
        raise


def _version(entry: StoredVersion) -> Version:
    manifest = entry.manifest
    notice = f"{NOTICE} {SYNTHETIC_NOTICE}" if manifest.training.synthetic else NOTICE
    return Version(
        name=entry.name,
        version=entry.version,
        folder=entry.folder,
        target=manifest.training.target,
        threshold=manifest.threshold.value,
        level=None if manifest.conformal is None else manifest.conformal.level,
        notice=notice,
        manifest=manifest,
    )


def predict_cohort(
    version: Version | str | Path,
    cohort: str | Path,
    *,
    device: str = "auto",
    jobs: int = 1,
    progress: bool = False,
    columns: str | Path | None = None,
    date_format: str = "",
    dicom: str | Path | None = None,
    accept_flags: bool = False,
    i_know: bool = False,
    accept: str = "",
) -> pd.DataFrame:
    """Predict every study of a cohort on this machine, as ``rlvo validate`` and the service do. Research use only.

    Volumes are prepared as in the service, and kept in ``.prepared`` in the folder of the table, so that a second call
    is fast. The checks of ``rlvo validate`` hold: suspicious values, doubtful images, and patients whom the version was
    trained on stop the call, unless they are accepted.

    Args:
        version: Result of ``load_version``, or what it takes.
        cohort: Table (.csv, .xlsx, .parquet) as for ``rlvo train``, or the folder of ``cohort.csv``. Outcomes may be
            missing; one row suffices.
        device: ``cpu``, ``cuda`` or ``auto``.
        jobs: Studies that are prepared at the same time, each by a process of its own.
        progress: Whether a bar shows how far it is.
        columns: ``columns.toml`` that names the columns; None: that of the folder, if there is one.
        date_format: Form of the dates, as ``dd/mm/yyyy``; "": ISO.
        dicom: Folder of the DICOM studies that the table names.
        accept_flags: Predict doubtful and repeated images, too.
        i_know: Predict patients that the version was trained on, too.
        accept: Codes of suspicious values that are right, with commas between them.

    Returns:
        One row for each study, in the order of the table: patient, site, date, outcome (1, 0, NaN if unknown),
        probability, log_odds, decision (at the threshold of the version), conformal (classes of the set with a space
        between them, "none" for an empty set, "" without sets), flags (codes with a space between them; "unknown" for
        a study that came prepared). ``attrs`` has ``notice``, ``version`` and ``remarks`` on the cohort.

    Raises:
        rlvo errors: ``CohortFault`` with every fault of the cohort.
    """
    from rich.console import Console

    from app.training import patient_files
    from app.training.preprocess import UNKNOWN
    from app.training.progress import ProgressReporter, RichProgress
    from app.training.score import EvalConfig, predict_unlabelled

    own = version if isinstance(version, Version) else load_version(version)
    config = EvalConfig(
        versions=[own.folder],
        cohort=Path(cohort),
        device=device,
        jobs=jobs,
        columns=None if columns is None else Path(columns),
        date_format=date_format,
        dicom=None if dicom is None else Path(dicom),
        accept_flags=accept_flags,
        i_know=i_know,
        accept=accept,
    )
    scored = predict_unlabelled(config, RichProgress(Console()) if progress else ProgressReporter())
    (predicted,) = scored.predictions.values()
    data, studies = scored.data, scored.patients.studies
    sets = ["" if own.level is None else patient_files.conformal_text(kept) for kept in predicted.kept]
    flags = [patient_files.flag_text(*pair) for pair in zip(data.flags, predicted.flags, strict=True)]
    frame = pd.DataFrame(
        {
            "patient": [study.patient for study in studies],
            "site": [study.site for study in studies],
            "date": [study.date for study in studies],
            "outcome": np.where(data.labels == UNKNOWN, np.nan, data.labels),
            "probability": predicted.probabilities,
            "log_odds": predicted.log_odds,
            "decision": predicted.probabilities >= own.threshold,
            "conformal": sets,
            "flags": flags,
        }
    )
    frame.attrs |= {"notice": own.notice, "version": f"{own.name}/{own.version}", "remarks": list(scored.remarks)}
    return frame
