"""The exit status of an error says whether the input or the machine is at fault."""

from __future__ import annotations

import errno

import pytest

from app.cli.failures import describe


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM])
def test_fault_of_the_machine_has_status_1(number: int) -> None:
    assert describe(OSError(number, "x"))[1] == 1


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR])
def test_fault_of_a_given_path_has_status_2(number: int) -> None:
    assert describe(OSError(number, "x"))[1] == 2
