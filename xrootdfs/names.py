"""What URLs, addresses and names look like, and which of them cannot be served.

Pure. Build and parse side by side.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import Final

from xrootdfs.errors import CallError, Origin, UsageError

DEFAULT_PORT: Final = 1094
NAME_BYTES_MAX: Final = 254
"""Servers list a name of 255 bytes without its last one."""

PATH_BYTES_MAX: Final = 4095
PORT_MAX: Final = 65535

_URL: Final = re.compile(
    r"x?(?P<scheme>roots?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/.*)?",
    re.DOTALL,
)
_ADDRESS: Final = re.compile(r"(?P<host>\[[^]]+\]|[^\[\]:]+):(?P<port>[0-9]{1,5})")
_MAPPED: Final = re.compile(r"\[::(?:ffff:)?(?P<host>[0-9]+(?:\.[0-9]+){3})\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Redirector:
    """One URL of a mount: whom to ask for data servers, and where the mount begins on them."""

    scheme: str
    address: str
    prefix: bytes

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}/{self.prefix.decode(errors='replace')}"


def parse_url(text: str) -> Redirector:
    """`root://HOST[:PORT][//PREFIX]`. UsageError."""
    match = _URL.fullmatch(text)
    if match is None or not 0 < int(match["port"] or DEFAULT_PORT) <= PORT_MAX:
        raise UsageError(f"{text}: root://HOST:PORT//PREFIX is allowed")
    parts = [part for part in (match["path"] or "").split("/") if part]
    if "." in parts or ".." in parts:
        raise UsageError(f"{text}: '.' and '..' are not allowed in a prefix")
    prefix = ("/" + "/".join(parts)).encode(errors="surrogateescape")
    try:
        check_path(prefix)
    except CallError as error:
        raise UsageError(f"{text}: {error.reason}") from None
    address = f"{match['host'].lower()}:{int(match['port'] or DEFAULT_PORT)}"
    return Redirector(match["scheme"], address, prefix)


def normal_address(text: str) -> str | None:
    """`host:port` of an address as servers tell it; None if it is none.

    IPv4 addresses come dressed as IPv6 (`[::127.0.0.1]:1094`), and host names in any case.
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or not 0 < int(match["port"]) <= PORT_MAX:
        return None
    mapped = _MAPPED.fullmatch(match["host"])
    host = mapped["host"] if mapped else match["host"]
    return f"{host.lower()}:{int(match['port'])}"


def check_path(path: bytes) -> None:
    """CallError for what the protocol or its binding cannot carry.

    `?` begins what is not part of the name, a newline ends an entry of a listing, and the binding
    takes UTF-8 only: EINVAL, EINVAL, EILSEQ.
    """
    if b"?" in path or b"\n" in path or b"\0" in path:
        reason = "'?', newline and NUL cannot be in a name"
        raise CallError(errno.EINVAL, reason, Origin.LOCAL)
    if len(path) > PATH_BYTES_MAX:
        raise CallError(errno.ENAMETOOLONG, "the path is too long", Origin.LOCAL)
    try:
        path.decode()
    except UnicodeDecodeError:
        reason = "a name that is not UTF-8 cannot be in a federation"
        raise CallError(errno.EILSEQ, reason, Origin.LOCAL) from None


def check_name(name: bytes) -> None:
    """The same for one name, which has at most 254 bytes."""
    if len(name) > NAME_BYTES_MAX:
        raise CallError(errno.ENAMETOOLONG, "the name is too long", Origin.LOCAL)
    check_path(name)


def join(directory: bytes, name: bytes) -> bytes:
    """Path of a name in a directory; both paths relative to the mount."""
    return directory + b"/" + name if directory else name


def split(path: bytes) -> tuple[bytes, bytes]:
    """Directory and name of a path that is not the root."""
    directory, _, name = path.rpartition(b"/")
    return directory, name
