"""The end of a worker process whose device cannot be used any more."""

from __future__ import annotations

import logging
import os
from typing import Final, NoReturn

EXIT_STATUS: Final = 70  # EX_SOFTWARE

log = logging.getLogger(__name__)


def end_process() -> NoReturn:
    """End this process at once; its supervisor starts another one, which continues the jobs.

    The start counts as a failed one of the running job, so a job that breaks the device each time is quarantined.
    """
    log.error("the device reports an error that only a new process can leave: this process ends")
    logging.shutdown()
    os._exit(EXIT_STATUS)
