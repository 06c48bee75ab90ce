"""mount(8), umount(8), fstab, findmnt and df, on a machine that this was installed on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrorfs.journal.reader import JournalReader
from tests.support.machine import Done, Machine

pytestmark = pytest.mark.fuse

NOBODY = 65534
MIRRORFS = "/usr/local/bin/mirrorfs"


@dataclass
class Tree:
    """A tree to be mounted on the machine.

    Attributes:
        dir: where it is to be mounted: not over itself, so that both can be looked at.
    """

    machine: Machine
    source: Path
    dir: Path
    journal: Path

    def mount(self, *options: str) -> Done:
        """`mount -t mirrorfs` with the journal and these options."""
        words = ",".join((f"journal={self.journal}", *options))
        return self.machine.run("mount", "-t", "mirrorfs", self.source, self.dir, "-o", words)

    def fstab(self, *options: str) -> None:
        """A line of /etc/fstab with the journal and these options, and no other one."""
        words = ",".join((*options, f"journal={self.journal}"))
        self.machine.write("/etc/fstab", f"{self.source} {self.dir} mirrorfs {words} 0 0\n")

    def findmnt(self) -> dict[str, str] | None:
        """What findmnt says of it."""
        columns = "SOURCE,TARGET,FSTYPE,OPTIONS"
        command = ("findmnt", "--kernel", "--json", "--output", columns, "--mountpoint", self.dir)
        said = self.machine.run(*command).stdout
        return dict(json.loads(said)["filesystems"][0]) if said else None

    def options(self) -> set[str]:
        """Those it is mounted with."""
        found = self.findmnt()
        assert found is not None
        return set(found["options"].split(","))

    def ended_cleanly(self) -> bool:
        """Is the end of the mount the last record?"""
        with JournalReader(str(self.journal)) as reader:
            return [record for batch in reader.read() for record in batch][
                -1
            ].kind.label == "unmount"


@pytest.fixture
def tree(machine: Machine, tmp_path: Path) -> Iterator[Tree]:
    """A tree with one file; whatever is mounted there is unmounted again."""
    made = Tree(machine, tmp_path / "source", tmp_path / "dir", tmp_path / "journal")
    made.source.mkdir()
    made.dir.mkdir()
    (made.source / "file").write_text("as it was")
    machine.write("/etc/fstab", "")
    yield made
    while made.findmnt() is not None:
        machine.run("umount", "--internal-only", "--lazy", made.dir, check=True)


def said(done: Done) -> tuple[int, str, str]:
    """Exit code and both streams."""
    return done.returncode, done.stdout, done.stderr


QUIET = (0, "", "")


def test_mount_use_umount_and_mount_again(tree: Tree) -> None:
    for content in ("first", "second"):
        assert said(tree.mount()) == QUIET
        tree.machine.write(f"{tree.dir}/file", content)
        assert said(tree.machine.run("umount", tree.dir)) == QUIET
        assert tree.ended_cleanly()  # at this very moment: umount has waited for the daemon
        assert (tree.source / "file").read_text() == content


def test_without_any_environment(tree: Tree) -> None:
    assert said(
        tree.machine.run("/bin/mount", "-t", "mirrorfs", tree.source, tree.dir, env={})
    ) == (
        1,
        "",
        "mirrorfs: option 'journal': missing: -o journal=DIR, or -o volume=FILE\n",
    )
    options = f"journal={tree.journal}"
    helper = ("/sbin/mount.mirrorfs", tree.source, tree.dir, "-o", options)
    assert said(tree.machine.run(*helper, env={})) == QUIET
    assert said(tree.machine.run("/sbin/umount.mirrorfs", tree.dir, env={})) == QUIET


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_with_closed_streams(tree: Tree, closed: str) -> None:
    options = f"journal={tree.journal}"
    script = f'mount -t mirrorfs "$1" "$2" -o {options} {closed} && umount "$2" {closed}'
    assert tree.machine.run("sh", "-c", script, "sh", tree.source, tree.dir).returncode == 0
    assert tree.ended_cleanly()


@pytest.mark.parametrize("variable", ["PYTHONPATH", "PYTHONHOME"])
def test_with_the_environment_of_somebody_elses_python(tree: Tree, variable: str) -> None:
    env = {"PATH": "/usr/bin:/bin", variable: "/nowhere", "LC_ALL": "C", "TMPDIR": "/nowhere"}
    command = ("mount", "-t", "mirrorfs", tree.source, tree.dir, "-o", f"journal={tree.journal}")
    assert said(tree.machine.run(*command, env=env)) == QUIET


def test_findmnt_and_df(tree: Tree) -> None:
    assert said(tree.mount("nosuid")) == QUIET
    found = tree.findmnt()
    assert found is not None
    assert (found["source"], found["fstype"]) == (str(tree.source), "fuse.mirrorfs")
    assert {"rw", "nosuid"} <= tree.options()
    columns = "--output=source,fstype,size,itotal,target"
    shown = [tree.machine.run("df", columns, path).stdout for path in (tree.dir, tree.source)]
    rows = [text.splitlines()[1].split() for text in shown]
    assert rows[0][:2] == [str(tree.source), "fuse.mirrorfs"]
    assert rows[0][2:4] == rows[1][2:4]  # sizes are those of what is beneath
    assert rows[0][4] == str(tree.dir)


def test_fsname_and_subtype(tree: Tree) -> None:
    assert said(tree.mount("fsname=the\\, tree", "subtype=archive")) == QUIET
    found = tree.findmnt()
    assert found is not None
    assert (found["source"], found["fstype"]) == ("the, tree", "fuse.archive")
    refused = tree.mount()
    assert refused.returncode == 32
    assert (
        refused.stderr == f"mirrorfs: mountpoint: {tree.dir}: mirrorfs is mounted there already\n"
    )
    assert tree.machine.run(MIRRORFS, "umount", tree.dir).returncode == 0


@pytest.mark.parametrize(
    "options",
    [
        ("defaults",),
        ("rw", "relatime", "_netdev", "nofail"),
        ("auto", "user", "exec", "suid", "dev"),
        ("users", "group", "owner", "comment=for the archive", "nolazytime"),
        ("x-systemd.automount", "x-systemd.requires=/var", "X-mount.mkdir", "async", "noatime"),
    ],
)
def test_options_that_fstab_may_have(tree: Tree, options: tuple[str, ...]) -> None:
    tree.fstab(*(option.replace(" ", "\\040") for option in options))
    assert said(tree.machine.run("mount", tree.dir)) == QUIET
    assert "ro" not in tree.options()
    assert said(tree.machine.run("umount", tree.dir)) == QUIET


def test_options_of_fstab_that_the_kernel_honours(tree: Tree) -> None:
    tree.fstab("ro", "user", "noatime", "exec")
    assert said(tree.machine.run("mount", tree.dir)) == QUIET
    assert {"ro", "nosuid", "nodev", "noatime"} <= tree.options()  # some of them are `user`'s
    assert "noexec" not in tree.options()


def test_mount_all(tree: Tree) -> None:
    tree.fstab("nofail")
    for _ in range(2):  # what is mounted already is passed over
        assert said(tree.machine.run("mount", "-a")) == QUIET
        assert tree.findmnt() is not None
    assert said(tree.machine.run("umount", "-a", "-t", "fuse.mirrorfs")) == QUIET
    assert tree.findmnt() is None
    tree.fstab("noauto")
    assert said(tree.machine.run("mount", "-a")) == QUIET
    assert tree.findmnt() is None


def test_mount_all_over_a_file_system_of_its_own(tree: Tree) -> None:
    line = f"{tree.source} {tree.source} mirrorfs journal={tree.journal} 0 0\n"
    tree.machine.write("/etc/fstab", f"beneath {tree.source} tmpfs defaults 0 0\n{line}")
    for _ in range(2):
        assert said(tree.machine.run("mount", "-a")) == QUIET
    tree.machine.write(f"{tree.source}/file", "recorded")
    assert said(tree.machine.run("umount", tree.source)) == QUIET
    assert tree.ended_cleanly()
    assert tree.machine.run("cat", f"{tree.source}/file").stdout == "recorded"
    assert said(tree.machine.run("umount", tree.source)) == QUIET
    assert (tree.source / "file").read_text() == "as it was"


def test_mount_all_where_one_cannot_be_mounted(tree: Tree) -> None:
    good = f"{tree.source} {tree.dir} mirrorfs journal={tree.journal} 0 0\n"
    missing = f"{tree.source}/missing {tree.dir} mirrorfs journal={tree.journal} 0 0\n"
    tree.machine.write("/etc/fstab", missing + good)
    done = tree.machine.run("mount", "-a")
    assert (done.returncode, tree.findmnt() is not None) == (64, True)
    assert done.stderr == (f"mirrorfs: source: {tree.source}/missing: No such file or directory\n")


def test_only_root_may_mount(tree: Tree) -> None:
    tree.fstab("user")
    done = tree.machine.run("mount", tree.dir, user=NOBODY)
    assert said(done) == (1, "", "mirrorfs: mount: not permitted: only root may mount\n")
    assert said(tree.machine.run("mount", tree.dir)) == QUIET
    done = tree.machine.run("umount", tree.dir, user=NOBODY)
    assert (done.returncode, tree.findmnt() is not None) == (1, True)


def test_read_only_and_back(tree: Tree) -> None:
    tree.fstab("nosuid")
    assert said(tree.machine.run("mount", tree.dir)) == QUIET
    assert said(tree.machine.run("mount", "-o", "remount,ro", tree.dir)) == QUIET
    assert {"ro", "nosuid"} <= tree.options()
    assert tree.machine.run("touch", f"{tree.dir}/file").returncode == 1
    assert said(tree.machine.run("mount", "-o", "remount,rw", tree.dir)) == QUIET
    assert {"rw", "nosuid"} <= tree.options()
    tree.machine.run("touch", f"{tree.dir}/file", check=True)


def test_remount_without_fstab(tree: Tree) -> None:
    assert said(tree.mount("nodev")) == QUIET
    assert said(tree.machine.run("mount", "-o", "remount,ro,noexec", tree.dir)) == QUIET
    assert {"ro", "nodev", "noexec"} <= tree.options()
    command = (MIRRORFS, "mount", tree.source, tree.dir, "-o", "remount,exec")
    assert said(tree.machine.run(*command)) == QUIET  # what is not named stays
    assert {"ro", "nodev"} <= tree.options()
    assert "noexec" not in tree.options()


def test_remount_is_refused_while_a_file_is_open_for_writing(tree: Tree) -> None:
    assert said(tree.mount()) == QUIET
    script = 'exec 3>>"$1/file"; mount -o remount,ro "$1"'
    done = tree.machine.run("sh", "-c", script, "sh", tree.dir)
    line = (
        f"mirrorfs: {tree.dir}: remount: in use: files are open for writing"
        f" ('fuser -vm {tree.dir}')\n"
    )
    assert said(done) == (32, "", line)
    assert "rw" in tree.options()


def test_remount_cannot_change_what_is_the_daemons(tree: Tree) -> None:
    tree.fstab("journal-sync=group")
    assert said(tree.machine.run("mount", tree.dir)) == QUIET
    done = tree.machine.run("mount", "-o", "remount,ro,journal-sync=always", tree.dir)
    assert done.returncode == 32
    assert done.stderr.startswith(
        f"mirrorfs: {tree.dir}: remount: journal-sync is group until it is unmounted: ro, nosuid,"
    )
    assert "rw" in tree.options()


def test_remount_of_what_is_not_mounted(tree: Tree) -> None:
    tree.fstab()
    done = tree.machine.run("/sbin/mount.mirrorfs", tree.source, tree.dir, "-o", "remount,ro")
    assert said(done) == (32, "", f"mirrorfs: {tree.dir}: not a mirrorfs mount\n")


def kill(machine: Machine, named: str | Path) -> None:
    """kill -9 the mirrorfs of a mountpoint or volume file, and what would start it again."""
    running = machine.run(MIRRORFS, "status", "--json", named, check=True)
    told = json.loads(running.stdout)
    machine.run("kill", "-KILL", str(told["supervisor"]), str(told["pid"]), check=True)


def test_a_volume_file(tree: Tree) -> None:
    tree.machine.write(
        "/etc/mirrorfs/helpers.toml",
        f'[volume]\nname = "helpers"\nsource = "{tree.source}"\nmountpoint = "{tree.dir}"\n'
        f'journal = "{tree.journal}"\nsubtype = "archive"\n',
    )
    line = f"{tree.source} {tree.dir} mirrorfs volume=/etc/mirrorfs/helpers.toml,_netdev 0 0\n"
    tree.machine.write("/etc/fstab", line)
    assert said(tree.machine.run("mount", tree.dir)) == QUIET
    assert said(tree.machine.run("mount", "-o", "remount,ro", tree.dir)) == QUIET
    kill(tree.machine, "/etc/mirrorfs/helpers.toml")
    dead = f"{tree.dir}: dead mount removed\n"
    for expected in (dead, ""):  # there is none the second time
        done = tree.machine.run(MIRRORFS, "umount", "--dead", "/etc/mirrorfs/helpers.toml")
        assert said(done) == (0, expected, "")
    tree.machine.run("rm", "/etc/mirrorfs/helpers.toml", check=True)


def test_a_live_mount_is_not_taken_for_a_dead_one(tree: Tree) -> None:
    assert said(tree.mount()) == QUIET
    assert said(tree.machine.run(MIRRORFS, "umount", "--dead", tree.dir)) == QUIET
    assert tree.findmnt() is not None


def test_umount_removes_a_dead_mount(tree: Tree) -> None:
    assert said(tree.mount()) == QUIET
    kill(tree.machine, tree.dir)
    assert said(tree.machine.run("umount", tree.dir)) == QUIET
    assert tree.findmnt() is None
    assert said(tree.mount()) == QUIET


def test_mount_replaces_a_dead_mount(tree: Tree) -> None:
    assert said(tree.mount()) == QUIET
    kill(tree.machine, tree.dir)
    assert said(tree.mount()) == QUIET
    tree.machine.run("touch", f"{tree.dir}/file", check=True)
    assert said(tree.machine.run("umount", tree.dir)) == QUIET
    assert tree.findmnt() is None


def test_umount_of_a_mount_in_use(tree: Tree) -> None:
    assert said(tree.mount()) == QUIET
    script = 'cd "$1"; umount "$1"; code=$?; umount -l "$1" && exit $code'
    done = tree.machine.run("sh", "-c", script, "sh", tree.dir)
    assert done.returncode == 32
    assert done.stderr.startswith(f"mirrorfs: {tree.dir}: in use: ")
    assert tree.findmnt() is None


def test_umount_as_systemd_calls_it(tree: Tree) -> None:
    options = ("-o", f"journal={tree.journal}")
    tree.machine.run(MIRRORFS, "mount", tree.source, tree.dir, *options, check=True)
    assert said(tree.machine.run("umount", tree.dir, "-c")) == QUIET
    assert tree.ended_cleanly()


def test_umount_by_force_and_internally(tree: Tree) -> None:
    for option in ("-f", "-i", "-fl"):
        assert said(tree.mount()) == QUIET
        assert said(tree.machine.run("umount", option, tree.dir)) == QUIET
        assert tree.findmnt() is None
        wait = ("flock", "--timeout", "60", tree.journal / "journal.lock", "true")
        tree.machine.run(*wait, check=True)  # it ends by itself, a little later


def test_a_mount_right_after_an_umount_that_did_not_wait(tree: Tree) -> None:
    both = 'for i in 1 2 3; do umount -i "$2" && mount -t mirrorfs "$1" "$2" -o "$3" || exit; done'
    assert said(tree.mount()) == QUIET
    words = f"journal={tree.journal}"
    assert said(tree.machine.run("sh", "-c", both, "sh", tree.source, tree.dir, words)) == QUIET
    assert said(tree.machine.run("umount", tree.dir)) == QUIET
    with JournalReader(str(tree.journal)) as reader:
        kinds = [record.kind.label for batch in reader.read() for record in batch]
    assert kinds == ["mount", "unmount"] * 4


@pytest.mark.parametrize("options", [(), ("x-of.somebody=1", "user")])
@pytest.mark.parametrize("flags", [(), ("-n",)])
def test_nothing_stays_listed(tree: Tree, options: tuple[str, ...], flags: tuple[str, ...]) -> None:
    tree.fstab(*options)
    for _ in range(2):
        assert said(tree.machine.run("mount", *flags, tree.dir)) == QUIET
        assert said(tree.machine.run("umount", tree.dir)) == QUIET
    listed = tree.machine.run("cat", "/run/mount/utab").stdout.splitlines()
    assert [line for line in listed if str(tree.dir) in line] == []


def test_umount_without_the_command(tree: Tree) -> None:
    assert said(tree.mount()) == QUIET
    command = tree.machine.run("readlink", "/usr/local/bin/mirrorfs", check=True).stdout.strip()
    tree.machine.run("rm", "/usr/local/bin/mirrorfs", check=True)
    try:
        assert said(tree.machine.run("umount", tree.dir)) == QUIET
        assert tree.mount().returncode == 2
    finally:
        tree.machine.run("ln", "-s", command, "/usr/local/bin/mirrorfs", check=True)


def test_verbose_fake_sloppy_and_flags(tree: Tree) -> None:
    options = f"journal={tree.journal},colour=green"
    helper = ("/sbin/mount.mirrorfs", tree.source, tree.dir, "-o", options)
    done = tree.machine.run(*helper, "-vf")
    command = f"mirrorfs mount -o {options} -- {tree.source} {tree.dir}"
    assert said(done) == (0, f"mount.mirrorfs: {command}\n", "")
    assert tree.machine.run(*helper).returncode == 1
    assert said(tree.machine.run(*helper, "-s", "-r", "-t", "mirrorfs")) == QUIET
    assert "ro" in tree.options()
    done = tree.machine.run("umount", "-v", tree.dir)
    assert done.stdout.startswith(f"{tree.dir}: unmounted\n")


def test_in_another_namespace(tree: Tree) -> None:
    script = """
        unshare --mount sleep infinity & other=$!
        until [ "$(readlink /proc/$other/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ]; do :; done
        mount -N $other -t mirrorfs "$1" "$2" -o "journal=$3" || exit
        ! findmnt --kernel --mountpoint "$2" && nsenter --mount=/proc/$other/ns/mnt cat "$2/file"
        code=$?
        umount -N $other "$2" && kill $other && exit $code
    """
    done = tree.machine.run("sh", "-c", script, "sh", tree.source, tree.dir, tree.journal)
    assert said(done) == (0, "as it was", "")
    assert tree.ended_cleanly()


def test_an_escaped_comma_comes_through(tree: Tree) -> None:
    tree.journal = tree.journal.with_name("a, b")
    options = "journal=" + str(tree.journal).replace(",", "\\,")
    command = ("mount", "-t", "mirrorfs", tree.source, tree.dir, "-o", options)
    assert said(tree.machine.run(*command)) == QUIET
    assert said(tree.machine.run("umount", tree.dir)) == QUIET
    words = options.replace(" ", "\\040")
    tree.machine.write("/etc/fstab", f"{tree.source} {tree.dir} mirrorfs {words} 0 0\n")
    assert said(tree.machine.run("mount", tree.dir)) == QUIET
    assert said(tree.machine.run("umount", tree.dir)) == QUIET
    with JournalReader(str(tree.journal)) as reader:
        assert reader.head() == 4  # mounted and unmounted twice


@pytest.mark.parametrize(
    "arguments", [(), ("/a",), ("/a", "/b", "/c"), ("/a", "/b", "-x"), ("/a", "/b", "-o")]
)
def test_usage(machine: Machine, arguments: tuple[str, ...]) -> None:
    done = machine.run("/sbin/mount.mirrorfs", *arguments)
    usage = "mount.mirrorfs SOURCE DIR [-sfnvrw] [-N NAMESPACE] [-o OPTIONS]"
    assert said(done) == (1, "", f"mount.mirrorfs: usage: {usage}\n")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        *[(0, 0), (64, 1), (65, 1), (77, 1), (66, 32), (69, 32), (73, 32), (74, 32)],
        *[(70, 4), (137, 4), (139, 4), (130, 8), (143, 8), (126, 2), (127, 2)],
    ],
)
@pytest.mark.parametrize("name", ["mount.xrootdfs", "umount.xrootdfs"])
def test_exit_codes(machine: Machine, tmp_path: Path, name: str, code: int, expected: int) -> None:
    """Each code that a command may end with, and what mount(8) makes of it."""
    command = tmp_path / "xrootdfs"
    command.write_text(f"#!/bin/sh\nexit {code}\n")
    command.chmod(0o755)
    helper = tmp_path / name
    text = machine.run("cat", f"/sbin/{name}", check=True).stdout
    helper.write_text(text.replace("PATH=/usr/local/bin:", f"PATH={tmp_path}:"))
    helper.chmod(0o755)
    arguments = ("root://host//", "/dir") if name.startswith("mount") else ("/dir",)
    assert machine.run(helper, *arguments).returncode == expected
