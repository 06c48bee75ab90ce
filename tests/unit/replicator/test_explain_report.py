"""The explanation of a path, as people read it."""

from __future__ import annotations

from replicator.explain_report import Explanation, RecordTold, SiteTold, Version, rows

FILE = Version(
    kind="file", size=3_100_000_000, modified="then", mtime_ns=1, owner="0:0", mode="0644"
)
DIRECTORY = Version(
    kind="directory", size=4096, modified="then", mtime_ns=1, owner="0:0", mode="0755", sequence=7
)
WRITE = RecordTold(sequence=4711, time="T", kind="write", path="/a", pid=12, uid=1000, job="88")


def text(told: Explanation) -> list[str]:
    return [f"{label}|{value}" for label, value in rows(told, {1000: "alice"})]


def test_a_path_with_all_there_is_to_tell() -> None:
    moved = RecordTold(sequence=4712, time="U", kind="rename", path="/b", uid=1, pid=3)
    told = Explanation(
        path="/a",
        source=FILE,
        record=WRITE,
        object_record=moved,
        sites=(
            SiteTold(site="one", url="file:///one", verdict="there", text="there", version=FILE),
            SiteTold(site="two", url="", verdict="away", text="gone", version=DIRECTORY),
            SiteTold(site="three", url="", verdict="absent", text="nothing"),
        ),
        notes=("it rains",),
    )
    assert text(told) == [
        "/a|",
        "  source|file, 3.1 GB, modified then",
        "  last|write at T (record 4,711), by alice, process 12, job 88",
        "  object|rename at U (record 4,712), by user 1, process 3 (then /b)",
        "  note|it rains",
        "|",
        "site one|file:///one",
        "  has|file, 3.1 GB, modified then",
        "  state|there",
        "|",
        "site two|",
        "  has|directory, modified then, as of record 7",
        "  state|gone",
        "|",
        "site three|",
        "  state|nothing",
    ]


def test_a_path_nobody_knows() -> None:
    told = Explanation(path="/a", source=None, record=None, object_record=None, sites=())
    assert text(told) == [
        "/a|",
        "  source|nothing stands there",
        "  last|the journal has no record of this path",
    ]


def test_a_record_of_the_object_without_a_path_or_at_the_same() -> None:
    for path in (None, "/a"):
        record = RecordTold(sequence=1, time="T", kind="attributes", path=path)
        told = Explanation(path="/a", source=None, record=WRITE, object_record=record, sites=())
        assert text(told)[3] == "  object|attributes at T (record 1)"
