"""The process that starts the processes of conversions: it has loaded their libraries, and each one is a fork of it.

A message on standard input, which is a socket, brings the two pipes of a new process; the answer holds its descriptor
(``pidfd``). The first message is sent when the libraries are loaded. The process reads no file of a study.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence

from app.dicom import convert_process

_IN = 0
PIPES = 2
LOADED, STARTED = b"+", b"="


def main() -> None:
    """Start a process for each message, until the service ends."""
    with socket.socket(fileno=os.dup(_IN)) as connection:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then removes those that have ended
        gc.freeze()  # what is loaded stays in pages that all share
        connection.sendall(LOADED)
        while pipes := socket.recv_fds(connection, 1, PIPES)[1]:
            _start(connection, pipes)


def _start(connection: socket.socket, pipes: Sequence[int]) -> None:
    child = os.fork()
    if not child:
        _convert(connection, pipes)
    for each in pipes:
        os.close(each)
    descriptor = os.pidfd_open(child)
    socket.send_fds(connection, [STARTED], [descriptor])
    os.close(descriptor)


def _convert(connection: socket.socket, pipes: Sequence[int]) -> None:
    """Be a process of one conversion, as if it had been started by a command."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection.close()
        for standard, pipe in enumerate(pipes):
            os.dup2(pipe, standard)
            os.close(pipe)
        convert_process.main()
        sys.stdout.flush()
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
