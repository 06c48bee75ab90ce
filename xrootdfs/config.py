"""What the operator asked for: URLs, mountpoint and mount options, checked, as one value.

Knows what is allowed and says so. It looks at no path and asks no server.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from xrootdfs.errors import UsageError
from xrootdfs.names import Redirector, parse_url


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One mount; mount options have the same names.

    Attributes:
        urls: `root://HOST:PORT//PREFIX`, one for each federation.
        missing_when_degraded: what a name is that only a lost server may hold. "error": EIO, as
            long as it is lost; "absent": EIO at first, absent after `server_grace` seconds.
        attr_timeout, negative_timeout, listing_timeout: seconds for which attributes and names,
            absences, and listings count.
        metadata_deadline, data_deadline: seconds for one call to a server; `operation_deadline`
            for a whole operation of a job.
        refresh: seconds between two questions to the redirectors for data servers.
        placement: where new files go: spread by name, or by directory, or where there is room.
        directories: make a directory on all servers, or on one.
        emulate: keep in extended attributes what the protocol does not have.
        uid, gid: whose the files are that have no owner kept.
        log: a file, or "syslog".
    """

    urls: tuple[str, ...]
    mountpoint: str
    missing_when_degraded: Literal["error", "absent"] = "error"
    server_grace: float = 60.0
    attr_timeout: float = 10.0
    negative_timeout: float = 5.0
    listing_timeout: float = 10.0
    metadata_deadline: float = 5.0
    data_deadline: float = 15.0
    operation_deadline: float = 30.0
    refresh: float = 60.0
    placement: Literal["name", "directory", "space"] = "name"
    directories: Literal["all", "one"] = "all"
    emulate: Literal["on", "off"] = "on"
    uid: int
    gid: int
    log: str = "syslog"
    fsname: str = ""
    subtype: str = "xrootdfs"
    allow_other: bool = False
    kernel_options: tuple[str, ...] = ()

    @property
    def redirectors(self) -> tuple[Redirector, ...]:
        """The URLs, taken apart."""
        return tuple(parse_url(url) for url in self.urls)

    @property
    def read_only(self) -> bool:
        """Nothing is to be changed."""
        return "ro" in self.kernel_options


_PASSED_OVER: Final = frozenset(
    {
        *("defaults", "auto", "noauto", "nofail", "_netdev", "comment", "helper", "uhelper"),
        *("user", "users", "owner", "group", "nouser", "nousers", "noowner", "nogroup"),
        *("loud", "silent", "mand", "nomand", "iversion", "noiversion", "lazytime", "nolazytime"),
        *("relatime", "norelatime", "strictatime", "nostrictatime"),
        *("default_permissions", "nonempty", "user_id", "group_id", "max_read"),
    }
)
"""What mount(8), fstab(5) and systemd pass along, for themselves or for disks; and, in the last
line, what is so with every mount of ours. They may have a value."""

_REFUSED: Final = {
    "auto_unmount": "after a crash jobs would write below the mountpoint and not see it;"
    " 'xrootdfs umount --dead' takes a dead mount away",
    "allow_root": "there is allow_other, which lets root in, too",
}
"""What users of FUSE know and cannot have here, with the reason."""

_KERNEL: Final = frozenset(
    {"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "sync", "dirsync"}
)
"""What the kernel does for the mount."""

_OPPOSITES: Final = {
    "rw": "ro",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "atime": "noatime",
    "diratime": "nodiratime",
    "async": "sync",
}

_OPTIONS: Final = tuple(
    field
    for field in Mount.__struct_fields__
    if field not in ("urls", "mountpoint", "kernel_options", "allow_other")
)
_NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "server_grace": (0.0, 86400.0),
    "attr_timeout": (0.0, 3600.0),
    "negative_timeout": (0.0, 3600.0),
    "listing_timeout": (0.0, 3600.0),
    "metadata_deadline": (1.0, 300.0),
    "data_deadline": (1.0, 300.0),
    "operation_deadline": (1.0, 600.0),
    "refresh": (1.0, 86400.0),
    "uid": (0, (1 << 32) - 2),
    "gid": (0, (1 << 32) - 2),
}
_CHOICES: Final = {
    "missing_when_degraded": ("error", "absent"),
    "placement": ("name", "directory", "space"),
    "directories": ("all", "one"),
    "emulate": ("on", "off"),
}
_SUBTYPE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_COMMA: Final = re.compile(r"(?<!\\),")


def read_options(texts: Iterable[str], *, sloppy: bool = False) -> dict[str, Any]:
    """The `-o` arguments, each with options separated by commas. UsageError.

    A backslash makes a comma part of a value. An underscore in a name is as good as a hyphen. Of
    two that contradict each other the later one holds. `sloppy`: pass over what is not known.
    `remount` gives the key `remount`; what is for the kernel gives the key `kernel_options`: each
    word, and whether it shall hold.
    """
    options: dict[str, Any] = {}
    for text in texts:
        for item in filter(None, (part.replace("\\,", ",") for part in _COMMA.split(text))):
            refused = _REFUSED.get(item.partition("=")[0].replace("-", "_"))
            if refused is not None:
                raise UsageError(f"option '{item}': not possible here: {refused}")
            if not _read_option(item, options) and not sloppy:
                raise UsageError(f"option '{item}': not known here: {_nearest(item)}")
    return options


def _nearest(item: str) -> str:
    """What may have been meant by an option that is not known."""
    key, equals, _ = item.partition("=")
    names = [option.replace("_", "-") for option in _OPTIONS]
    valued = {name: f"{name}=VALUE" for name in names}
    words = {word: word for word in (*_KERNEL, *_OPPOSITES, *_PASSED_OVER)}
    words |= {word: word for word in ("remount", "allow_other")}
    if key.replace("_", "-") in valued:
        return f"{valued[key.replace('_', '-')]} is allowed"
    if key in words:
        return f"{key} has no value" if equals else f"{key} is allowed"
    known = {**words, **valued}
    near = difflib.get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0.0)
    return f"the nearest is {known[near[0]]}; 'xrootdfs mount --help' shows all"


def _read_option(item: str, options: dict[str, Any]) -> bool:
    """Take one option; False if it is not known."""
    key, _, value = item.partition("=")
    name = key.replace("-", "_")
    word = _OPPOSITES.get(item, item)
    if word in _KERNEL:
        options.setdefault("kernel_options", {})[word] = word == item
    elif item in ("remount", "allow_other"):
        options[item] = True
    elif name in _NUMBERS and value:
        options[name] = _number(name, value)
    elif name in _OPTIONS and value:
        options[name] = value
    else:
        return key in _PASSED_OVER or key[:2] in ("x-", "X-")
    return True


def read_mount(urls: str, mountpoint: str, options: Mapping[str, Any]) -> Mount:
    """The mount asked for: URLs separated by commas, a directory, options. UsageError."""
    values = {key: value for key, value in options.items() if key != "remount"}
    switches = values.pop("kernel_options", {})
    for key, value in values.items():
        _check(key, value)
    names = tuple(filter(None, urls.split(",")))
    for url in names:
        parse_url(url)
    if not names:
        raise UsageError("URL: missing: root://HOST:PORT//PREFIX is allowed")
    defaults = {"uid": os.getuid(), "gid": os.getgid(), "allow_other": os.geteuid() == 0}
    mount = Mount(
        urls=names,
        mountpoint=os.path.abspath(mountpoint),
        kernel_options=tuple(word for word, holds in switches.items() if holds),
        **{**defaults, **values},
    )
    if mount.log != "syslog" and not mount.log.startswith("/"):
        raise UsageError(f"option 'log': {mount.log}: syslog or an absolute path is allowed")
    return mount


def changed_option(current: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """The first option that is not what it is for a mount with the values `current`; in words."""
    for key in sorted(options.keys() & set(_OPTIONS)):
        _check(key, options[key])
        if current.get(key) != options[key]:
            return f"{key.replace('_', '-')} is {current.get(key)}"
    return None


def _check(key: str, value: Any) -> None:
    option = key.replace("_", "-")
    if key in _CHOICES and value not in _CHOICES[key]:
        allowed = " or ".join(_CHOICES[key])
        raise UsageError(f"option '{option}': {value}: {allowed} is allowed")
    if key in _NUMBERS:
        least, most = _NUMBERS[key]
        if not least <= value <= most:
            raise UsageError(f"option '{option}': {value}: from {least:g} to {most:g} is allowed")
    if key == "subtype" and not _SUBTYPE.fullmatch(value):
        reason = "1 to 64 letters, digits, '.', '_', '-' are allowed"
        raise UsageError(f"option 'subtype': {value}: {reason}")
    if key == "fsname" and not value.isprintable():
        raise UsageError("option 'fsname': printable characters are allowed")


def _number(name: str, text: str) -> float | int:
    try:
        return int(text) if isinstance(_NUMBERS[name][0], int) else float(text)
    except ValueError:
        option = name.replace("_", "-")
        raise UsageError(f"option '{option}': {text}: a number is allowed") from None
