"""What a recovery would do: how the last mount ended, and what would be compared, and why.

Looks at the journal, the activity log, the marks and the source, and changes nothing: what it tells
is found by the code that a mount begins with.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from mirrorfs import activity_log, checks, lookback
from mirrorfs.backing_tree import BackingTree
from mirrorfs.beginning import open_tree
from mirrorfs.config import Volume, read_volume
from mirrorfs.errors import NotPermittedError, RefusedError, UnusableError
from mirrorfs.journal.control_client import ControlClient, ControlError, NotRunningError
from mirrorfs.journal.reader import JournalReader
from mirrorfs.journal.record import Kind, ObjectId, SequenceNumber
from mirrorfs.journal.recovery import JournalRefusedError, check_same
from mirrorfs.journal.segment import Header
from mirrorfs.journal.wording import escaped, moment
from mirrorfs.lookback import Ended, Left
from mirrorfs.marks import Noted
from mirrorfs.volume import RESERVED, VolumeDirectory


class Why(enum.Enum):
    """Why something would be compared."""

    NAMED = "the activity log names it: it was being changed"
    SINCE = "made, moved or changed since, below one that was being changed"
    MARKED = "changed while no records were possible"
    EVERYTHING = "nothing tells what was being changed"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What would be compared.

    Attributes:
        path: from the root of the source; None: not known.
        whole: all below it, too.
        is_object: a file of which no name was known.
    """

    object: ObjectId
    path: bytes | None
    whole: bool
    is_object: bool
    why: Why


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a recovery would do.

    Attributes:
        mountpoint: where it is mounted by `pid`: then there is nothing to recover, and nothing else
            was looked at.
        head, last_ns: the last record and its time; 0 if there is none.
        tag: of the last incarnation with a record.
        torn_bytes: behind the last record, to be cut off.
        entries: of the activity log; None: there is none that can be relied on.
        other_boot: it was made before the host was started again.
        reason: why it would be compared, as the records would say.
    """

    journal: str
    source: bytes
    mountpoint: bytes | None = None
    pid: int = 0
    head: int = 0
    last_ns: int = 0
    clean: bool = True
    tag: int | None = None
    torn_bytes: int = 0
    entries: int | None = None
    other_boot: bool = False
    marked: str | None = None
    reason: str = ""
    compared: tuple[Comparison, ...] = ()

    @property
    def nothing(self) -> bool:
        """There is nothing to do."""
        return not self.compared and not self.torn_bytes


def named(what: str) -> Volume:
    """The volume of a volume file, or of a journal. MirrorfsError, NoJournalError, OSError."""
    if os.path.isfile(what):
        return read_volume(None, None, {"volume": what})
    if os.path.isfile(os.path.join(what, RESERVED, "volume")):
        raise UnusableError(f"{what}: a source: name its journal, or a volume file")
    with JournalReader(what) as reader:
        header = reader.header
    source = os.fsdecode(header.source.path)
    options: dict[str, Any] = {"journal": os.path.abspath(what), "node": header.node}
    above, name = os.path.split(options["journal"])
    if name == header.node and _is_node(source, name):
        options |= {"journal": above, "writers": "many", "locks": "local"}
    return read_volume(source, source, options)


def _is_node(source: str, node: str) -> bool:
    """Several nodes write that source, this one among them."""
    return os.path.exists(os.path.join(source, RESERVED, "nodes", node))


def look(volume: Volume) -> Prospect:
    """Look. MirrorfsError, NoJournalError, CorruptionError, OSError."""
    if os.geteuid() != 0:
        raise NotPermittedError("recover: not permitted: only root may")
    journal = volume.journal_directory
    try:
        with ControlClient(journal) as client:
            told = client.status()
            return Prospect(journal, told.source, told.mountpoint, told.pid, told.head)
    except NotRunningError:
        pass
    except (ControlError, TimeoutError) as error:
        raise UnusableError(f"{error}: whether it is mounted cannot be told") from None
    checks.check_places(msgspec.structs.replace(volume, mountpoint=volume.source))
    with JournalReader(journal) as reader, contextlib.ExitStack() as stack:
        end = _end(reader)
        tree = open_tree(volume, reader.header.epoch)
        stack.callback(tree.close)
        directory = _volume_directory(volume, tree)
        stack.callback(directory.close)
        _check_same(volume, reader.header, tree, directory)
        others = end.head > 0 and directory.changed_by_others()
        trusted = directory.trusts_activity()
        witness = directory.witness()
        left = lookback.foresee(
            journal, end.ended, tree, trusted=trusted, others=others, witness=witness
        )
        header = left.header
        noted = lookback.noted(directory, tree.root_id)
        return Prospect(
            journal=journal,
            source=tree.path,
            head=end.head,
            last_ns=end.ended.last_ns,
            clean=end.ended.clean,
            tag=end.ended.tags[-1] if end.ended.tags else None,
            torn_bytes=end.torn_bytes,
            entries=None if header is None else len(left.slots),
            other_boot=header is not None and header.boot != activity_log.boot_id(),
            marked=None if noted is None else noted.reason,
            reason=left.reason if left.doubts else "",
            compared=tuple(_comparisons(left, noted)),
        )


class _End(NamedTuple):
    """The last record of a journal, and what is behind it."""

    ended: Ended
    head: SequenceNumber
    torn_bytes: int


def _end(reader: JournalReader) -> _End:
    head, header = reader.head(), reader.header
    last_ns, clean = 0, not header.incarnations
    start = head if head >= reader.first() else None
    for batch in reader.read(start):
        last_ns, clean = batch[-1].time_ns, batch[-1].kind is Kind.UNMOUNT
    tags = lookback.tags_of(reader.incarnations())
    ended = Ended(header.journal, tags, clean, last_ns)
    return _End(ended, head, reader.unread_bytes())


def _volume_directory(volume: Volume, tree: BackingTree) -> VolumeDirectory:
    """Of the source, which has one. RefusedError."""
    if not os.access(RESERVED, os.F_OK, dir_fd=tree.root):
        raise _not_its_source(volume)
    return VolumeDirectory(tree.root, volume.source, volume.node * (volume.writers == "many"))


def _check_same(
    volume: Volume, header: Header, tree: BackingTree, directory: VolumeDirectory
) -> None:
    """The source is the one of the journal. RefusedError, UnusableError."""
    identifier = directory.uuid()
    if identifier is None:
        raise _not_its_source(volume)
    try:
        found = tree.known_identity(header.source.ctime_granularity_ns)
        check_same(volume.journal_directory, header, identifier, found)
    except JournalRefusedError as error:
        raise RefusedError(f"journal: {error}") from None


def _not_its_source(volume: Volume) -> RefusedError:
    return RefusedError(f"source: {volume.source}: has no {RESERVED}/volume, so it is another tree")


def _comparisons(left: Left, noted: Noted | None) -> Iterator[Comparison]:
    names = {slot.object for slot in left.slots}
    for doubt in left.doubts:
        why = Why.NAMED if doubt.object in names else Why.SINCE
        if doubt.whole and why is Why.SINCE:
            why = Why.EVERYTHING
        yield Comparison(doubt.object, doubt.path, doubt.whole, doubt.is_object, why)
    for mark in noted.marks if noted is not None else ():
        yield Comparison(mark.directory, mark.path, mark.whole, is_object=False, why=Why.MARKED)


# As people and programs read it


def lines(prospect: Prospect) -> list[str]:
    """For people."""
    source = escaped(prospect.source)
    if prospect.mountpoint is not None:
        where = f"mounted at {escaped(prospect.mountpoint)} by process {prospect.pid}"
        return [f"{source}: nothing to recover: {where}"]
    ended = "cleanly" if prospect.clean else "without unmounting"
    at = f", {moment(prospect.last_ns)}" if prospect.last_ns else ""
    told = [
        f"{source}",
        f"  journal       {prospect.journal}",
        f"  ended         {ended}",
        f"  last record   {prospect.head}{at}",
    ]
    if prospect.torn_bytes:
        told.append(f"  torn tail     {prospect.torn_bytes} bytes, to be cut off; a copy is kept")
    if prospect.tag is not None:
        told.append(f"  incarnation   {prospect.tag:016x}")
    told.append(f"  activity log  {_entries(prospect)}")
    told.append(f"  marks         {'none' if prospect.marked is None else prospect.marked}")
    if not prospect.compared:
        ended = ": it ended cleanly" if prospect.clean else ""
        return [*told, f"  to compare    nothing{ended}"]
    told.append(f"  to compare    {_total(prospect.compared)}")
    for why in Why:
        found = [_place(each) for each in prospect.compared if each.why is why]
        if found:
            told += [f"    {why.value}:", *(f"      {each}" for each in found)]
    return told


def _entries(prospect: Prospect) -> str:
    if prospect.entries is None:
        return "none that tells of all changes"
    number = "1 entry" if prospect.entries == 1 else f"{prospect.entries} entries"
    return f"{number}, of before the host was started again" if prospect.other_boot else number


def _total(compared: Sequence[Comparison]) -> str:
    files = sum(each.is_object for each in compared)
    directories = len(compared) - files
    whole = sum(each.whole for each in compared)
    parts = [f"{directories} {'directory' if directories == 1 else 'directories'}"]
    parts += [f"{whole} of them with all below"] if whole else []
    parts += [f"{files} {'file' if files == 1 else 'files'}"] if files else []
    return ", ".join(parts)


def _place(comparison: Comparison) -> str:
    path = comparison.path
    where = f"object {comparison.object.hex()}" if path is None else f"/{escaped(path)}"
    return f"{where} and all below it" if comparison.whole else where


def value(prospect: Prospect) -> dict[str, Any]:
    """For JSON."""
    mountpoint = prospect.mountpoint
    return {
        "journal": escaped(os.fsencode(prospect.journal)),
        "source": escaped(prospect.source),
        "mountpoint": None if mountpoint is None else escaped(mountpoint),
        "pid": prospect.pid or None,
        "head": prospect.head,
        "last": moment(prospect.last_ns) if prospect.last_ns else None,
        "clean": prospect.clean,
        "tag": None if prospect.tag is None else f"{prospect.tag:016x}",
        "torn_bytes": prospect.torn_bytes,
        "entries": prospect.entries,
        "other_boot": prospect.other_boot,
        "marked": prospect.marked,
        "reason": prospect.reason or None,
        "compare": [
            {
                "path": None if each.path is None else f"/{escaped(each.path)}",
                "object": each.object.hex(),
                "whole": each.whole,
                "file": each.is_object,
                "why": each.why.name.lower(),
            }
            for each in prospect.compared
        ],
    }
