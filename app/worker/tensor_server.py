"""A worker's door for prepared tensors: answers at once, with the versions that it keeps loaded anyway.

Notable choices:
- The device works on one case at a time, tensors or jobs: whoever comes waits for the version's own turn.
- Nothing is recorded and nothing explained. A case on record is a prediction, and comes through the queue.
- A full device is relieved and the question tried once more, as a job's step is.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from app.core.logging import error_location
from app.inference import open_inference
from app.inference.explain import presence_bits
from app.inference.model_cache import ModelCache, out_of_memory
from app.inference.model_input import ModelInput
from app.inference.model_version import ModelAnswer, ModelVersion
from app.sdk.errors import InternalError, RlvoError
from app.worker import ipc

log = logging.getLogger("rlvo.inference")

AT_ONCE = 4
"""Questions that are read and parsed while one is computed."""


class TensorServer:
    """Open from `open` to `close`, in threads of its own."""

    def __init__(self, folder: Path, worker_id: str, predictor: ModelCache) -> None:
        self._folder, self._id, self._predictor = folder, worker_id, predictor
        self._hands = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tensors")
        self._closing = threading.Event()

    def open(self) -> None:
        """Starts to answer."""
        self._listener = ipc.Listener(self._folder, self._id)
        threading.Thread(target=self._welcome, name="door", daemon=True).start()

    def close(self) -> None:
        """Takes nothing more, and returns once what was taken is answered."""
        self._closing.set()
        ipc.remove_socket(self._folder, self._id)
        self._listener.close()
        self._hands.shutdown()

    def _welcome(self) -> None:
        while not self._closing.is_set():
            try:
                line = self._listener.accept()
            except OSError:  # closed
                return
            try:
                self._hands.submit(self._serve, line)
            except RuntimeError:  # closing
                line.close()

    def _serve(self, line: Connection) -> None:
        with line, suppress(OSError, EOFError):
            head, body = ipc.receive(line)
            try:
                answer: bytes | RlvoError = self._answer(head["name"], head["version"], head["header_length"], body)
            except RlvoError as error:
                answer = error
            except Exception as error:  # noqa: BLE001 - one bad question must not close the door
                log.error("tensors for %s: %s", head.get("name"), error_location(error))
                answer = InternalError()
            ipc.reply(line, answer)

    def _answer(self, name: str, version: str, header_length: int | None, body: bytes) -> bytes:
        loaded = self._predictor.version(name, version)
        request = open_inference.parse(body, header_length, loaded.manifest)
        full = False
        try:
            outcomes = _outcomes(loaded, request)
        except Exception as error:
            if not out_of_memory(error):
                raise
            full = True
        if full:  # not in the handler: the error holds what was allocated
            del loaded
            self._predictor.evict(name, version)
            loaded = self._predictor.version(name, version)
            outcomes = _outcomes(loaded, request)
        return open_inference.answer(
            request,
            loaded.manifest,
            {
                "probability": np.asarray([each.probability for each in outcomes]),
                "log_odds": np.asarray([each.log_odds for each in outcomes]),
                "folds": np.asarray([each.folds for each in outcomes]),
                "refractory": np.asarray([each.decision.refractory for each in outcomes]),
            },
        )


def _outcomes(version: ModelVersion, request: open_inference.InferenceRequest) -> list[ModelAnswer]:
    bits = presence_bits(version.manifest)
    return [
        version.predict(ModelInput(image=image, presence=clinical[bits] > 0, clinical=clinical))
        for image, clinical in zip(request.image, request.clinical, strict=True)
    ]
