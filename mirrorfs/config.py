"""What the operator asked for: mount options and the volume file, checked, as one value.

Knows what is allowed and says so: file, key, what is allowed. It does not look at the paths.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from mirrorfs.errors import ConfigurationError, UsageError


class Volume(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One volume: the `[volume]` table; mount options have the same names.

    Attributes:
        mountpoint: the source itself if None.
        journal_sync: "always" answers a job after its record is on the disk.
        journal_open_files: seconds between records of files that stay open and change.
        journal_full: while records cannot be made, changes go on and are found later, or wait, or
            are refused.
        journal_reserve: bytes kept free for records on the journal's disk.
        journal_segment_bytes, journal_segment_age: a segment is sealed at this size or age (s).
        journal_compression: of sealed segments.
        journal_keep: seconds for which records are kept, whatever the sites have.
        journal_detached_keep, journal_detached_bytes: for how long (s), and how much of the
            journal, is kept for a detached site.
        writers: "many": several nodes have this source mounted; `journal` is then a directory with
            one journal a node in it, named by `node`.
        node: this node's id in journals; the host's name if empty.
        locks: "local": locks hold between the users of this mount only.
        guard: "on": changes made behind the mount are noticed.
        restart: "on": an engine that dies is started again.
        attr_timeout: seconds the kernel may keep attributes and names.
        inode_cache: above so many objects the kernel is asked to forget the oldest files.
        io: "inline" for local file systems, "threads" for those that may make a call wait.
        job_variables: environment variables that hold a batch job's id.
        write_through: sites that have a change before the job that made it goes on.
        write_through_timeout: seconds to wait for them at most.
        write_through_fsync: "on": fsync waits, too, not close alone.
        fallback: if a site does not have it then, the job goes on, or gets an error.
        fsname: what findmnt and df call the source; the source's path if empty.
        subtype: the type is shown as `fuse.` and this.
        kernel_options: what the kernel does for the mount: "ro", "nosuid" and the like.
    """

    name: str = ""
    source: str
    mountpoint: str | None = None
    journal: str
    journal_sync: Literal["group", "always"] = "group"
    journal_open_files: float = 30.0
    journal_segment_bytes: int = 64 << 20
    journal_full: Literal["degrade", "block", "readonly"] = "degrade"
    journal_reserve: int = 16 << 20
    journal_segment_age: float = 3600.0
    journal_compression: Literal["zstd", "none"] = "zstd"
    journal_keep: float = 7 * 86400.0
    journal_detached_keep: float = 30 * 86400.0
    journal_detached_bytes: int = 64 << 30
    writers: Literal["one", "many"] = "one"
    node: str = ""
    locks: Literal["local", ""] = ""
    guard: Literal["on", "off"] = "off"
    restart: Literal["on", "off"] = "on"
    engine: Literal["auto", "python"] = "auto"
    attr_timeout: float = 3600.0
    inode_cache: int = 1_000_000
    io: Literal["inline", "threads"] = "inline"
    job_variables: tuple[str, ...] = (
        "SLURM_JOB_ID",
        "PBS_JOBID",
        "LSB_JOBID",
        "JOB_ID",
        "OAR_JOB_ID",
    )
    write_through: tuple[str, ...] = ()
    write_through_timeout: float = 5.0
    write_through_fsync: Literal["on", "off"] = "off"
    fallback: Literal["async", "error"] = "async"
    fsname: str = ""
    subtype: str = "mirrorfs"
    kernel_options: tuple[str, ...] = ()

    @property
    def journal_directory(self) -> str:
        """Where this node's own journal is."""
        return os.path.join(self.journal, self.node) if self.writers == "many" else self.journal


_PASSED_OVER: Final = frozenset(
    {
        *("defaults", "auto", "noauto", "nofail", "_netdev", "comment", "helper", "uhelper"),
        *("user", "users", "owner", "group", "nouser", "nousers", "noowner", "nogroup"),
        *("loud", "silent", "mand", "nomand", "iversion", "noiversion", "lazytime", "nolazytime"),
        *("relatime", "norelatime", "strictatime", "nostrictatime"),
        *("allow_other", "default_permissions", "nonempty", "user_id", "group_id", "max_read"),
    }
)
"""What mount(8), fstab(5) and systemd pass along, for themselves or for disks; and, in the last
line, what is so with every mount of ours. They may have a value."""

_REFUSED: Final = {
    "auto_unmount": "after a crash it would show the raw tree, where changes have no record;"
    " 'mirrorfs umount --dead' takes a dead mount away",
    "allow_root": "all users may use the mount, as they may use the source",
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

_NODE_BYTES_MAX: Final = 64
_NODE: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_SITE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
OFF: Final = "off"
"""In place of the sites of a directory: none is waited for in it and below."""

_SUBTYPE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEYS: Final = tuple(f for f in Volume.__struct_fields__ if f != "kernel_options")
_OPTIONS: Final = tuple(f for f in _KEYS if f not in ("name", "source", "mountpoint"))
_NUMBERS: Final = {
    "journal_open_files": (0.1, 86400.0),
    "journal_segment_bytes": (4096, 1 << 30),
    "journal_reserve": (0, 1 << 40),
    "journal_segment_age": (1.0, 366 * 86400.0),
    "journal_keep": (0.0, 36600 * 86400.0),
    "journal_detached_keep": (0.0, 36600 * 86400.0),
    "journal_detached_bytes": (0, 1 << 60),
    "attr_timeout": (0.0, 86400.0),
    "inode_cache": (1000, 1 << 40),
    "write_through_timeout": (0.1, 3600.0),
}
_SHARED_TIMEOUT: Final = 1.0
"""Seconds after which a change made by another node must be seen."""

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_WITH_UNITS: Final = {
    "journal_segment_bytes": _SIZES,
    "journal_segment_age": _UNITS,
    "journal_keep": _UNITS,
    "journal_detached_keep": _UNITS,
    "journal_detached_bytes": _SIZES,
    "journal_reserve": _SIZES,
}
"""Numbers that may be followed by a unit, as in 7d and 64G."""
_COMMA: Final = re.compile(r"(?<!\\),")
_CHOICES: Final = {
    "journal_sync": ("group", "always"),
    "journal_full": ("degrade", "block", "readonly"),
    "journal_compression": ("zstd", "none"),
    "writers": ("one", "many"),
    "locks": ("local",),
    "guard": ("on", "off"),
    "restart": ("on", "off"),
    "engine": ("auto", "python"),
    "io": ("inline", "threads"),
    "write_through_fsync": ("on", "off"),
    "fallback": ("async", "error"),
}


def read_options(texts: Iterable[str], *, sloppy: bool = False) -> dict[str, Any]:
    """The `-o` arguments, each with options separated by commas. UsageError.

    A backslash makes a comma part of a value. An underscore in a name is as good as a hyphen;
    `job-variables` and the sites of `write-through` are separated by colons. Of two that contradict
    each other the later one holds.
    `sloppy`: pass over what is not known. `remount` and `force` give keys of these names; what is
    for the kernel gives the key `kernel_options`: each word, and whether it shall hold.
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


def read_sites(text: str) -> tuple[str, ...]:
    """The value of a directory's attribute for write-through. ValueError, with what is allowed."""
    names = tuple(dict.fromkeys(text.split(",")))
    if names != (OFF,):
        _check_sites(names)
    return names


def _check_sites(names: Iterable[str]) -> None:
    for name in names:
        if not _SITE.fullmatch(name) or name in (OFF, ".", ".."):
            allowed = "names of sites (letters, digits, '.', '_', '-') are allowed"
            raise ValueError(f"{name or 'an empty name'}: {allowed}")


def _nearest(item: str) -> str:
    """What may have been meant by an option that is not known."""
    key, equals, _ = item.partition("=")
    valued = {_option(name): f"{_option(name)}=VALUE" for name in ("volume", *_OPTIONS)}
    words = {word: word for word in (*_KERNEL, *_OPPOSITES, *_PASSED_OVER, "remount", "force")}
    if key.replace("_", "-") in valued:
        return f"{valued[key.replace('_', '-')]} is allowed"
    if key in words:
        return f"{key} has no value" if equals else f"{key} is allowed"
    known = {**words, **valued}
    near = difflib.get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0.0)
    return f"the nearest is {known[near[0]]}; 'mirrorfs mount --help' shows all"


def _read_option(item: str, options: dict[str, Any]) -> bool:
    """Take one option; False if it is not known."""
    key, equals, value = item.partition("=")
    name = key.replace("-", "_")
    word = _OPPOSITES.get(item, item)
    if word in _KERNEL:
        options.setdefault("kernel_options", {})[word] = word == item
    elif item in ("remount", "force"):
        options[item] = True
    elif name in _NUMBERS and value:
        options[name] = _number(name, value)
    elif name == "job_variables" and equals:
        options[name] = value.split(":")
    elif name == "write_through" and value:
        options[name] = re.split("[:,]", value)
    elif (name == "volume" or name in _OPTIONS) and value:
        options[name] = value
    else:
        return key in _PASSED_OVER or key[:2] in ("x-", "X-")
    return True


def node_name() -> str:
    """This host's id in journals."""
    return os.uname().nodename.encode()[:_NODE_BYTES_MAX].decode(errors="ignore")


def read_volume(source: str | None, mountpoint: str | None, options: Mapping[str, Any]) -> Volume:
    """The volume to mount, from arguments and options. UsageError, ConfigurationError.

    Options go before the file. Paths become absolute.
    """
    values = dict(options)
    switches = values.pop("kernel_options", {})
    file = values.pop("volume", None)
    if file is not None:
        in_file = _read_file(file)
        _check(in_file, file)
        values = in_file | values
    for key, argument in (("source", source), ("mountpoint", mountpoint)):
        if argument is None:
            continue
        known = values.get(key)
        if known is not None and os.path.realpath(known) != os.path.realpath(argument):
            raise ConfigurationError(f"{file}: volume.{key} is {known}, not {argument}")
        values[key] = argument
    if "source" not in values:
        raise UsageError("SOURCE and MOUNTPOINT: missing: name them, or -o volume=FILE")
    if "journal" not in values:
        raise UsageError("option 'journal': missing: -o journal=DIR, or -o volume=FILE")
    volume = _check(values, None)
    return msgspec.structs.replace(
        volume,
        node=volume.node or node_name(),
        kernel_options=tuple(word for word, holds in switches.items() if holds),
        source=os.path.abspath(volume.source),
        mountpoint=os.path.abspath(volume.mountpoint or volume.source),
        journal=os.path.abspath(volume.journal),
    )


def changed_option(current: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """The first option that is not what it is for a mount with the values `current`; in words.

    `options` as `read_options` gives them; what is for the kernel is not looked at. UsageError,
    ConfigurationError.
    """
    now = _check(current, None)
    asked = dict(options)
    for key in ("kernel_options", "force"):
        asked.pop(key, None)
    file = asked.pop("volume", None)
    if file is not None:
        asked = _read_file(file) | asked
    wanted = _check({**current, **asked}, file)
    for key in sorted(asked.keys() & set(_OPTIONS)):
        held, value = getattr(now, key), getattr(wanted, key)
        if held != value and (
            key != "journal" or os.path.realpath(held) != os.path.realpath(value)
        ):
            return f"{_option(key)} is {held}"
    return None


def _read_file(file: str) -> dict[str, Any]:
    """The `[volume]` table of a volume file; the other tables are the replicator's."""
    try:
        with open(file, "rb") as stream:
            tables = tomllib.load(stream)
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: not TOML: {error}") from None
    for table in tables:
        if table not in ("volume", "site", "replicator"):
            allowed = "[volume], [replicator], [[site]]"
            raise ConfigurationError(f"{file}: {table}: not known; allowed: {allowed}")
    volume = tables.get("volume")
    if not isinstance(volume, dict):
        raise ConfigurationError(f"{file}: volume: missing; a table [volume] is needed")
    for key in volume:
        if key.replace("-", "_") not in _KEYS:
            allowed = ", ".join(_KEYS)
            raise ConfigurationError(f"{file}: volume.{key}: not known; allowed: {allowed}")
    for key in ("name", "source", "journal"):
        if key not in volume:
            raise ConfigurationError(f"{file}: volume.{key}: missing")
    return {key.replace("-", "_"): value for key, value in volume.items()}


def _check(values: Mapping[str, Any], file: str | None) -> Volume:
    """Types, choices and ranges of values from a file, or from options."""
    values = {
        key: _counted(key, value) if isinstance(value, str) else value
        for key, value in values.items()
    }
    try:
        volume = msgspec.convert(values, Volume)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).replace("`", "").partition(" - at $.")
        if path in _CHOICES:
            allowed = " or ".join(_CHOICES[path])
            reason = f"{values[path]}: {allowed} is allowed"
        raise _wrong(file, path, reason) from None
    volume = _check_writers(volume, values, file)
    for key, (least, most) in _NUMBERS.items():
        if not least <= getattr(volume, key) <= most:
            raise _wrong(file, key, f"from {least:g} to {most:g} is allowed")
    _check_words(volume, file)
    for key in ("source", "mountpoint", "journal"):
        path = getattr(volume, key)
        if file is not None and path is not None and not path.startswith("/"):
            raise _wrong(file, key, f"{path}: an absolute path is allowed")
    return volume


def _check_words(volume: Volume, file: str | None) -> None:
    """Names of all kinds."""
    if not _SUBTYPE.fullmatch(volume.subtype):
        reason = f"{volume.subtype}: 1 to 64 letters, digits, '.', '_', '-' are allowed"
        raise _wrong(file, "subtype", reason)
    if volume.node and not _NODE.fullmatch(volume.node):
        reason = f"{volume.node}: 1 to 64 letters, digits, '.', '_', '-' are allowed, no '.' first"
        raise _wrong(file, "node", reason)
    try:
        _check_sites(volume.write_through)
    except ValueError as error:
        raise _wrong(file, "write_through", str(error)) from None
    if not volume.fsname.isprintable():
        raise _wrong(file, "fsname", "printable characters are allowed")


def _check_writers(volume: Volume, values: Mapping[str, Any], file: str | None) -> Volume:
    """What several writers of one source ask of the other keys."""
    if volume.writers == "one":
        return volume
    if "attr_timeout" not in values:
        volume = msgspec.structs.replace(volume, attr_timeout=_SHARED_TIMEOUT)
    if file is not None:  # options may add what is missing
        return volume
    if volume.attr_timeout > _SHARED_TIMEOUT:
        raise _wrong(file, "attr_timeout", f"with writers=many {_SHARED_TIMEOUT:g} at most")
    if volume.locks != "local":
        raise UsageError(
            "option 'writers': many: this engine does not forward locks to the source: add"
            " locks=local where no job locks files against other nodes"
        )
    if volume.write_through:
        reason = "with writers=many none is allowed: other nodes' changes would not be waited for"
        raise _wrong(file, "write_through", reason)
    if volume.guard == "on":
        raise UsageError("option 'guard': on: with writers=many off is allowed")
    return volume


def _number(name: str, text: str) -> float | int:
    counted = _counted(name, text)
    try:
        return int(counted) if isinstance(_NUMBERS[name][0], int) else float(counted)
    except ValueError:
        units = "".join(f", or one with {' '.join(known)}" for known in _units(name))
        raise UsageError(f"option '{_option(name)}': {text}: a number is allowed{units}") from None


def _units(name: str) -> list[dict[str, int]]:
    return [_WITH_UNITS[name]] if name in _WITH_UNITS else []


def _counted(name: str, text: str) -> str | int:
    """The number in a text like 7d or 64G; other texts as they are."""
    for units in _units(name):
        if text[-1:] in units and text[:-1].isascii() and text[:-1].isdigit():
            return int(text[:-1]) * units[text[-1]]
    return text


def _wrong(file: str | None, key: str, reason: str) -> ConfigurationError | UsageError:
    if file is None:
        return UsageError(f"option '{_option(key)}': {reason}")
    return ConfigurationError(f"{file}: volume.{key}: {reason}")


def _option(key: str) -> str:
    """The mount option for a key of a volume file."""
    return key.replace("_", "-")
