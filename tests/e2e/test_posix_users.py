"""Who may do what, and to whom new objects belong, must be as on the file system below."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.mounts import Mounted
from tests.support.overlay import OTHER, as_user, below, open_to_all

pytestmark = pytest.mark.fuse


# Users


def test_new_objects_belong_to_the_caller(work: Path, overlay: Mounted) -> None:
    done = as_user(
        "d = arg[0]\n"
        "open(d + '/f', 'w').close(); os.mkdir(d + '/d'); os.mkfifo(d + '/p')\n"
        "os.symlink('x', d + '/l'); os.mknod(d + '/n'); open(d + '/d/inner', 'w').close()\n"
        "os.link(d + '/f', d + '/h')",
        open_to_all(work),
        gid=777,
    )
    assert done.returncode == 0, done.stderr
    for name in ("f", "d", "p", "l", "n", "d/inner", "h"):
        status = (below(overlay, work) / name).lstat()
        assert (status.st_uid, status.st_gid) == (OTHER, 777), name
    (work / "of root").touch()
    assert (below(overlay, work) / "of root").stat().st_uid == 0


def test_set_group_id_directories_pass_their_group_on(work: Path) -> None:
    os.chown(work, 0, 4242)
    work.chmod(0o2777)
    done = as_user("open(arg[0] + '/f', 'w').close(); os.mkdir(arg[0] + '/d')", work)
    assert done.returncode == 0, done.stderr
    assert ((work / "f").stat().st_gid, (work / "d").stat().st_gid) == (4242, 4242)
    assert (work / "d").stat().st_mode & stat.S_ISGID


def test_permission_by_a_supplementary_group(work: Path) -> None:
    (work / "f").write_text("secret")
    os.chown(work / "f", 0, 900)
    (work / "f").chmod(0o660)
    os.chown(work, 0, 900)
    work.chmod(0o770)
    code = "assert open(arg[0] + '/f').read() == 'secret'; open(arg[0] + '/new', 'w').close()"
    assert as_user(code, work, groups=(800, 900)).returncode == 0
    assert as_user(code, work, groups=(800,)).returncode != 0
    status = (work / "new").stat()
    assert (status.st_uid, status.st_gid) == (OTHER, OTHER)


def test_others_are_kept_out(work: Path) -> None:
    (work / "private").mkdir(0o700)
    (work / "f").write_text("x")
    (work / "f").chmod(0o600)
    for code in (
        "open(arg[0] + '/f')",
        "os.listdir(arg[0] + '/private')",
        "open(arg[0] + '/new', 'w')",
        "os.unlink(arg[0] + '/f')",
        "os.chmod(arg[0] + '/f', 0o777)",
        "os.chown(arg[0] + '/f', os.getuid(), -1)",
        "os.utime(arg[0] + '/f')",
        "os.truncate(arg[0] + '/f', 0)",
        "os.setxattr(arg[0] + '/f', 'user.a', b'')",
    ):
        done = as_user(f"try:\n    {code}\nexcept PermissionError:\n    sys.exit(5)", work)
        assert done.returncode == 5, (code, done.stderr)


def test_sticky_directories(work: Path) -> None:
    work.chmod(0o1777)
    (work / "f").touch(0o666)
    done = as_user(
        "try:\n    os.unlink(arg[0] + '/f')\nexcept PermissionError:\n    sys.exit(5)", work
    )
    assert done.returncode == 5, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "fd = os.open(arg[0], os.O_WRONLY); os.write(fd, b'x')",
        "os.truncate(arg[0], 1)",
        "os.close(os.open(arg[0], os.O_WRONLY | os.O_TRUNC))",
    ],
)
def test_another_user_s_change_ends_set_id_bits(work: Path, code: str) -> None:
    open_to_all(work)
    (work / "f").write_text("program")
    (work / "f").chmod(0o6777)
    done = as_user(code, work / "f")
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((work / "f").stat().st_mode) == 0o777
    (work / "f").chmod(0o6777)
    assert as_user(code, work / "f", uid=0, gid=0).returncode == 0
    assert stat.S_IMODE((work / "f").stat().st_mode) == 0o6777


def test_a_change_of_owner_ends_set_id_bits(work: Path) -> None:
    (work / "f").touch()
    os.chown(work / "f", OTHER, OTHER)
    (work / "f").chmod(0o6755)
    done = as_user("os.chown(arg[0], -1, 900)", work / "f", groups=(900,))
    assert done.returncode == 0, done.stderr
    status = (work / "f").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o755, 900)


def test_a_change_from_outside_the_group_ends_set_group_id(work: Path) -> None:
    """... even where the group may not execute it."""
    for number, (code, groups) in enumerate(
        (
            ("os.chown(arg[0], -1, -1) or os.chown(arg[0], os.getuid(), 900)", ()),
            ("os.chown(arg[0], os.getuid(), 900)", (900,)),
            ("os.truncate(arg[0], 1)", ()),
            ("os.truncate(arg[0], 1)", (900,)),
        )
    ):
        file = work / str(number)
        file.touch()
        os.chown(file, OTHER, 900)
        file.chmod(0o2666)
        done = as_user(code, file, groups=groups)
        assert done.returncode == 0, done.stderr
        assert bool(file.stat().st_mode & stat.S_ISGID) is bool(groups), code


def test_acls_are_enforced_and_inherited(work: Path, overlay: Mounted) -> None:
    work.chmod(0o700)
    (work / "f").write_text("x")
    (work / "f").chmod(0o600)
    code = "open(arg[0] + '/f').read()"
    assert as_user(code, work).returncode != 0
    subprocess.run(["setfacl", "-m", f"u:{OTHER}:rwx", "-m", f"d:u:{OTHER}:rwx", work], check=True)
    subprocess.run(["setfacl", "-m", f"u:{OTHER}:r", work / "f"], check=True)
    assert as_user(code, work).returncode == 0
    assert as_user("open(arg[0] + '/f', 'a')", work).returncode != 0
    (work / "f").chmod(0o600)  # closes the mask
    assert as_user(code, work).returncode != 0
    (work / "sub").mkdir()
    (work / "sub" / "new").write_text("y")
    shown = [
        subprocess.run(["getfacl", "-cpn", path], check=True, capture_output=True, text=True).stdout
        for path in (work / "sub", below(overlay, work) / "sub")
    ]
    assert shown[0] == shown[1]
    assert f"default:user:{OTHER}:rwx" in shown[0]
    assert as_user("open(arg[0]).read()", work / "sub" / "new").returncode == 0


def test_an_acl_set_from_outside_the_group_ends_set_group_id(work: Path) -> None:
    for name, groups, kept in (("in", (900,), True), ("out", (), False)):
        (work / name).touch()
        os.chown(work / name, OTHER, 900)
        (work / name).chmod(0o2775)
        open_to_all(work)
        done = as_user(
            "import subprocess\nsys.exit(subprocess.call(['setfacl', '-m', 'u:77:rwx', arg[0]]))",
            work / name,
            groups=groups,
        )
        assert done.returncode == 0, done.stderr
        assert bool((work / name).stat().st_mode & stat.S_ISGID) is kept
