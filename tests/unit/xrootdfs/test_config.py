"""Mount options and URLs: what is taken, what is refused, and in which words."""

from __future__ import annotations

import contextlib
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrootdfs.config import Mount, changed_option, read_mount, read_options
from xrootdfs.errors import UsageError

URL = "root://h:1094//a"


def read(*options: str, urls: str = URL) -> Mount:
    return read_mount(urls, "/mnt", read_options(options))


def test_defaults() -> None:
    mount = read()
    assert mount.urls == (URL,)
    assert mount.missing_when_degraded == "error"
    assert (mount.server_grace, mount.metadata_deadline, mount.data_deadline) == (60.0, 5.0, 15.0)
    assert (mount.uid, mount.gid) == (os.getuid(), os.getgid())
    assert mount.allow_other == (os.geteuid() == 0)
    assert mount.kernel_options == ()
    assert not mount.read_only


def test_options_of_every_kind() -> None:
    mount = read(
        "missing-when-degraded=absent,server_grace=5,attr-timeout=0",
        "placement=space,directories=one,emulate=off,uid=7,gid=8,log=/l\\,og",
        "fsname=a b,subtype=x.y-z,allow_other,ro,noexec",
    )
    assert mount.missing_when_degraded == "absent"
    assert (mount.server_grace, mount.attr_timeout) == (5.0, 0.0)
    assert (mount.placement, mount.directories, mount.emulate) == ("space", "one", "off")
    assert (mount.uid, mount.gid, mount.log) == (7, 8, "/l,og")
    assert (mount.fsname, mount.subtype) == ("a b", "x.y-z")
    assert set(mount.kernel_options) == {"ro", "noexec"}
    assert mount.read_only
    assert mount.allow_other


def test_several_urls() -> None:
    mount = read(urls="root://a//x,root://b:99")
    assert [str(r) for r in mount.redirectors] == ["root://a:1094//x", "root://b:99//"]


def test_a_relative_mountpoint_becomes_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    assert read_mount(URL, "m", {}).mountpoint == "/tmp/m"


@pytest.mark.parametrize(
    "option",
    [
        *("defaults", "auto", "noauto", "nofail", "_netdev", "user", "users", "owner", "group"),
        *("nouser", "comment=words", "x-systemd.automount", "x-gvfs-hide", "X-mount.mkdir"),
        *("relatime", "helper=x", "default_permissions", "rw", "suid", "dev", "exec", "async"),
    ],
)
def test_what_mount_and_fstab_pass_along_is_passed_over(option: str) -> None:
    assert read(option) == read()


def test_of_two_opposites_the_later_holds() -> None:
    assert read("ro,rw").kernel_options == ()
    assert read("rw", "ro").kernel_options == ("ro",)


def test_remount_is_told() -> None:
    options = read_options(["remount,ro,exec"])
    assert options == {"remount": True, "kernel_options": {"ro": True, "noexec": False}}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("emulatte=off", "option 'emulatte=off': not known here: the nearest is emulate=VALUE;"),
        ("auto_unmount", "option 'auto_unmount': not possible here: after a crash jobs would"),
        ("allow_root", "option 'allow_root': not possible here: there is allow_other"),
        ("bogus=1", "option 'bogus=1': not known here"),
        ("uid", "option 'uid': not known here: uid=VALUE is allowed"),
        ("uid=", "option 'uid=': not known here"),
        ("ro=1", "option 'ro=1': not known here: ro has no value"),
        ("uid=x", "option 'uid': x: a number is allowed"),
        ("uid=-1", "option 'uid': -1: from 0 to "),
        ("attr-timeout=nan", "option 'attr-timeout': nan: from 0 to 3600 is allowed"),
        ("metadata_deadline=0", "option 'metadata-deadline': 0.0: from 1 to 300 is allowed"),
        ("missing-when-degraded=no", "option 'missing-when-degraded': no: error or absent is"),
        ("placement=x", "option 'placement': x: name or directory or space is allowed"),
        ("subtype=a,subtype=a b", "option 'subtype': a b: 1 to 64 letters"),
        ("fsname=a\tb", "option 'fsname': printable"),
        ("log=here", "option 'log': here: syslog or an absolute path is allowed"),
    ],
)
def test_options_refused(option: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(option)
    assert str(caught.value).startswith(said)


def test_sloppy_passes_over_what_is_not_known() -> None:
    assert read_options(["bogus,ro"], sloppy=True) == {"kernel_options": {"ro": True}}


@pytest.mark.parametrize("urls", ["", ",", "h:1094", "root://a,nonsense"])
def test_urls_refused(urls: str) -> None:
    with pytest.raises(UsageError):
        read(urls=urls)


def test_what_may_not_change_in_a_mount_that_is_there() -> None:
    current = msgspec.to_builtins(read("placement=space"))
    assert changed_option(current, read_options(["placement=space,ro,attr-timeout=10"])) is None
    assert changed_option(current, read_options(["placement=name"])) == "placement is space"
    with pytest.raises(UsageError):
        changed_option(current, read_options(["placement=nowhere"]))


@given(st.lists(st.text(alphabet="abxo,=\\-_ 01", max_size=12), max_size=4))
def test_any_options_are_read_or_refused(texts: list[str]) -> None:
    with contextlib.suppress(UsageError):
        read(*texts)
