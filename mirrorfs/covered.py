"""What a dead mount covers: the directory beneath it, without taking the mount away.

A dead mount stays where it is until another serves in its place: else the raw tree would be seen.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from mirrorfs import mount_calls, mountinfo
from mirrorfs.mountinfo import MountEntry

_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


def dead_at(path: str, subtype: str) -> list[MountEntry]:
    """The dead mounts of ours stacked there, the topmost first; none if a live one is on top.

    `subtype`: mounts of this type are ours, too. Waits for a mount that hangs.
    """
    found: list[MountEntry] = []
    for entry in mountinfo.stacked_at(os.path.realpath(path)):
        if not entry.ours and entry.type != f"fuse.{subtype}":
            break
        found.append(entry)
    if not found:
        return found
    try:
        os.statvfs(path)  # the kernel may know the answer to a stat without the daemon
    except OSError as error:
        if error.errno in _DEAD:
            return found
    return []


def open_beneath(path: str, dead: int) -> int:
    """A descriptor (O_PATH) of the directory at `path`, beneath the `dead` topmost mounts there.

    A process with a mount table of its own takes them away, there only, and looks. OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            _send_beneath(theirs, path, dead)
        theirs.close()
        try:
            said, descriptors, _, _ = socket.recv_fds(ours, 64, 1)
        finally:
            os.waitpid(pid, 0)
    if descriptors:
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]
    code = int(said or errno.EIO)
    raise OSError(code, os.strerror(code), path)


def _send_beneath(channel: socket.socket, path: str, dead: int) -> None:
    """The life of that process."""
    try:
        mount_calls.leave_mounts()
        real = os.path.realpath(path)
        for _ in range(dead):
            mount_calls.unmount(real, mount_calls.MNT_DETACH)
        found = os.open(real, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        socket.send_fds(channel, [b"0"], [found])
    except OSError as error:
        with contextlib.suppress(OSError):
            channel.send(b"%d" % (error.errno or errno.EIO))
    finally:
        os._exit(0)
