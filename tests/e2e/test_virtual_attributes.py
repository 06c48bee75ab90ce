"""`user.mirrorfs.*` on a real mount: what a job may ask about a file."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from mirrorfs.journal.control_client import ControlClient
from tests.support.mounts import Mounting, mounting
from tests.support.overlay import fails
from tests.support.replicating import Replicating, replicating, until

__all__ = ["mounting", "replicating"]

pytestmark = pytest.mark.fuse


def told(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.mirrorfs.{name}").decode()


def test_where_an_object_stands(mounting: Mounting, replicating: Replicating) -> None:
    mounted = mounting()
    at = mounted.mountpoint
    (at / "d").mkdir()
    (at / "d" / "f").write_text("text")
    assert told(at / "d" / "f", "state") == ""
    replication = replicating(mounted.journal, "first", "second")
    replication.settle()
    for path in (at, at / "d", at / "d" / "f"):
        until(lambda path=path: told(path, "state") == "first=clean,second=clean", lambda: "")  # type: ignore[misc]
    replication.stop()
    (at / "d" / "g").write_text("later")
    assert told(at / "d" / "g", "state") == "first=pending,second=pending"
    assert told(at / "d" / "f", "state") == "first=clean,second=clean"
    (at / "d").replace(at / "e")  # what is below it is not where it should be, either
    assert told(at / "e" / "f", "state") == "first=pending,second=pending"
    replication.start()
    replication.settle()
    until(lambda: told(at / "e" / "f", "state") == "first=clean,second=clean", lambda: "")
    with (at / "e" / "f").open("w") as stream:
        stream.write("open")
        stream.flush()
        assert told(at / "e" / "f", "state") == "first=pending,second=pending"
    replication.settle()
    until(lambda: told(at / "e" / "f", "state") == "first=clean,second=clean", lambda: "")
    report = mounted.journal / "sites" / "first.json"
    replication.stop()
    report.write_text("spoiled")
    assert told(at / "e" / "f", "state") == "first=unknown,second=clean"
    with ControlClient(str(mounted.journal)) as client:
        client.reconcile(b"", whole=True, reason="test")
    assert told(at / "e" / "f", "state") == "first=unknown,second=unknown"


def test_what_failed(mounting: Mounting, replicating: Replicating) -> None:
    """A name that the site's file system does not take is held there."""
    mounted = mounting()
    at = mounted.mountpoint
    replication = replicating(mounted.journal, "site")
    (at / "d").mkdir()
    (at / "other").write_text("text")
    replication.settle()
    site = replication.sites["site"]
    subprocess.run(["chattr", "+i", site / "d"], check=True)
    try:
        (at / "d" / "f").write_text("text")
        until(lambda: told(at / "d" / "f", "state") == "site=failed", lambda: "not held")
        assert told(at / "other", "state") == "site=clean"
        (at / "other").write_text("changed")
        until(lambda: told(at / "other", "state") == "site=clean", lambda: "not passed")
    finally:
        subprocess.run(["chattr", "-i", site / "d"], check=True)
    until(lambda: told(at / "d" / "f", "state") == "site=clean", lambda: "not mended")


def test_what_an_object_is(mounting: Mounting) -> None:
    mounted = mounting()
    at = mounted.mountpoint
    (at / "d").mkdir()
    (at / "d" / "f").write_text("text")
    last = mounted.records()[-1]
    assert told(at / "d" / "f", "sequence") == str(last.sequence)
    assert told(at / "d" / "f", "object") == last.body.object.hex()  # type: ignore[union-attr]
    assert (told(at, "path"), told(at / "d" / "f", "path")) == ("", "d/f")
    volume = (mounted.source / ".mirrorfs" / "volume").read_text().strip()
    assert told(at, "volume") == volume
    (at / "d").replace(at / "e")
    assert told(at / "e" / "f", "path") == "e/f"
    (mounted.source / "behind").touch()
    assert fails(errno.ENODATA, lambda: os.getxattr(at / "behind", "user.mirrorfs.sequence"))
    assert fails(errno.ENODATA, lambda: os.getxattr(at, "user.mirrorfs.else"))


def test_they_are_neither_listed_nor_copied_nor_set(mounting: Mounting, tmp_path: Path) -> None:
    at = mounting().mountpoint
    (at / "f").write_text("text")
    os.setxattr(at / "f", "user.own", b"1")
    for name in ("state", "path", "else"):
        for call in (
            lambda name=name: os.setxattr(at / "f", f"user.mirrorfs.{name}", b"x"),
            lambda name=name: os.removexattr(at / "f", f"user.mirrorfs.{name}"),
        ):
            assert fails(errno.EPERM, call)
    assert os.listxattr(at / "f") == ["user.own"]
    subprocess.run(["cp", "-a", at / "f", tmp_path / "copy"], check=True)
    assert os.listxattr(tmp_path / "copy") == ["user.own"]
