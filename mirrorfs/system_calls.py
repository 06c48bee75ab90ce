"""System calls that Python does not have, as functions that raise OSError.

The one place with ctypes declarations. It knows no nodes, names no files of its own and keeps no
state; the buffers are shared, so only one thread may call the functions that say so.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time
from typing import Final

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
UTIME_OMIT: Final = (1 << 30) - 2
HANDLE_BYTES_MAX: Final = 128

_ENOMEM_SECONDS: Final = (0, 0, 0, 0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0)
_FS_IOC_GETFSUUID: Final = 0x80111500
_PR_GET_SECUREBITS: Final = 27
_PR_SET_SECUREBITS: Final = 28
_SECBIT_NO_SETUID_FIXUP: Final = 1 << 2
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_STATX_MNT_ID_AT: Final = 144
_KCMP: Final = {"x86_64": 312, "i686": 349, "ppc64le": 354, "s390x": 343}
_KCMP_ELSEWHERE: Final = 272
_KCMP_VM: Final = 1
_CAPABILITY_VERSION: Final = 0x20080522

# PyDLL keeps the interpreter lock: these calls are short and the buffers below are shared.
_libc = ctypes.PyDLL(None, use_errno=True)
_unlocked = ctypes.CDLL(None, use_errno=True)  # others go on meanwhile
_name_to_handle_at = _libc.name_to_handle_at
_open_by_handle_at = _libc.open_by_handle_at
_renameat2 = _libc.renameat2
_getdents64 = _libc.getdents64
_getdents64.restype = ctypes.c_ssize_t
_utimensat = _libc.utimensat
_setfsuid = _libc.setfsuid
_setfsgid = _libc.setfsgid
_prctl = _libc.prctl
_capget = _libc.capget
_capset = _libc.capset
_fstatfs = _libc.fstatfs
_statx = _libc.statx
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_fanotify_init = _libc.fanotify_init
_fanotify_mark = _libc.fanotify_mark
_fanotify_mark.argtypes = (
    *(ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p),
)

_adjtimex = _libc.adjtimex
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_DEVICE: Final = struct.Struct("=II")
_STATX_DEVICE_AT: Final = 136

_STA_UNSYNC: Final = 0x40
_TIMEX: Final = struct.Struct("@I4qiq")  # modes, offset, freq, maxerror, esterror, status, ...

_FAN_CLOEXEC: Final = 0x1
_FAN_NONBLOCK: Final = 0x2
_FAN_REPORT_DIR_FID: Final = 0x400
_FAN_REPORT_NAME: Final = 0x800
_FAN_MARK_ADD: Final = 0x1
_FAN_MARK_FILESYSTEM: Final = 0x100

_HANDLE_HEAD = struct.Struct("=Ii")
_handle = ctypes.create_string_buffer(_HANDLE_HEAD.size + HANDLE_BYTES_MAX)
_mount_id = ctypes.byref(ctypes.c_int())
_TIMES = struct.Struct("=qqqq")
_DIRENT = struct.Struct("=QqHB")
_dirents = ctypes.create_string_buffer(32768)
_dirents_view = memoryview(_dirents).cast("B")


def _raise(name: bytes = b"") -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), name)


def file_handle(descriptor: int, name: bytes = b"") -> tuple[int, bytes]:
    """Type and bytes of the handle of a descriptor's object, or of `name` in that directory.

    Never follows a symlink. One thread only. OSError EOPNOTSUPP: no handles on that file system.
    """
    _HANDLE_HEAD.pack_into(_handle, 0, HANDLE_BYTES_MAX, 0)
    flags = 0 if name else AT_EMPTY_PATH
    if _name_to_handle_at(descriptor, name, _handle, _mount_id, flags) != 0:
        raise _raise(name)
    raw = _handle.raw
    size, kind = _HANDLE_HEAD.unpack_from(raw)
    return kind, raw[_HANDLE_HEAD.size : _HANDLE_HEAD.size + size]


def mount_id(descriptor: int) -> int:
    """Id of the mount it was opened on, never used again in this boot; 0 if it cannot be told
    (before Linux 6.8)."""
    answer = ctypes.create_string_buffer(256)
    if _statx(descriptor, b"", AT_EMPTY_PATH, _STATX_MNT_ID_UNIQUE, answer) != 0:
        return 0
    if not struct.unpack_from("<I", answer.raw)[0] & _STATX_MNT_ID_UNIQUE:
        return 0
    found: int = struct.unpack_from("<Q", answer.raw, _STATX_MNT_ID_AT)[0]
    return found


def open_by_handle(mount: int, kind: int, handle: bytes, flags: int) -> int:
    """A descriptor of the object with that handle on `mount`'s file system (ESTALE: it is gone).

    Linux says ENOMEM, too, while the inode of an object that is gone is being given to a new one
    (iget_locked() in fs/inode.c): so it is asked again.
    """
    packed = _HANDLE_HEAD.pack(len(handle), kind) + handle
    for seconds in _ENOMEM_SECONDS:
        descriptor: int = _open_by_handle_at(mount, packed, flags | os.O_CLOEXEC)
        if descriptor >= 0:
            return descriptor
        if ctypes.get_errno() != errno.ENOMEM:
            break
        time.sleep(seconds)
    raise _raise()


def rename_with_flags(
    directory: int, name: bytes, to_directory: int, to_name: bytes, flags: int
) -> None:
    """renameat2(2)."""
    if _renameat2(directory, name, to_directory, to_name, flags) != 0:
        raise _raise(name)


def read_directory(descriptor: int) -> list[tuple[bytes, int, int, int]]:
    """The next entries of an open directory: name, inode number, d_type, offset of the one after.

    Empty at the end. One thread only.
    """
    size = _getdents64(descriptor, _dirents, len(_dirents))
    if size < 0:
        raise _raise()
    entries = []
    data = bytes(_dirents_view[:size])
    at = 0
    while at < size:
        inode, offset, length, kind = _DIRENT.unpack_from(data, at)
        start = at + _DIRENT.size
        entries.append((data[start : data.index(0, start)], inode, kind, offset))
        at += length
    return entries


def set_times(path: bytes, atime_ns: int | None, mtime_ns: int | None) -> None:
    """utimensat(2), following a symlink; None leaves that time alone."""
    parts: list[int] = []
    for moment in (atime_ns, mtime_ns):
        parts += (0, UTIME_OMIT) if moment is None else divmod(moment, 1_000_000_000)
    if _utimensat(AT_FDCWD, path, _TIMES.pack(*parts), 0) != 0:
        raise _raise(path)


def set_file_system_ids(uid: int, gid: int) -> None:
    """Owner and group that this thread's new objects get."""
    _setfsgid(gid)
    _setfsuid(uid)


def keep_capabilities_over_uid_changes() -> None:
    """From now on changing the fsuid leaves this thread's capabilities alone.

    OSError EPERM without CAP_SETPCAP.
    """
    bits = _prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0)
    if bits < 0 or _prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0) != 0:
        raise _raise()


def drop_effective_capability(number: int) -> None:
    """Take one capability out of this thread's effective set; it stays permitted."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    if _capget(header, data) != 0:
        raise _raise()
    words = list(struct.unpack("=6I", data.raw))
    words[3 * (number // 32)] &= ~(1 << number % 32)
    if _capset(header, struct.pack("=6I", *words)) != 0:
        raise _raise()


def share_memory(process: int, other: int) -> bool:
    """Both have the same memory (one is between vfork and exec), or nobody can say."""
    number = _KCMP.get(os.uname().machine, _KCMP_ELSEWHERE)
    same: int = _syscall(number, process, other, _KCMP_VM, 0, 0)
    return same == 0 or (same < 0 and ctypes.get_errno() != errno.ESRCH)


def file_system_uuid(descriptor: int) -> bytes:
    """UUID of the file system a descriptor (not O_PATH) is on; empty where it tells none."""
    buffer = bytearray(17)
    try:
        fcntl.ioctl(descriptor, _FS_IOC_GETFSUUID, buffer)
    except OSError:
        return b""
    return bytes(buffer[1 : 1 + buffer[0]])


def file_system(descriptor: int) -> tuple[int, int]:
    """Magic number and f_fsid (0: none) of the file system a descriptor is on, of statfs(2)."""
    buffer = ctypes.create_string_buffer(256)
    if _fstatfs(descriptor, buffer) != 0:
        raise _raise()
    (magic,) = struct.unpack_from("=q", buffer)
    (identity,) = struct.unpack_from("=Q", buffer, 56)
    return magic, identity


def device_of(path: bytes) -> int:
    """st_dev of what `path` leads to; asks nobody: a file system that hangs tells it, too."""
    buffer = ctypes.create_string_buffer(256)
    flags = _AT_STATX_DONT_SYNC | _AT_NO_AUTOMOUNT
    if _unlocked.statx(AT_FDCWD, path, flags, 0, buffer) != 0:
        raise _raise(path)
    return os.makedev(*_STATX_DEVICE.unpack_from(buffer, _STATX_DEVICE_AT))


def fanotify_group() -> int:
    """A descriptor to read events from, which name directories by handle, and a name in them."""
    flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_REPORT_DIR_FID | _FAN_REPORT_NAME
    descriptor: int = _fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
    if descriptor < 0:
        raise _raise()
    return descriptor


def fanotify_watch(descriptor: int, directory: int, mask: int) -> None:
    """Let these events of the whole file system an open directory is on be told there."""
    flags = _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM
    if _fanotify_mark(descriptor, flags, mask, directory, None) != 0:
        raise _raise()


def clock_state() -> tuple[bool | None, int]:
    """Whether the clock is kept right (None: not told), and its largest error in microseconds."""
    buffer = ctypes.create_string_buffer(512)
    if _adjtimex(buffer) < 0:
        return None, 0
    _, _, _, error_us, _, status, _ = _TIMEX.unpack_from(buffer)
    return not status & _STA_UNSYNC, error_us


def sync_file_system(descriptor: int) -> None:
    """syncfs(2): everything written to that file system is on its disk. May take long."""
    if _unlocked.syncfs(descriptor) != 0:
        raise _raise()
