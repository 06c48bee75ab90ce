"""What processes share on a mount: locks, pages, notifications, names they race for."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounts import Mounted
from tests.support.overlay import below, fails

pytestmark = pytest.mark.fuse

_libc = ctypes.CDLL(None, use_errno=True)
_FLOCK = struct.Struct("hhqqi4x")
_OFD_SETLK = 37


class Helper:
    """Another process that runs Python lines one by one; each answers with one line."""

    def __init__(self, path: Path) -> None:
        program = (
            "import errno, fcntl, mmap, os, sys\n"
            "for line in sys.stdin:\n"
            "    try:\n        print(eval(line), flush=True)\n"
            "    except OSError as error:\n"
            "        print(errno.errorcode[error.errno], flush=True)\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=path,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def do(self, line: str) -> str:
        self.ask(line)
        return self.answer()

    def waits(self) -> bool:
        """It sleeps in the kernel, with no answer."""
        assert self._process.stdout is not None
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "SD":
            pass
        return not select.select([self._process.stdout], [], [], 0)[0]


def test_record_locks(work: Path) -> None:
    (work / "f").write_bytes(bytes(100))
    with open(work / "f", "r+b") as file, Helper(work) as other:
        other.do("globals().__setitem__('f', open('f', 'r+b'))")
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        fcntl.lockf(file, fcntl.LOCK_SH, 10, 50)
        assert other.do("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)") == "EAGAIN"
        assert other.do("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 55)") == "EAGAIN"
        assert other.do("fcntl.lockf(f, fcntl.LOCK_SH | fcntl.LOCK_NB, 5, 55)") == "None"
        assert other.do("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 30, 15)") == "None"
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 20, 1, 0)
        found = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))
        assert (found[0], found[2:4], found[4]) == (fcntl.F_WRLCK, (15, 30), other.pid)
        other.ask("fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)")
        assert other.waits()
        fcntl.lockf(file, fcntl.LOCK_UN, 10, 0)
        assert other.answer() == "None"
        with open(work / "f", "rb"):
            pass  # closing any descriptor of the file ends the process's locks on it
        assert other.do("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 55)") == "None"


def test_a_waiter_can_be_killed(work: Path) -> None:
    (work / "f").touch()
    with open(work / "f", "r+b") as file, Helper(work) as other:
        fcntl.flock(file, fcntl.LOCK_EX)
        other.ask("fcntl.flock(open('f', 'r+b'), fcntl.LOCK_EX)")
        assert other.waits()
        os.kill(other.pid, signal.SIGKILL)
        assert other.answer() == ""


def test_whole_file_locks_and_those_of_open_files(work: Path) -> None:
    (work / "f").touch()
    with open(work / "f", "r+b") as file, Helper(work) as other:
        other.do("globals().__setitem__('f', open('f', 'r+b'))")
        fcntl.flock(file, fcntl.LOCK_SH)
        assert other.do("fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)") == "None"
        assert fails(errno.EAGAIN, lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))
        assert other.do("f.close()") == "None"
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(work / "f", "r+b") as second:
            assert fails(errno.EAGAIN, lambda: fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB))
            mine = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
            fcntl.fcntl(file, _OFD_SETLK, mine)
            assert fails(errno.EAGAIN, lambda: fcntl.fcntl(second, _OFD_SETLK, mine))


def test_memory_shared_between_processes(work: Path, overlay: Mounted) -> None:
    (work / "f").write_bytes(bytes(8192))
    with (
        open(work / "f", "r+b", 0) as file,
        mmap.mmap(file.fileno(), 8192) as mapping,
        Helper(work) as other,
    ):
        other.do("globals().__setitem__('f', open('f', 'r+b', 0))")
        other.do("globals().__setitem__('m', mmap.mmap(f.fileno(), 8192))")
        mapping[5000:5003] = b"one"
        assert other.do("m[5000:5003]") == "b'one'"
        assert other.do("os.pread(f.fileno(), 3, 5000)") == "b'one'"
        other.do("m.__setitem__(slice(10, 13), b'two')")
        assert mapping[10:13] == b"two"
        other.do("os.pwrite(f.fileno(), b'three', 20)")
        assert mapping[20:25] == b"three"
        other.do("m.flush()")
        assert (below(overlay, work) / "f").read_bytes()[10:25] == b"two" + bytes(7) + b"three"
        with mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE) as private:
            private[0:3] = b"own"
            assert mapping[0:3] == bytes(3)


def test_a_store_beyond_the_end_is_a_bus_error(work: Path) -> None:
    (work / "f").write_bytes(bytes(8192))
    code = (
        "import mmap, os\nf = open('f', 'r+b')\nm = mmap.mmap(f.fileno(), 8192)\n"
        "os.truncate('f', 100)\nm[50] = 1\nm[5000] = 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=work, check=False)
    assert done.returncode == -signal.SIGBUS
    assert (work / "f").read_bytes()[50] == 1


def test_notifications(work: Path) -> None:
    watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert _libc.inotify_add_watch(watch, bytes(work), 0xFFF) >= 0
    with Helper(work) as other:
        other.do("open('f', 'w').write('x')")
        other.do("os.rename('f', 'g')")
        other.do("os.chmod('g', 0o600)")
        other.do("os.unlink('g')")
    seen = []
    data = os.read(watch, 65536)
    os.close(watch)
    while data:
        _, mask, _, size = struct.unpack_from("iIII", data)
        seen.append((mask & 0xFFF, data[16 : 16 + size].rstrip(b"\0")))
        data = data[16 + size :]
    wanted = [
        (0x100, b"f"),  # create
        (0x2, b"f"),  # modify
        (0x8, b"f"),  # close_write
        (0x40, b"f"),  # moved_from
        (0x80, b"g"),  # moved_to
        (0x4, b"g"),  # attrib
        (0x200, b"g"),  # delete
    ]
    assert [event for event in seen if event in wanted] == wanted


def test_one_of_many_makes_it(work: Path) -> None:
    """O_EXCL, mkdir, link and rename-if-free each have one winner a name."""
    code = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
os.chdir(sys.argv[1])
mine = f"mine{sys.argv[2]}"
open(mine, "w").close()
won = 0
for number in range(40):
    for make in (
        lambda: os.close(os.open(f"x{number}", os.O_CREAT | os.O_EXCL)),
        lambda: os.mkdir(f"d{number}"),
        lambda: os.link(mine, f"l{number}"),
        lambda: os.symlink(mine, f"s{number}"),
    ):
        try:
            make()
            won += 1
        except FileExistsError:
            pass
    open(f"{mine}-{number}", "w").close()
    won += libc.renameat2(-100, f"{mine}-{number}".encode(), -100, f"r{number}".encode(), 1) == 0
print(won)
"""
    command = [sys.executable, "-c", code, str(work)]
    racers = [
        subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE) for number in range(8)
    ]
    assert sum(int(racer.communicate()[0]) for racer in racers) == 40 * 5
    assert [racer.returncode for racer in racers] == [0] * 8
