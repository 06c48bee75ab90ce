"""A service manager is told that the mount answers; where none listens, nothing happens."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import mirrorfs.notify
import replicator.background
import xrootdfs.notify

Ready = Callable[[], None]

every_program = pytest.mark.parametrize(
    "ready", [mirrorfs.notify.ready, replicator.background.notify, xrootdfs.notify.ready]
)


@every_program
@pytest.mark.parametrize("abstract", [False, True])
def test_it_is_told(
    ready: Ready, abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        ready()
        said = manager.recv(4096, socket.MSG_DONTWAIT).decode()
    assert said == f"READY=1\nMAINPID={os.getpid()}\n"


@every_program
@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/notify", "@nobody-listens"])
def test_nobody_listens(ready: Ready, address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    ready()
