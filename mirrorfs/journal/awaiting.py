"""What mirrorfs and the replicator of a site tell each other of records that jobs wait for.

Messages only. They go both ways, several at once, over a connection to the control socket that was
begun with a `FollowRequest`; whoever finds it broken begins a new one, and everything is told anew.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

MESSAGES_MAX: Final = 64
"""So many go at once: they fit into one packet whatever names are in them."""


class Awaited(msgspec.Struct, frozen=True, tag="awaited"):
    """A job waits for that record of that incarnation. `objects`, `places`: what it touched."""

    incarnation: int
    sequence: int
    objects: tuple[bytes, ...]
    places: tuple[tuple[bytes, bytes], ...]


class CatchUp(msgspec.Struct, frozen=True, tag="catch-up"):
    """Nobody waits for that site now: say when it has worked on all up to that record."""

    incarnation: int
    sequence: int


class Durable(msgspec.Struct, frozen=True, tag="durable"):
    """What these records touched is on the site's disk as it was after them, or newer."""

    sequences: tuple[int, ...]


class Undone(msgspec.Struct, frozen=True, tag="undone"):
    """What that record touched cannot be made so for the time being."""

    sequence: int
    reason: str


class CaughtUp(msgspec.Struct, frozen=True, tag="caught-up"):
    """The site has worked on all up to that record, and has read all up to `read`."""

    sequence: int
    read: int


class Resting(msgspec.Struct, frozen=True, tag="resting"):
    """The site is paused, or halted: why."""

    reason: str


ToReplicator: TypeAlias = Awaited | CatchUp
FromReplicator: TypeAlias = Durable | Undone | CaughtUp | Resting

encode: Final = msgspec.msgpack.Encoder().encode
to_replicator: Final = msgspec.msgpack.Decoder(list[ToReplicator])
from_replicator: Final = msgspec.msgpack.Decoder(list[FromReplicator])
