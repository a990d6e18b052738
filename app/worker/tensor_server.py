"""Server of a worker for prepared tensors: answers at once, with the versions that the worker keeps loaded.

Design notes:
- The device computes one case at a time, of tensors or of jobs; each request waits for the executor of the version.
- Nothing is recorded and nothing is explained. A case that needs a record is a prediction and uses the queue.
- If the device runs out of memory, other versions are unloaded and the request runs once more.
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
from app.inference.device_errors import device_lost, out_of_memory
from app.inference.explain import presence_bits
from app.inference.model_cache import ModelCache
from app.inference.model_input import ModelInput
from app.inference.model_version import ModelAnswer, ModelVersion, NotFinite
from app.sdk.errors import InternalError, InvalidRequest, RlvoError
from app.sdk.summary import warning_codes
from app.worker import ipc
from app.worker.lost_device import end_process

log = logging.getLogger("rlvo.inference")

ACCEPT_PAUSE = 0.2  # seconds after a failed accept
THREADS = 4  # requests that are read and parsed while another one is computed


class TensorServer:
    """Answers requests in its threads, from `open` to `close`."""

    def __init__(self, folder: Path, worker_id: str, model_cache: ModelCache) -> None:
        self._folder, self._id, self._model_cache = folder, worker_id, model_cache
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tensors")
        self._closing = threading.Event()
        self._listener: ipc.Listener | None = None

    def open(self) -> None:
        """Starts the accept loop."""
        self._listener = listener = ipc.Listener(self._folder, self._id)
        threading.Thread(target=self._accept_loop, args=(listener,), name="tensor-server", daemon=True).start()

    def close(self) -> None:
        """Accepts no more requests and returns when all accepted ones are answered; also without `open`."""
        self._closing.set()
        ipc.remove_socket(self._folder, self._id)
        if self._listener is not None:
            self._listener.close()
        self._threads.shutdown()

    def _accept_loop(self, listener: ipc.Listener) -> None:
        while not self._closing.is_set():
            try:
                connection = listener.accept()
            except OSError:
                # Closed; or the process has no free file descriptor, and the request waits until it has one.
                self._closing.wait(ACCEPT_PAUSE)
                continue
            try:
                self._threads.submit(self._serve, connection)
            except RuntimeError:  # closing
                connection.close()

    def _serve(self, connection: Connection) -> None:
        with connection, suppress(OSError, EOFError):
            head, body = ipc.receive(connection)
            try:
                answer: bytes | RlvoError = self._answer(head["name"], head["version"], head["header_length"], body)
            except RlvoError as error:
                answer = error
            except Exception as error:  # noqa: BLE001 - one bad request must not stop the server
                log.error("tensors for %s: %s", head.get("name"), error_location(error))
                if device_lost(error):
                    end_process(error)
                answer = InternalError()
            ipc.reply(connection, answer)

    def _answer(self, name: str, version: str, header_length: int | None, body: bytes) -> bytes:
        loaded = self._model_cache.version(name, version)
        request = open_inference.parse(body, header_length, loaded.manifest)
        full = False
        try:
            answers = _predict(loaded, request)
        except Exception as error:
            if not out_of_memory(error):
                raise
            full = True
        if full:  # not in the handler: the error keeps the memory of the try until the handler ends
            del loaded
            self._model_cache.evict(name, version)
            loaded = self._model_cache.version(name, version)
            answers = _predict(loaded, request)
        return open_inference.encode_response(
            request,
            loaded.manifest,
            {
                "probability": np.asarray([each.probability for each in answers]),
                "log_odds": np.asarray([each.log_odds for each in answers]),
                "folds": np.asarray([each.folds for each in answers]),
                "refractory": np.asarray([each.decision.refractory for each in answers]),
                "withheld": np.asarray([bool(warning_codes(each.flags)) for each in answers]),
            },
        )


def _predict(version: ModelVersion, request: open_inference.InferenceRequest) -> list[ModelAnswer]:
    bits = presence_bits(version.manifest)
    answers = []
    try:
        for image, clinical in zip(request.image, request.clinical, strict=True):
            presence = clinical[bits] > 0
            side = version.shown_side(image, presence)
            answers.append(version.predict(ModelInput(image, presence, clinical, affected=side)))
        return answers
    except NotFinite as error:
        raise InvalidRequest(
            "From these tensors the version computes no finite number. Check the normalisation of image and clinical."
        ) from error
