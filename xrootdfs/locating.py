"""Where the copies of one file are, asked without a mount.

Importing it starts the client library. What is logged on the way is not shown: the error is.
"""

from __future__ import annotations

import logging

import trio

from xrootdfs.bridge import Bridge
from xrootdfs.errors import CallError, UnusableError
from xrootdfs.federation import Federation
from xrootdfs.names import Redirector
from xrootdfs.status import locations
from xrootdfs.topology import Topology
from xrootdfs.values import ROOT
from xrootdfs.xrd import Client


def locate(place: Redirector) -> list[bytes]:
    """Lines about the file that a URL names, at all servers. OSError, UnusableError."""
    logging.getLogger("xrootdfs").addHandler(logging.NullHandler())
    answer = trio.run(_locate, place)
    if isinstance(answer, CallError):
        raise answer
    return answer


async def _locate(place: Redirector) -> list[bytes] | CallError:
    client = Client(Bridge())
    topology = Topology(client, [place])
    try:
        await topology.discover()
    except CallError as error:
        raise UnusableError(f"{place}: {error.reason}") from None
    async with trio.open_nursery() as nursery:
        try:
            found = await Federation(client, topology, nursery).find_everywhere(ROOT)
        except CallError as error:
            return error
    return locations(ROOT, found)
