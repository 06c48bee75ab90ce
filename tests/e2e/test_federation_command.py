"""The command xrootdfs: what it refuses and in which words, where files are, how a mount fares."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federation import Federation
from tests.support.federation import federation as federation
from tests.support.federation_mounts import FederationMount, mounted, run
from tests.support.federation_mounts import federation_mount as federation_mount

pytestmark = [pytest.mark.xrootd, pytest.mark.fuse]

USAGE, UNUSABLE, REFUSED, NOT_PERMITTED = 64, 66, 69, 77
OK, WARNING, CRITICAL = 0, 1, 2


@pytest.fixture
def deaf() -> Iterator[str]:
    """An address that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It ended with that code, and one line."""
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("xrootdfs: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    "words",
    [[], ["mount"], ["umount"], ["locate"], ["status"], ["--version"]],
    ids=lambda words: words[0] if words else "alone",
)
def test_help_fits_a_terminal(words: list[str]) -> None:
    done = run(*words, *(["--help"] if words != ["--version"] else []))
    assert done.returncode == OK
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stderr == ""


def test_without_a_command_it_says_what_there_is() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert "Commands:" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "nonsense"),
        (["mount"], "URL"),
        (["mount", "root://h"], "MOUNTPOINT"),
        (["mount", "h:1094", "/mnt"], "root://HOST:PORT//PREFIX is allowed"),
        (["mount", "root://h//a?b", "/mnt"], "'?'"),
        (["mount", "root://h", "/mnt", "-o", "nonsense=1"], "nonsense=1"),
        (["mount", "root://h", "/mnt", "-o", "uid=x"], "a number is allowed"),
        (["umount"], "MOUNTPOINT"),
        (["locate"], "FILE"),
        (["locate", "http://h/x"], "root://"),
    ],
)
def test_usage(words: list[str], said: str) -> None:
    refused(run(*words), UNUSABLE if words[0] == "locate" and len(words) > 1 else USAGE, said)


def test_what_cannot_be_mounted(federation: Federation, deaf: str, tmp_path: Path) -> None:
    url = federation.url
    directory = tmp_path / "mount"
    directory.mkdir()
    refused(run("mount", "root://127.0.0.1:1//", directory), UNUSABLE, "127.0.0.1:1", "reached")
    refused(run("mount", "root://no.such.host.invalid//", directory), UNUSABLE, "reached")
    refused(run("mount", f"root://{deaf}//", directory), UNUSABLE, deaf, "reached")
    federation.put("/a/file", b"x", 0)
    refused(run("mount", f"{url}//none/such", directory), UNUSABLE, "prefix", "/none/such")
    refused(run("mount", f"{url}//a/file", directory), UNUSABLE, "prefix", "/a/file")
    refused(run("mount", f"{url},root://127.0.0.1:1", directory), UNUSABLE, "127.0.0.1:1")
    refused(run("mount", url, tmp_path / "none"), UNUSABLE, "mountpoint", "No such file")
    (tmp_path / "file").touch()
    refused(run("mount", url, tmp_path / "file"), UNUSABLE, "mountpoint", "not a directory")
    refused(run("mount", url, directory, "-o", f"log={tmp_path}/no/log"), UNUSABLE, "log")
    assert not os.path.ismount(directory)


def test_a_mountpoint_that_is_taken(federation_mount: FederationMount) -> None:
    done = run("mount", federation_mount.url, federation_mount.mountpoint)
    refused(done, REFUSED, "mounted there already")


def test_who_is_not_root_needs_fusermount(federation: Federation, tmp_path: Path) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    script = (
        "import os, shutil, sys; shutil.which = lambda _name: None\n"
        "from xrootdfs.cli import main; main(sys.argv[1:])"
    )
    tmp_path.chmod(0o755)
    words = ["-c", script, "mount", federation.url, str(tmp_path)]
    done = subprocess.run(
        [*nobody, sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    assert done.returncode == NOT_PERMITTED, done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["umount", "status"])
def test_what_is_not_mounted(command: str, tmp_path: Path) -> None:
    done = run(command, tmp_path)
    assert "not an xrootdfs mount" in done.stdout + done.stderr
    assert done.returncode == (UNUSABLE if command == "umount" else CRITICAL)


def test_where_files_are(federation: Federation, federation_mount: FederationMount) -> None:
    federation.put("/where/one", b"1", 1)
    federation.put("/where/two", b"2", 0, 2)
    federation.put("/where/odd", b"long", 0)
    federation.put("/where/odd", b"short", 1)
    federation.put("/where/odd/below", b"", 2)
    a, b, c = (f"root://{server.address}//where" for server in federation.servers)
    mountpoint = federation_mount.mountpoint

    def located(name: str) -> list[str]:
        by_path = run("locate", mountpoint / "where" / name)
        by_url = run("locate", f"{federation.url}//where/{name}")
        assert (by_path.returncode, by_url.returncode) == (OK, OK)
        assert sorted(by_path.stdout.splitlines()) == sorted(by_url.stdout.splitlines())
        return by_path.stdout.splitlines()

    assert located("one") == [f"{b}/one"]
    assert sorted(located("two")) == sorted([f"{a}/two", f"{c}/two"])
    odd = located("odd")
    assert len(odd) == 3
    assert sum(line.endswith((" differing", " contrary")) for line in odd) == 2
    done = run("locate", "--json", mountpoint / "where/one", mountpoint / "where/none")
    assert done.returncode == UNUSABLE
    told = {"file": str(mountpoint / "where/one"), "locations": [f"{b}/one"]}
    assert json.loads(done.stdout) == told
    assert "where/none: No such file" in done.stderr
    refused(run("locate", f"{federation.url}//where/none"), UNUSABLE, "No such file")
    refused(run("locate", "root://127.0.0.1:1//x"), UNUSABLE)
    refused(run("locate", "/etc/passwd"), UNUSABLE, "not on an xrootdfs mount")


def test_what_a_file_says_of_itself(
    federation: Federation, federation_mount: FederationMount
) -> None:
    federation.put("/self/sum", b"hello", 1)
    path = federation_mount.mountpoint / "self/sum"
    address = federation.servers[1].address

    def value(name: str) -> str:
        return os.getxattr(path, f"user.xrootd.{name}").decode()

    assert value("url") == f"root://{address}//self/sum"
    assert value("server") == address
    assert value("locations") == f"root://{address}//self/sum"
    assert value("checksum") == "adler32:062c0215"
    assert value("checksum.crc32c") == "crc32c:9a71bb4c"
    assert os.getxattr(path.parent, "user.xrootd.partial") == b""
    assert [name for name in os.listxattr(path) if "xrootd" in name] == []
    for name in ("nonsense", "status", "daemon"):
        with pytest.raises(OSError, match="No data") as caught:
            value(name)
        assert caught.value.errno == errno.ENODATA
    with pytest.raises(OSError, match=r".") as caught:
        os.setxattr(path, "user.xrootd.url", b"x")
    assert caught.value.errno in (errno.EPERM, errno.EACCES)


def test_the_end_of_a_mount_in_use(federation: Federation, tmp_path: Path) -> None:
    with mounted(federation, tmp_path / "mount") as mount:
        (mount.mountpoint / "held").write_text("x")
        with open(mount.mountpoint / "held"):
            refused(run("umount", mount.mountpoint), REFUSED, "in use")
            done = run("umount", "-l", mount.mountpoint)
            assert done.returncode == OK
            assert "detached" in done.stdout
            assert not os.path.ismount(mount.mountpoint)


def test_a_dead_mount_is_told_and_removed(federation: Federation, tmp_path: Path) -> None:
    with mounted(federation, tmp_path / "mount") as mount:
        told = json.loads(run("status", "--json", mount.mountpoint).stdout)
        pidfd = os.pidfd_open(told["pid"])
        os.kill(told["pid"], signal.SIGKILL)
        _ended(pidfd)
        done = run("status", mount.mountpoint)
        assert (done.returncode, "dead mount" in done.stdout) == (CRITICAL, True)
        refused(run("mount", mount.url, mount.mountpoint), REFUSED, "dead mount")
        done = run("umount", "--dead", mount.mountpoint)
        assert (done.returncode, "dead mount removed" in done.stdout) == (OK, True)
        assert not os.path.ismount(mount.mountpoint)
        assert run("umount", "--dead", mount.mountpoint).returncode == OK


def test_a_mount_whose_daemon_hangs_can_be_detached(federation: Federation, tmp_path: Path) -> None:
    with mounted(federation, tmp_path / "mount") as mount:
        told = json.loads(run("status", "--json", mount.mountpoint).stdout)
        pidfd = os.pidfd_open(told["pid"])
        os.kill(told["pid"], signal.SIGSTOP)
        try:
            done = run("umount", "-l", mount.mountpoint)
            assert (done.returncode, "did not answer" in done.stdout) == (OK, True)
            assert not os.path.ismount(mount.mountpoint)
        finally:
            os.kill(told["pid"], signal.SIGCONT)
        _ended(pidfd)


def test_how_a_mount_fares(tmp_path: Path) -> None:
    with Federation(servers=2) as federation, mounted(federation, tmp_path / "mount") as mount:
        done = run("status", mount.mountpoint)
        assert (done.returncode, "ok: all servers answer" in done.stdout) == (OK, True)
        told = json.loads(run("status", "--json", mount.mountpoint).stdout)
        assert (told["running"], told["state"], told["urls"]) == (True, "ok", [mount.url])
        assert [server["state"] for server in told["server"]] == ["up", "up"]
        lost = federation.servers[1]
        lost.kill()
        with pytest.raises(OSError, match=r"."):
            (mount.mountpoint / "nobody knows").stat()
        done = run("status", mount.mountpoint)
        assert (done.returncode, "degraded" in done.stdout) == (WARNING, True)
        assert f"{lost.address:<28} down for" in done.stdout
        federation.servers[0].kill()
        with pytest.raises(OSError, match=r"."):
            (mount.mountpoint / "nobody at all").stat()
        assert run("status", mount.mountpoint).returncode == CRITICAL
        for server in federation.servers:
            server.start()


def test_all_mounts_of_the_host(federation_mount: FederationMount) -> None:
    done = run("status")
    assert f"{federation_mount.mountpoint}  {federation_mount.url}" in done.stdout.splitlines()


def _ended(pidfd: int) -> None:
    try:
        assert select.select([pidfd], [], [], 60)[0]
    finally:
        os.close(pidfd)
