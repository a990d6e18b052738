"""The exit status of an error says whether the input or the machine is at fault."""

from __future__ import annotations

import errno

import pytest

from app.cli.failures import describe
from app.sdk.errors import DatabaseUnavailable, ModelNotFound, NotFound


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM])
def test_fault_of_the_machine_has_status_1(number: int) -> None:
    assert describe(OSError(number, "x"))[1] == 1


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR])
def test_fault_of_a_given_path_has_status_2(number: int) -> None:
    assert describe(OSError(number, "x"))[1] == 2


def test_title_is_not_repeated_before_a_detail_that_begins_with_it() -> None:
    repeated = ModelNotFound("There is no such model version; `rlvo models list` shows all")
    assert describe(repeated)[0] == ["There is no such model version; `rlvo models list` shows all"]
    other = ModelNotFound("This alias has no earlier version to roll back to")
    assert describe(other)[0] == ["There is no such model version: This alias has no earlier version to roll back to"]
    assert describe(NotFound("There is no such study."))[0] == ["There is no such study."]


def test_unreachable_database_names_its_setting_unless_it_is_that_of_a_service() -> None:
    own = DatabaseUnavailable("The database cannot be reached. Send the request again later")
    assert "RLVO_DATABASE_URL" in describe(own)[0][0]
    damaged = DatabaseUnavailable("The database is read-only. Check the permissions and the mount of its folder")
    assert describe(damaged)[0][0].endswith(
        "The database is read-only. Check the permissions and the mount of its folder"
    )
    own.add_note("trace 01")
    assert describe(own)[0] == ["The database cannot be reached. Send the request again later", "  (trace 01)"]
