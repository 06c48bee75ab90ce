"""Which data server a new file goes to.

Pure. The choice depends on the file's path and on nothing that two clients could see differently
for long: two that create the same name at the same moment then meet at one server, which lets one
of them win. That is what O_EXCL rests on in a federation without a catalogue. So the default
spreads by name, weighs nothing, and passes over a server only when it cannot take the file.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from xrootdfs.values import Server, Space

FREE_BYTES_MIN: Final = 64 << 20
"""A server with less room is passed over while another has more."""


class Placement(enum.Enum):
    """How to choose."""

    NAME = "name"
    """Spread by the hash of the path."""
    DIRECTORY = "directory"
    """Spread by the hash of the directory's path: its files stay together."""
    SPACE = "space"
    """Where there is most room. Two clients may then create one name at two servers."""


def ranked(
    path: bytes, servers: Iterable[Server], policy: Placement, space: Mapping[Server, Space]
) -> Sequence[Server]:
    """The servers in the order in which they are to be tried for a new file.

    Args:
        path: of the file, relative to the mount.
        servers: those that answer.
        policy: how to choose.
        space: what is known of their room; a server that is not in it is taken to have some.
    """
    candidates = list(servers)
    if policy is Placement.SPACE:
        candidates.sort(key=lambda server: (-_free(server, space), server))
        return candidates
    key = path.rpartition(b"/")[0] if policy is Placement.DIRECTORY else path
    candidates.sort(key=lambda server: _score(key, server))
    return sorted(candidates, key=lambda server: _free(server, space) < FREE_BYTES_MIN)


def _free(server: Server, space: Mapping[Server, Space]) -> int:
    known = space.get(server)
    return FREE_BYTES_MIN if known is None else known.free


def _score(key: bytes, server: Server) -> bytes:
    """Rendezvous hashing: a server that comes or goes moves only the names that are its own."""
    digest = hashlib.blake2b(server.address.encode(), digest_size=16)
    digest.update(b"\0" + key)
    return digest.digest()
