"""Text and exit status of an error that ends a command: a few lines.

Design notes:
- The exit status is 2 for a wrong input or setting, and 1 for a failure.
- An error of the file system is shown by the name of its file, without the folder.
- The message of any other error may contain patient data, so only its type and its place are shown. With
  ``RLVO_LOG_LEVEL=debug`` the calls are shown too, still without messages and values.
"""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path

from app.core.environment import DISK_FULL
from app.core.logging import error_location

NOT_OF_INPUT = DISK_FULL | {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
"""Errors of the machine: disk full or broken, too many open files, no memory."""


def describe(error: Exception) -> tuple[list[str], int]:
    """Return the lines and the exit status of an error."""
    # Here: they import pydantic, which `rlvo --help` does not need.
    from app.sdk.errors import DatabaseUnavailable, InvalidRequest, NotFound, RlvoError

    if isinstance(error, RlvoError):
        notes = getattr(error, "__notes__", ())
        of_http = isinstance(error, InvalidRequest) or type(error) is NotFound  # the title is about an HTTP request
        plain = of_http or error.detail.startswith(error.title)
        lines = [error.detail if plain else f"{error.title}: {error.detail}"]
        if isinstance(error, DatabaseUnavailable) and plain and not notes:  # an error of a service has its trace
            lines = [f"{error.title}. Check that it runs, and the address, user and password of RLVO_DATABASE_URL."]
        lines += [f"  {fault.field}: {fault.detail}" for fault in error.errors]
        lines += [f"  ({note})" for note in notes]
        return lines, 2 if 400 <= error.status < 500 else 1
    if isinstance(error, OSError):
        return [file_fault(error)], 1 if error.errno in NOT_OF_INPUT else 2
    if isinstance(error, ImportError):
        return [f"The package {error.name or 'of this function'} is not installed. Install it with pip."], 1
    lines = [f"The command failed unexpectedly ({error_location(error)}). RLVO_LOG_LEVEL=debug shows the calls."]
    if os.environ.get("RLVO_LOG_LEVEL") == "debug":
        lines += "".join(traceback.format_tb(error.__traceback__)).splitlines()
    return lines, 1


def file_fault(error: OSError) -> str:
    """An error of the file system as one line, with the name of the file and without its folder."""
    if error.errno is None:  # raised by this project
        return str(error)
    name = Path(str(error.filename)).name if error.filename else "a file"
    return f"{name}: {error.strerror}; check the path, its permissions and the free space"
