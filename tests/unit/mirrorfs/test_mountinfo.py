"""The mount table: escapes, the topmost of several."""

from __future__ import annotations

import os

from mirrorfs.mountinfo import MountEntry, mounted_at, mounts, parse

TABLE = rb"""23 28 0:21 / /proc rw,relatime shared:7 - proc proc rw
28 1 254:0 / / rw,relatime - ext4 /dev/vda rw
90 28 0:55 / /srv/my\040data\134x\012 rw shared:9 master:1 - fuse.mirrorfs /srv/my\040data rw
"""


def test_parse() -> None:
    assert parse(TABLE)[1:] == [
        MountEntry(
            *("/", "ext4", "/dev/vda", os.makedev(254, 0)),
            id=28,
            parent=1,
            words=frozenset({"rw", "relatime"}),
        ),
        MountEntry(
            *("/srv/my data\\x\n", "fuse.mirrorfs", "/srv/my data", os.makedev(0, 55)),
            id=90,
            parent=28,
            words=frozenset({"rw"}),
        ),
    ]
    assert [entry.ours for entry in parse(TABLE)] == [False, False, True]


def test_this_machine() -> None:
    assert mounts()
    proc = mounted_at("/proc/../proc")
    assert proc is not None
    assert proc.type == "proc"
    assert mounted_at("/proc/self") is None
