"""What keeps a replicator from working, as an operator and a script see it."""

from __future__ import annotations

import errno
import os

import pytest

from replicator import daemon


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_cannot_be_written_has_its_code_and_its_line(number: int) -> None:
    error = OSError(number, os.strerror(number), "/journal/sites/backup.cursor")
    assert daemon.exit_code(error) == 73
    assert daemon._line(error) == f"/journal/sites/backup.cursor: {os.strerror(number)}"


def test_other_errors_keep_their_codes() -> None:
    assert daemon.exit_code(PermissionError(errno.EACCES, "no")) == 77
    assert daemon.exit_code(OSError(errno.EIO, "no")) == 70
    assert daemon._line(ValueError("as it is")) == "as it is"
