"""What the operator asked for: the volume file, or options, checked, as values.

Knows what is allowed and says so: file, key, what is allowed. It does not look at journals, sources
or sites.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from replicator.commit_order import CommitOrder
from replicator.patterns import Patterns

WORKERS_MAX: Final = 1024
SITE_KEYS: Final = (
    *("name", "url", "workers", "commit_order", "deadline", "deadlines", "verify_writes"),
    *("bandwidth", "deletes_max", "include", "exclude"),
)
VERIFY_WRITES: Final = ("off", "read-back")
DEADLINE_MAX: Final = 86_400
BANDWIDTH_MIN: Final = 1000
BANDWIDTH_MAX: Final = 10**12
DELETES_MAX: Final = 1_000_000_000
VOLUME_KEYS: Final = frozenset(
    {
        *("name", "source", "mountpoint", "journal", "journal_sync", "journal_open_files"),
        *("write_through", "write_through_timeout", "write_through_fsync", "fallback"),
        *("journal_segment_bytes", "writers", "engine", "attr_timeout", "inode_cache", "io"),
        *("job_variables", "fsname", "subtype", "journal_full", "journal_reserve"),
        *("journal_segment_age", "journal_compression", "journal_keep"),
        *("journal_detached_keep", "journal_detached_bytes"),
        *("node", "locks", "guard", "restart"),
    }
)
"""Keys of `[volume]`. All but `journal` are for mirrorfs, which checks their values."""

REPLICATOR_KEYS: Final = ("warn_lag", "critical_lag", "warn_failed", "critical_failed")
"""Of `[replicator]`, and, for one site, of `[[site]]`: from where on `status` is not content."""

METRICS_KEYS: Final = ("metrics_file", "metrics_listen")

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BANDWIDTH: Final = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([kKMGT]?)(i?)B/s")
_PLANNED: Final = ("ssh", "root", "roots", "xroot", "xroots")


class UsageError(Exception):
    """A wrong option or argument."""

    exit_code = 64


class ConfigurationError(Exception):
    """A volume file that says what is not allowed."""

    exit_code = 65


@dataclass(frozen=True)
class Thresholds:
    """When `status` warns of a site, and when it is critical.

    Attributes:
        warn_lag, critical_lag: seconds that a site may be behind. 0: never.
        warn_failed, critical_failed: from so many failed steps on. 0: never.
    """

    warn_lag: float = 300.0
    critical_lag: float = 3600.0
    warn_failed: int = 1
    critical_failed: int = 0


@dataclass(frozen=True)
class SiteSettings:
    """One site.

    Attributes:
        name: as in `[[site]]` and `--site`.
        url: `file://` and the path.  path: absolute, without a slash at its end.
        workers: how many files may be copied at once.
        commit_order: in which order changes become visible.
        deadline: seconds after which a file that waits to be copied goes before others.
        deadlines: the same for paths that fit; the first that fits counts.
        bandwidth: so many bytes a second are read to be copied, at most; 0: as many as can be.
        read_back: what was written is read again, and compared.
        deletes_max: so many objects may be removed in an hour, then an operator is asked; 0: any
            number.
        include, exclude: patterns as in a `.gitignore`: only what the first fit, if there are any;
            not what the second fit.
        thresholds: its own; None: those of the volume.
    """

    name: str
    url: str
    path: str
    workers: int = 16
    commit_order: CommitOrder = CommitOrder.DIRECTORY
    deadline: int = 300
    deadlines: tuple[tuple[Patterns, int], ...] = ()
    bandwidth: int = 0
    read_back: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    deletes_max: int = 0
    thresholds: Thresholds | None = None

    def deadline_of(self, path: bytes) -> int:
        """Seconds after which a file of that path goes before others."""
        fitting = (seconds for patterns, seconds in self.deadlines if patterns.match(path))
        return next(fitting, self.deadline)


@dataclass(frozen=True)
class RunSettings:
    """A volume as the replicator sees it: the directory of its journal, and its sites.

    Attributes:
        metrics_file: a file for metrics; its directory must exist.
        metrics_listen: host and port, of this host alone, where metrics are served.
    """

    journal: str
    sites: tuple[SiteSettings, ...]
    thresholds: Thresholds = Thresholds()
    metrics_file: str | None = None
    metrics_listen: tuple[str, int] | None = None


def load(volume_file: str | None, journal: str | None, sites: Sequence[str]) -> RunSettings:
    """The settings from a volume file, from options, or from both: sites add up.

    `sites` are `NAME=URL`. UsageError (no site is one, too), ConfigurationError.
    """
    settings = load_volume(volume_file, journal, sites)
    if not settings.sites:
        if volume_file is None:
            raise UsageError("option '--site': missing: --site NAME=URL, or a volume file")
        raise ConfigurationError(f"{volume_file}: site: missing; a table [[site]] is needed")
    return settings


def load_volume(
    volume_file: str | None, journal: str | None, sites: Sequence[str] = ()
) -> RunSettings:
    """The same for commands that need no site. UsageError, ConfigurationError."""
    if volume_file is None and journal is None:
        raise UsageError("journal: missing: --journal DIR, or a volume file")
    found = RunSettings("", ())
    if volume_file is not None:
        found = _read_file(volume_file)
    if journal is not None:
        if not journal:
            raise UsageError("option '--journal': empty: a directory is allowed")
        if found.journal and os.path.realpath(found.journal) != os.path.realpath(journal):
            raise UsageError(
                f"option '--journal': {journal}: {volume_file} says {found.journal}: one of them"
            )
        found = dataclasses.replace(found, journal=os.path.abspath(journal))
    wanted = [*found.sites, *(_site_of_option(text) for text in sites)]
    again = _repeated(wanted)
    if again is not None:
        raise UsageError(f"option '--site': {again}")
    return dataclasses.replace(found, sites=tuple(wanted))


def parse_site_name(text: str) -> str:
    """The name of a site, if it is one. UsageError."""
    if not _is_name(text):
        raise UsageError(f"option '--site': {_shown(text)}: {_NAME_RULE}")
    return text


_NAME_RULE: Final = "a name of 1 to 64 letters, digits, '.', '_', '-' is allowed"


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and text not in (".", "..")


def _site_of_option(text: str) -> SiteSettings:
    name, equals, url = text.partition("=")
    if not equals or not url:
        raise UsageError(f"option '--site': {_shown(text)}: NAME=URL is allowed")
    parse_site_name(name)
    try:
        return _site(name, url)
    except ValueError as error:
        raise UsageError(f"option '--site': {_shown(text)}: {error}") from None


def _site(name: str, url: str) -> SiteSettings:
    """A site; ValueError says what is wrong with its URL."""
    scheme, colon, rest = url.partition("://")
    if not colon:
        scheme, rest = "file", url
    if scheme in _PLANNED:
        raise ValueError(f"{scheme}:// is not available in this version: file:///DIRECTORY is")
    if scheme != "file" or not rest.startswith("/"):
        raise ValueError("file:///DIRECTORY, or the absolute path of a directory, is allowed")
    if "\0" in rest or not rest.isprintable():
        raise ValueError("a path in UTF-8, without control characters, is allowed")
    path = rest.rstrip("/") or "/"
    return SiteSettings(name, f"file://{path}", path)


def _repeated(sites: Iterable[SiteSettings]) -> str | None:
    """What is said twice."""
    names: set[str] = set()
    paths: dict[str, str] = {}
    for site in sites:
        if site.name in names:
            return f"{site.name}: named twice: each site needs a name of its own"
        other = paths.setdefault(os.path.normpath(site.path), site.name)
        if other != site.name:
            return f"{site.name}: {site.path} is site {other} already"
        names.add(site.name)
    return None


def _read_file(file: str) -> RunSettings:
    """Journal and sites of a volume file. ConfigurationError."""
    try:
        with open(file, "rb") as stream:
            tables = tomllib.load(stream)
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: not TOML: {error}") from None
    for table in tables:
        if table not in ("volume", "site", "replicator"):
            raise _wrong(file, table, "not known; allowed: [volume], [replicator], [[site]]")
    journal = _journal_of(file, tables.get("volume"))
    own = _own_table(file, tables.get("replicator", {}))
    thresholds = _thresholds(file, "replicator", own, Thresholds())
    listed = tables.get("site", [])
    if not isinstance(listed, list) or not all(isinstance(table, dict) for table in listed):
        raise _wrong(file, "site", "tables [[site]] are allowed")
    sites = [
        _site_of_table(file, number, table, thresholds) for number, table in enumerate(listed, 1)
    ]
    again = _repeated(sites)
    if again is not None:
        raise _wrong(file, "site", again)
    listen = own.get("metrics_listen")
    return RunSettings(
        journal,
        tuple(sites),
        thresholds,
        own.get("metrics_file"),
        None if listen is None else _address(file, listen),
    )


def _own_table(file: str, table: Any) -> dict[str, Any]:
    """`[replicator]`, with underscores in its keys."""
    if not isinstance(table, dict):
        raise _wrong(file, "replicator", "a table [replicator] is allowed")
    found = {key.replace("-", "_"): value for key, value in table.items()}
    for key in found:
        if key not in (*REPLICATOR_KEYS, *METRICS_KEYS):
            allowed = ", ".join((*REPLICATOR_KEYS, *METRICS_KEYS))
            raise _wrong(file, f"replicator.{key}", f"not known; allowed: {allowed}")
    path = found.get("metrics_file", "/")
    if not isinstance(path, str) or not path.startswith("/"):
        raise _wrong(file, "replicator.metrics_file", f"{path}: an absolute path is allowed")
    return found


def _address(file: str, value: Any) -> tuple[str, int]:
    """A port of this host alone: nobody else is to read what lies here under which name."""
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    right = colon and port.isascii() and port.isdigit() and int(port) <= 65535
    if not right or host not in ("127.0.0.1", "localhost", "[::1]"):
        allowed = "127.0.0.1:PORT or [::1]:PORT is allowed"
        raise _wrong(file, "replicator.metrics_listen", f"{value}: {allowed}")
    return host.strip("[]"), int(port)


def _thresholds(file: str, where: str, table: dict[str, Any], else_: Thresholds) -> Thresholds:
    found: dict[str, Any] = {}
    for key in REPLICATOR_KEYS:
        value = table.get(key)
        whole = key.endswith("failed")
        if value is None:
            continue
        if type(value) is not int and (whole or type(value) is not float):
            what = "a whole number" if whole else "a number of seconds"
            raise _wrong(file, f"{where}.{key}", f"{value}: {what} is allowed, 0 for never")
        if not 0 <= value < float("inf"):
            raise _wrong(file, f"{where}.{key}", f"{value}: from 0 on is allowed, 0 for never")
        found[key] = value
    return dataclasses.replace(else_, **found)


def _journal_of(file: str, volume: Any) -> str:
    if not isinstance(volume, dict):
        raise _wrong(file, "volume", "missing; a table [volume] is needed")
    for key in volume:
        if key.replace("-", "_") not in VOLUME_KEYS:
            allowed = ", ".join(sorted(VOLUME_KEYS))
            raise _wrong(file, f"volume.{key}", f"not known; allowed: {allowed}")
    journal = volume.get("journal")
    if journal is None:
        raise _wrong(file, "volume.journal", "missing")
    if not isinstance(journal, str) or not journal.startswith("/"):
        raise _wrong(file, "volume.journal", f"{journal}: an absolute path is allowed")
    return journal


def _site_of_table(
    file: str, number: int, table: dict[str, Any], thresholds: Thresholds
) -> SiteSettings:
    where = f"site[{number}]"
    table = {key.replace("-", "_"): value for key, value in table.items()}
    for key in table:
        if key not in (*SITE_KEYS, *REPLICATOR_KEYS):
            allowed = ", ".join((*SITE_KEYS, *REPLICATOR_KEYS))
            raise _wrong(file, f"{where}.{key}", f"not known; allowed: {allowed}")
    for key in ("name", "url"):
        value = table.get(key)
        if not isinstance(value, str):
            reason = "missing" if value is None else f"{value}: a string is allowed"
            raise _wrong(file, f"{where}.{key}", reason)
    name, url = table["name"], table["url"]
    if not _is_name(name):
        raise _wrong(file, f"{where}.name", f"{_shown(name)}: {_NAME_RULE}")
    own = None
    if any(key in table for key in REPLICATOR_KEYS):
        own = _thresholds(file, where, table, thresholds)
    orders = tuple(order.value for order in CommitOrder)
    try:
        site = _site(name, url)
    except ValueError as error:
        raise _wrong(file, f"{where}.url", f"{_shown(url)}: {error}") from None
    return dataclasses.replace(
        site,
        thresholds=own,
        workers=_number(file, where, table, "workers", site.workers, WORKERS_MAX),
        commit_order=CommitOrder(_word(file, where, table, "commit_order", "directory", orders)),
        deadline=_number(file, where, table, "deadline", site.deadline, DEADLINE_MAX),
        deadlines=_deadlines(file, where, table.get("deadlines", [])),
        bandwidth=_bandwidth(file, where, table.get("bandwidth", 0)),
        read_back=_word(file, where, table, "verify_writes", "off", VERIFY_WRITES) == "read-back",
        include=_patterns(file, where, table, "include"),
        exclude=_patterns(file, where, table, "exclude"),
        deletes_max=_number(file, where, table, "deletes_max", 0, DELETES_MAX, least=0),
    )


def _patterns(file: str, where: str, table: dict[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _wrong(file, f"{where}.{key}", f"{value}: a list of strings is allowed")
    for line in value:
        try:
            Patterns([line])
        except ValueError:
            raise _wrong(
                file, f"{where}.{key}", f"{_shown(line)}: a pattern of gitignore(5) is allowed"
            ) from None
    return tuple(value)


def _number(
    file: str,
    where: str,
    table: dict[str, Any],
    key: str,
    default: int,
    maximum: int,
    least: int = 1,
) -> int:
    value = table.get(key, default)
    if type(value) is not int or not least <= value <= maximum:
        raise _wrong(file, f"{where}.{key}", f"{value}: {least} to {maximum} is allowed")
    return value


def _deadlines(file: str, where: str, tables: Any) -> tuple[tuple[Patterns, int], ...]:
    found = []
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise _wrong(file, f"{where}.deadlines", "tables [[site.deadlines]] are allowed")
    for number, table in enumerate(tables, 1):
        here = f"{where}.deadlines[{number}]"
        for key in table:
            if key not in ("path", "seconds"):
                raise _wrong(file, f"{here}.{key}", "not known; allowed: path, seconds")
        path = table.get("path")
        allowed = "a pattern as in .gitignore is allowed"
        if not isinstance(path, str) or not path.strip() or path.startswith(("#", "!")):
            shown = "missing" if path is None else _shown(str(path))
            raise _wrong(file, f"{here}.path", f"{shown}: {allowed}")
        try:
            patterns = Patterns([path])
        except ValueError:
            raise _wrong(file, f"{here}.path", f"{_shown(path)}: {allowed}") from None
        if "seconds" not in table:
            raise _wrong(file, f"{here}.seconds", "missing")
        found.append((patterns, _number(file, here, table, "seconds", 0, DEADLINE_MAX)))
    return tuple(found)


def _bandwidth(file: str, where: str, value: Any) -> int:
    """Bytes a second."""
    told = _BANDWIDTH.fullmatch(value) if isinstance(value, str) else None
    rate = 0
    if told is not None:
        power = " KMGT".index(told[2].upper() or " ")
        rate = int(float(told[1]) * (1024 if told[3] else 1000) ** power)
    none = value in (0, "0") and type(value) in (int, str)
    if not none and not BANDWIDTH_MIN <= rate <= BANDWIDTH_MAX:
        allowed = "1kB/s to 1TB/s, as in '100MB/s' or '95.5 MiB/s', or 0 (none) is allowed"
        raise _wrong(file, f"{where}.bandwidth", f"{value}: {allowed}")
    return rate


def _word(
    file: str, where: str, table: dict[str, Any], key: str, default: str, allowed: Sequence[str]
) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or value not in allowed:
        raise _wrong(file, f"{where}.{key}", f"{value}: {', '.join(allowed)} is allowed")
    return value


def _shown(text: str) -> str:
    return text if text.isprintable() and text else repr(text)


def _wrong(file: str, key: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{file}: {key}: {reason}")
