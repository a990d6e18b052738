"""The end of a worker process whose device cannot be used any more."""

from __future__ import annotations

import logging
import os
from typing import Final, NoReturn

EXIT_STATUS: Final = 70  # EX_SOFTWARE

log = logging.getLogger(__name__)


def end_process(error: BaseException) -> NoReturn:
    """End this process at once; its supervisor starts another one, which continues the jobs.

    The start counts as a failed one of the running job, so a job that breaks the device each time is quarantined. The
    log has the first line of ``error``, a text of CUDA that holds nothing of a patient.
    """
    first_line = str(error).partition("\n")[0][:200]
    log.error("the device reports an error that only a new process can leave, so this process ends: %s", first_line)
    logging.shutdown()
    os._exit(EXIT_STATUS)
