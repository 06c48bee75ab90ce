"""Options and the volume file: what is allowed, and what is said about the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirrorfs.config import Volume, changed_option, read_options, read_volume
from mirrorfs.errors import ConfigurationError, MirrorfsError, UsageError

VALID = """
[volume]
name = "prod"
source = "/srv/data"
journal = "/var/lib/mirrorfs/prod"
"""


MANY = "journal=/j,writers=many,locks=local"


def volume(*options: str, source: str | None = "/s", mountpoint: str | None = "/m") -> Volume:
    return read_volume(source, mountpoint, read_options(options))


def test_options_alone() -> None:
    made = volume("journal=/j", "attr-timeout=1.5,io=threads", "job_variables=A:B")
    assert (made.source, made.mountpoint, made.journal) == ("/s", "/m", "/j")
    assert (made.attr_timeout, made.io, made.job_variables) == (1.5, "threads", ("A", "B"))
    assert made.journal_sync == "group"


def test_what_mount_passes_along_is_ignored() -> None:
    assert volume("rw,defaults,_netdev,nofail,x-systemd.requires=/a,journal=/j") == volume(
        "journal=/j"
    )


@pytest.mark.parametrize(
    "option",
    [
        *("user", "user=alice", "users", "owner", "group", "comment=a word", "X-mount.mkdir"),
        *("auto", "noauto", "suid", "exec", "dev", "async", "atime", "relatime", "diratime"),
        *("allow_other", "default_permissions", "nonempty", "user_id=0", "group_id=0"),
        "max_read=131072",
    ],
)
def test_what_fstab_may_have_is_taken(option: str) -> None:
    assert volume(option, "journal=/j") == volume("journal=/j")


def test_what_is_not_known_is_passed_over_if_wanted() -> None:
    words = ["journal=/j,colour=green,io=threads"]
    with pytest.raises(UsageError, match="colour=green"):
        read_options(words)
    assert read_options(words, sloppy=True) == {"journal": "/j", "io": "threads"}


def test_kernel_options() -> None:
    assert volume("ro,journal=/j", "nosuid").kernel_options == ("ro", "nosuid")


def test_of_two_kernel_options_the_later_one_holds() -> None:
    assert volume("ro,nosuid,rw,suid,noexec,journal=/j").kernel_options == ("noexec",)
    assert volume("rw,sync,ro,async,journal=/j").kernel_options == ("ro",)
    assert read_options(["remount,rw"]) == {"remount": True, "kernel_options": {"ro": False}}


def test_names_for_findmnt() -> None:
    made = volume("journal=/j,fsname=the tree,subtype=archive-1.x")
    assert (made.fsname, made.subtype) == ("the tree", "archive-1.x")
    assert (volume("journal=/j").fsname, volume("journal=/j").subtype) == ("", "mirrorfs")


def test_options_that_change_in_a_remount(tmp_path: Path) -> None:
    now = {"source": "/s", "mountpoint": "/m", "journal": "/j", "job_variables": ["A"]}
    for same in ("ro", "journal=/j/../j", "journal_sync=group,job_variables=A", "io=inline"):
        assert changed_option(now, read_options([same])) is None
    assert changed_option(now, read_options(["journal=/k"])) == "journal is /j"
    assert changed_option(now, read_options(["io=threads"])) == "io is inline"
    file = tmp_path / "prod.toml"
    file.write_text(VALID)
    told = changed_option(now, read_options([f"volume={file}"]))
    assert told == "journal is /j"
    file.write_text(VALID.replace("/var/lib/mirrorfs/prod", "/j") + "attr_timeout = 1\n")
    assert changed_option(now, read_options([f"volume={file}"])) == "attr-timeout is 3600.0"


def test_several_writers() -> None:
    made = volume(f"{MANY},node=n1")
    assert (made.attr_timeout, made.journal_directory) == (1.0, "/j/n1")
    assert volume(f"{MANY},node=n1,attr-timeout=0.5").attr_timeout == 0.5
    host = os.uname().nodename
    assert volume(MANY).journal_directory == f"/j/{host}"
    assert (volume("journal=/j").node, volume("journal=/j").journal_directory) == (host, "/j")


def test_several_writers_in_a_file(tmp_path: Path) -> None:
    """What the file leaves open, an option may say."""
    text = VALID + 'writers = "many"\n'
    made = volume(in_file(tmp_path, text), "locks=local", source=None, mountpoint=None)
    assert (made.writers, made.attr_timeout) == ("many", 1.0)
    with pytest.raises(UsageError, match="does not forward locks"):
        volume(in_file(tmp_path, text), source=None, mountpoint=None)


def test_a_comma_in_a_value() -> None:
    assert volume(r"journal=/a\,b,io=threads").journal == "/a,b"


def test_numbers_with_units(tmp_path: Path) -> None:
    words = "journal-keep=14d,journal-detached-keep=36h,journal-segment-age=90,"
    made = volume(f"journal=/j,{words}journal-detached-bytes=2T,journal-segment-bytes=16M")
    assert (made.journal_keep, made.journal_detached_keep) == (14 * 86400, 36 * 3600)
    assert (made.journal_segment_age, made.journal_detached_bytes) == (90, 2 << 40)
    assert made.journal_segment_bytes == 16 << 20
    file = in_file(
        tmp_path,
        '[volume]\nname="n"\nsource="/s"\njournal="/j"\n'
        'journal_keep = "2d"\njournal-detached-bytes = "1G"\n',
    )
    made = read_volume(None, None, read_options([file]))
    assert (made.journal_keep, made.journal_detached_bytes) == (2 * 86400, 1 << 30)


def test_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made = volume("journal=j", source="s", mountpoint="./m")
    assert [made.source, made.mountpoint, made.journal] == [f"{tmp_path}/{n}" for n in "smj"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("colour=green", "option 'colour=green': not known here"),
        ("journal", "option 'journal': not known here: journal=VALUE is allowed"),
        ("journal=", "option 'journal=': not known here: journal=VALUE is allowed"),
        ("ro=1", "option 'ro=1': not known here: ro has no value"),
        ("jornal=/x", "option 'jornal=/x': not known here: the nearest is journal=VALUE;"),
        ("atribute-timeout=1", "the nearest is attr-timeout=VALUE; 'mirrorfs mount --help' shows"),
        ("noattime", "the nearest is noatime;"),
        ("auto_unmount", "option 'auto_unmount': not possible here: after a crash it would show"),
        ("allow_root", "option 'allow_root': not possible here: all users may use the mount"),
        ("journal=/j,subtype=a b", "option 'subtype': a b: 1 to 64 letters, digits"),
        ("journal=/j,fsname=a\nb", "option 'fsname': printable characters are allowed"),
        ("journal=/j,attr_timeout=x", "option 'attr-timeout': x: a number is allowed"),
        ("journal=/j,attr_timeout=nan", "option 'attr-timeout': from 0 to 86400 is allowed"),
        ("journal=/j,attr_timeout=-1", "option 'attr-timeout': from 0 to 86400 is allowed"),
        ("journal=/j,journal_segment_bytes=1.5", "1.5: a number is allowed"),
        ("journal=/j,journal_keep=7y", "7y: a number is allowed, or one with s m h d"),
        (
            "journal=/j,journal_detached_bytes=1.5G",
            "1.5G: a number is allowed, or one with K M G T",
        ),
        ("journal=/j,journal_keep=-1", "option 'journal-keep': from 0 to"),
        ("journal=/j,journal_compression=gz", "gz: zstd or none is allowed"),
        ("journal=/j,journal_sync=often", "option 'journal-sync': often: group or always is"),
        ("journal=/j,io=both", "option 'io': both: inline or threads is allowed"),
        ("journal=/j,writers=few", "option 'writers': few: one or many is allowed"),
        ("journal=/j,writers=many", "option 'writers': many: this engine does not forward locks"),
        ("journal=/j,locks=source", "option 'locks': source: local is allowed"),
        (f"{MANY},attr_timeout=2", "option 'attr-timeout': with writers=many 1 at most"),
        (f"{MANY},guard=on", "option 'guard': on: with writers=many off is allowed"),
        ("journal=/j,guard=yes", "option 'guard': yes: on or off is allowed"),
        ("journal=/j,node=../x", "option 'node': ../x: 1 to 64 letters, digits"),
        ("journal=/j,node=.", "option 'node': .: 1 to 64 letters, digits"),
        ("", "option 'journal': missing"),
    ],
)
def test_bad_options(options: str, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        volume(options)
    assert says in str(raised.value)
    assert raised.value.exit_code == 64


def test_no_source() -> None:
    with pytest.raises(UsageError, match="SOURCE and MOUNTPOINT: missing"):
        volume("journal=/j", source=None, mountpoint=None)


def in_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "volume.toml"
    path.write_text(text)
    return f"volume={path}"


def test_a_volume_file(tmp_path: Path) -> None:
    text = f"""
    {VALID}
    mountpoint = "/mnt"
    journal_sync = "always"
    attr-timeout = 10
    job_variables = ["X"]
    [[site]]
    name = "backup"
    url = "file:///b"
    anything = "is the replicator's business"
    """
    made = volume(in_file(tmp_path, text), source=None, mountpoint=None)
    assert made == Volume(
        name="prod",
        source="/srv/data",
        mountpoint="/mnt",
        journal="/var/lib/mirrorfs/prod",
        journal_sync="always",
        attr_timeout=10,
        job_variables=("X",),
        node=os.uname().nodename,
    )


def test_the_mountpoint_is_the_source_by_default(tmp_path: Path) -> None:
    made = volume(in_file(tmp_path, VALID), source=None, mountpoint=None)
    assert made.mountpoint == made.source == "/srv/data"


def test_options_go_before_the_file(tmp_path: Path) -> None:
    option = in_file(tmp_path, VALID)
    made = volume(option, "journal=/other", source="/srv/data", mountpoint="/elsewhere")
    assert (made.journal, made.mountpoint) == ("/other", "/elsewhere")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "volume: missing; a table [volume] is needed"),
        ("volume = 3", "volume: missing; a table [volume] is needed"),
        ("[volume", "not TOML"),
        ("\udcff", "not TOML"),
        (VALID + "[sites]", "sites: not known; allowed: [volume], [replicator], [[site]]"),
        (VALID + "colour = 1", "volume.colour: not known; allowed: name, source, mountpoint"),
        (VALID + "kernel_options = []", "volume.kernel_options: not known"),
        ('[volume]\nname = "x"\nsource = "/s"', "volume.journal: missing"),
        ('[volume]\njournal = "/j"\nsource = "/s"', "volume.name: missing"),
        (VALID + "attr_timeout = '1'", "volume.attr_timeout: Expected float, got str"),
        (VALID + "attr_timeout = 1e9", "volume.attr_timeout: from 0 to 86400 is allowed"),
        (VALID + "io = 'fast'", "volume.io: fast: inline or threads is allowed"),
        (VALID + "mountpoint = 'm'", "volume.mountpoint: m: an absolute path is allowed"),
        (VALID + "job_variables = [1]", "volume.job_variables[0]: Expected str, got int"),
    ],
)
def test_bad_volume_files(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "volume.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError) as raised:
        volume(f"volume={path}", source=None, mountpoint=None)
    assert str(raised.value).startswith(f"{path}: ")
    assert says in str(raised.value)
    assert raised.value.exit_code == 65


def test_a_missing_volume_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing: No such file"):
        volume(f"volume={tmp_path}/missing", source=None, mountpoint=None)


def test_an_argument_that_contradicts_the_file(tmp_path: Path) -> None:
    with pytest.raises(MirrorfsError, match=r"volume\.source is /srv/data, not /other"):
        volume(in_file(tmp_path, VALID), source="/other", mountpoint="/m")


def test_write_through_names_sites() -> None:
    options = read_options(["journal=/j,write-through=a:b.c,write-through-fsync=on,fallback=error"])
    volume = read_volume("/s", "/m", options)
    assert volume.write_through == ("a", "b.c")
    assert (volume.write_through_timeout, volume.fallback) == (5.0, "error")
    escaped = read_options(["journal=/j,write_through=a\\,b"])
    assert read_volume("/s", "/m", escaped).write_through == ("a", "b")


@pytest.mark.parametrize("names", ["off", "a:", "a/b", "..", "a b"])
def test_what_is_no_site_of_write_through(names: str) -> None:
    with pytest.raises(UsageError, match=r"option 'write-through': .*names of sites"):
        read_volume("/s", "/m", read_options([f"journal=/j,write-through={names}"]))
