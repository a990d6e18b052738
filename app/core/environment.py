"""Tells faults of the machine, its disks and its network from faults of an input or of the program.

Design notes:
- A fault of the environment ends at some time, so the work that met it is tried again and never given up.
- Memory is not in the list: a study that needs too much of it needs it again in each try.
- An error number that also stands for a programming error, such as ENOENT or EINVAL, is not in the list. The storage
  knows which files must exist, and raises StorageUnavailable itself.
"""

from __future__ import annotations

import errno

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a disk without free space, or of a limit of its use."""

_DISK = (
    *(errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.EBUSY),
    *(errno.EACCES, errno.EPERM),
)
_NETWORK = (
    *(errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
)
_RESOURCES = (errno.EAGAIN, errno.EMFILE, errno.ENFILE)
_ENVIRONMENT = DISK_FULL.union(_DISK, _NETWORK, _RESOURCES)


def is_environment_fault(error: BaseException) -> bool:
    """Whether an error, or its cause, comes from the machine, a disk or the network."""
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        return True
    # threading has no separate error class for a thread that the system refuses to start.
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return True
    return error.__cause__ is not None and is_environment_fault(error.__cause__)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error comes from a disk, or a quota, without free space."""
    return isinstance(error, OSError) and error.errno in DISK_FULL
