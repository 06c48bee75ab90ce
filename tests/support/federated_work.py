"""What tests of mounted federations share: a directory to work in, errnos, other users."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federation_mounts import FederationMount


@pytest.fixture
def work(federation_mount: FederationMount, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new directory in the mount; nothing of it stays at any server."""
    name = request.node.name.replace("/", "_")[:100]
    path = federation_mount.mountpoint / name
    path.mkdir()
    yield path
    shutil.rmtree(path)


def served_name(path: Path, mount: FederationMount) -> str:
    """How servers call what is at a path of the mount."""
    return "/" + str(path.relative_to(mount.mountpoint))


@contextlib.contextmanager
def fails(*codes: int) -> Iterator[None]:
    """What is done here fails with one of these errnos."""
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno says which
        yield
    assert raised.value.errno in codes, errno.errorcode.get(raised.value.errno or 0)


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """What is done here another user does."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
