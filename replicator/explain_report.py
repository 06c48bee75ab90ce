"""What `replicator explain` tells, as values and as text.

Pure. Looks at nothing: `explaining` does.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from replicator.wording import printable, size


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """What stands at the path, in the source or at a site.

    Attributes:
        object: id in hex; at a site: of the source object it is a copy of; null: it bears no mark.
        sequence: at a site: records up to it are in the copy.
    """

    kind: str
    size: int
    modified: str
    mtime_ns: int
    owner: str
    mode: str
    object: str | None = None
    sequence: int | None = None


class RecordTold(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the journal; who wrote it, where it says so."""

    sequence: int
    time: str
    kind: str
    path: str | None
    pid: int | None = None
    uid: int | None = None
    job: str | None = None


class SiteTold(msgspec.Struct, frozen=True, kw_only=True):
    """How it is with a site.

    Attributes:
        verdict: there, absent (rightly), queued, copying, hot, waiting, failed, blocked, skipped,
            paused, away, never, excluded, filtered or unexplained. text: in words.
        arrived: when it became whole there, if the apply log tells.
    """

    site: str
    url: str
    verdict: str
    text: str
    version: Version | None = None
    arrived: str | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What `replicator explain --json` prints. `notes`: what could not be looked at."""

    path: str
    source: Version | None
    record: RecordTold | None
    object_record: RecordTold | None
    sites: tuple[SiteTold, ...]
    notes: tuple[str, ...] = ()


# text ----------------------------------------------------------------------------------------


def rows(told: Explanation, users: dict[int, str]) -> Iterator[tuple[str, str]]:
    """The explanation as labels and texts; a label at the left margin begins a part."""
    yield told.path, ""
    yield "  source", _shown(told.source) if told.source else "nothing stands there"
    if told.record is not None:
        yield "  last", _told(told.record, users)
    else:
        yield "  last", "the journal has no record of this path"
    if told.object_record is not None:
        moved = told.object_record.path
        there = f" (then {moved})" if moved not in (None, told.path) else ""
        yield "  object", _told(told.object_record, users) + there
    for note in told.notes:
        yield "  note", note
    for site in told.sites:
        yield "", ""
        yield f"site {site.site}", site.url
        if site.version is not None:
            up_to = site.version.sequence
            copied = "" if up_to is None else f", as of record {up_to:,}"
            yield "  has", _shown(site.version) + copied
        yield "  state", site.text


def _shown(version: Version) -> str:
    sized = f", {size(version.size)}" if version.kind == "file" else ""
    return f"{version.kind}{sized}, modified {version.modified}"


def _told(record: RecordTold, users: dict[int, str]) -> str:
    text = f"{record.kind} at {record.time} (record {record.sequence:,})"
    if record.uid is not None:
        text += f", by {users.get(record.uid, f'user {record.uid}')}, process {record.pid}"
    return f"{text}, job {printable(record.job)}" if record.job else text
