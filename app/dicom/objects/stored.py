"""The result objects of stored predictions: reads record, return address and files, and makes the archive.

Design notes:
- Objects are made when they are asked for. They hold the identity of the patient, so none is stored.
- The archive lies in a private folder that is deleted with the block; a service that starts deletes what a killed one
  has left.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select

from app.core.config import Settings
from app.core.filesystem import private_folder
from app.database import predictions
from app.database.session import Database
from app.database.study_tables import ReturnAddressRow
from app.database.tables import ArtifactRow
from app.dicom.objects.isolated import export_isolated, installed
from app.dicom.objects.kinds import ObjectKind
from app.dicom.return_address import ReturnAddress, SealBroken, key_of, open_sealed
from app.sdk.errors import FiguresNotReady, InternalError, NotFinished, NotFound, sealed_by
from app.sdk.types import FiguresState, Prediction, Status
from app.storage.errors import storage_errors
from app.storage.local import Storage

__all__ = ["ResultObjects"]

LEAST_TIMEOUT_S = 300.0  # on a machine whose cores are busy

_MASKS = ("maps/vessels.", "maps/core.", "maps/tmax6.", "inputs/vessels.")
_NEEDED = ("maps/aligned-attribution-", "alignment.json", *_MASKS)


@dataclass(frozen=True)
class ResultObjects:
    """Makes the objects of stored predictions.

    Attributes:
        key: key of the return addresses; None if none are stored.
        folder: private folder of the archives.
        timeout_s: seconds for the objects of one prediction.
    """

    database: Database
    storage: Storage
    folder: Path
    timeout_s: float
    key: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings, database: Database, storage: Storage) -> ResultObjects:
        """As the settings describe them. Raises ValueError for a key that is none."""
        key = key_of(settings.dicom_return_key)
        return cls(database, storage, settings.incoming, max(settings.dicom_timeout, LEAST_TIMEOUT_S), key)

    @contextmanager
    def archive(
        self, prediction_id: str, tenant: str | None, kinds: Sequence[ObjectKind] = tuple(ObjectKind)
    ) -> Iterator[Path]:
        """Make the archive of a prediction; it is deleted at the end of the block.

        Args:
            prediction_id: the prediction.
            tenant: tenant of the caller; None for the operator.
            kinds: kinds of objects to keep.

        Yields:
            A ZIP archive of DICOM files.

        Raises:
            PredictionNotFound, Erased: there is no such prediction.
            NotFinished: it has no answer yet.
            Sealed: a silent trial seals it.
            FiguresNotReady: its figures are not drawn yet.
            NotFound: it did not succeed, or has no return address that can be read.
            InternalError: the objects could not be made.
        """
        prediction, sealed, digests = self._read(prediction_id, tenant)
        address = self._address(prediction, sealed)
        with storage_errors():
            private_folder(self.folder)
            folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            files = {name: self._copy(digest, folder / name.replace("/", "-")) for name, digest in digests.items()}
            target = folder / "objects.zip"
            export_isolated(prediction, address, files, target, kinds=kinds, timeout_s=self.timeout_s)
            yield target
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _read(self, prediction_id: str, tenant: str | None) -> tuple[Prediction, bytes | None, dict[str, str]]:
        with self.database.reading() as session:
            prediction = predictions.find(session, prediction_id, tenant)
            row = session.get(ReturnAddressRow, prediction_id)
            stored = select(ArtifactRow.name, ArtifactRow.digest).where(ArtifactRow.prediction_id == prediction_id)
            digests = {name: digest for name, digest in session.execute(stored) if _is_needed(name)}
        return prediction, None if row is None else row.sealed, digests

    def _address(self, prediction: Prediction, sealed: bytes | None) -> ReturnAddress:
        if not prediction.status.finished:
            raise NotFinished("The prediction is not finished. Send the request again when it has finished")
        if prediction.sealed is not None:
            raise sealed_by(prediction.sealed)
        if prediction.figures is FiguresState.PENDING:
            raise FiguresNotReady(
                "The objects hold the figures, which are drawn at the first request. Send it again in a few seconds",
                retry_after=1.0,
            )
        if prediction.status is not Status.SUCCEEDED:
            raise NotFound("The prediction has no answer, so it has no DICOM objects")
        if not installed():
            raise NotFound("This service writes no DICOM: its operator can install rlvo-service[dicom]")
        if self.key is None or sealed is None:
            raise NotFound(
                "The prediction has no return address, so it has no DICOM objects. It is kept for studies that are "
                "sent as DICOM while RLVO_DICOM_RETURN_KEY is set"
            )
        try:
            return open_sealed(sealed, self.key)
        except SealBroken as error:
            raise NotFound(str(error)) from None

    def _copy(self, digest: str, path: Path) -> Path:
        if not self.storage.verify(digest):
            raise InternalError(
                "A stored file is missing or damaged. The operator can check and repair the storage with `rlvo fsck`."
            )
        with storage_errors(), self.storage.open(digest) as source, path.open("xb") as target:
            shutil.copyfileobj(source, target)
        return path


def _is_needed(name: str) -> bool:
    return name.startswith(_NEEDED) or (name.startswith("figures/") and name.endswith(".png"))
