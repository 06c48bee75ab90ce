"""Volume files and options: what is right is read, what is wrong is named with what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirrorfs.config import Volume
from replicator.commit_order import CommitOrder
from replicator.config import (
    VOLUME_KEYS,
    ConfigurationError,
    RunSettings,
    SiteSettings,
    Thresholds,
    UsageError,
    load,
    load_volume,
    parse_site_name,
)

VOLUME = """
[volume]
name = "prod"
source = "/srv/data"
journal = "/var/lib/mirrorfs/prod"
"""
SITE = """
[[site]]
name = "backup"
url = "file:///mnt/backup/data"
"""


def write(path: Path, text: str) -> str:
    file = path / "prod.toml"
    file.write_text(text)
    return str(file)


def test_a_volume_file(tmp_path: Path) -> None:
    file = write(tmp_path, VOLUME + SITE + '[[site]]\nname="b"\nurl="/mnt/b/"\nworkers = 4\n')
    assert load(file, None, []) == RunSettings(
        "/var/lib/mirrorfs/prod",
        (
            SiteSettings("backup", "file:///mnt/backup/data", "/mnt/backup/data", 16),
            SiteSettings("b", "file:///mnt/b", "/mnt/b", 4),
        ),
    )


def test_what_a_site_may_have(tmp_path: Path) -> None:
    keys = 'commit-order = "journal"\ndeadline = 60\nverify_writes = "read-back"\ndeletes_max = 7\n'
    (site,) = load(write(tmp_path, VOLUME + SITE + keys), None, []).sites
    assert (site.workers, site.commit_order) == (16, CommitOrder.JOURNAL)
    assert (site.deadline, site.read_back, site.deletes_max) == (60, True, 7)


DEADLINES = """
[[site.deadlines]]
path = "products/**"
seconds = 30
[[site.deadlines]]
path = "*.grib"
seconds = 60
"""


def test_a_deadline_for_each_path(tmp_path: Path) -> None:
    (site,) = load(write(tmp_path, VOLUME + SITE + "deadline = 5\n" + DEADLINES), None, []).sites
    paths = [b"products/a.grib", b"a/b.grib", b"a/products", b""]
    assert [site.deadline_of(path) for path in paths] == [30, 60, 5, 5]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ('"100MB/s"', 100_000_000),
        ('"95.5 MiB/s"', 100_139_008),
        ('"1kB/s"', 1000),
        ('"1KiB/s"', 1024),
        ('"2500B/s"', 2500),
        ('"1TB/s"', 10**12),
        ('"0"', 0),
        ("0", 0),
    ],
)
def test_bandwidth(tmp_path: Path, text: str, rate: int) -> None:
    (site,) = load(write(tmp_path, VOLUME + SITE + f"bandwidth = {text}\n"), None, []).sites
    assert site.bandwidth == rate


@pytest.mark.parametrize(
    "text", ['"10MB"', "5", '"0B/s"', '"2TiB/s"', "false", '""', "[]", '"-1B/s"']
)
def test_wrong_bandwidth(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"site\[1\].bandwidth: .*: 1kB/s to 1TB/s, as in"):
        load(write(tmp_path, VOLUME + SITE + f"bandwidth = {text}\n"), None, [])


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = load(None, "journal", ["a=/mnt/a", "b=file:///mnt/b=c%20d"])
    assert found == RunSettings(
        str(tmp_path / "journal"),
        (
            SiteSettings("a", "file:///mnt/a", "/mnt/a"),
            SiteSettings("b", "file:///mnt/b=c%20d", "/mnt/b=c%20d"),
        ),
    )


def test_file_and_options_add_up(tmp_path: Path) -> None:
    file = write(tmp_path, VOLUME + SITE)
    found = load(file, "/var/lib/mirrorfs/../mirrorfs/prod", ["b=/mnt/b"])
    assert found.journal == "/var/lib/mirrorfs/prod"
    assert [site.name for site in found.sites] == ["backup", "b"]


def test_thresholds_of_a_volume_and_of_a_site(tmp_path: Path) -> None:
    own = "[replicator]\nwarn_lag = 60\ncritical-failed = 3\nmetrics_file = '/m'\n"
    own += "metrics_listen = '[::1]:9191'\n"
    found = load(write(tmp_path, VOLUME + own + SITE + "warn_lag = 5.5\n"), None, ["b=/mnt/b"])
    assert found.thresholds == Thresholds(60, 3600.0, 1, 3)
    assert [site.thresholds for site in found.sites] == [Thresholds(5.5, 3600.0, 1, 3), None]
    assert (found.metrics_file, found.metrics_listen) == ("/m", ("::1", 9191))


def test_only_some_commands_need_a_site(tmp_path: Path) -> None:
    file = write(tmp_path, VOLUME)
    assert load_volume(file, None) == RunSettings("/var/lib/mirrorfs/prod", ())
    assert load_volume(None, "/j").sites == ()
    with pytest.raises(ConfigurationError, match=r"prod.toml: site: missing; a table \[\[site\]\]"):
        load(file, None, [])
    with pytest.raises(UsageError, match="'--site': missing: --site NAME=URL, or a volume file"):
        load(None, "/j", [])


def test_every_key_of_mirrorfs_is_known() -> None:
    assert set(Volume.__struct_fields__) - {"kernel_options"} == VOLUME_KEYS


OPTIONS: dict[str, tuple[str | None, list[str], str]] = {
    "no journal": (None, ["a=/mnt/a"], "journal: missing: --journal DIR, or a volume file"),
    "empty journal": ("", ["a=/mnt/a"], "'--journal': empty"),
    "no url": ("/j", ["backup"], "'--site': backup: NAME=URL is allowed"),
    "empty url": ("/j", ["backup="], "'--site': backup=: NAME=URL is allowed"),
    "no name": ("/j", ["=/mnt"], "'--site': '': a name of 1 to 64 letters"),
    "bad name": ("/j", ["a/b=/mnt"], "'--site': a/b: a name of 1 to 64 letters"),
    "long name": ("/j", ["a" * 65 + "=/mnt"], "a name of 1 to 64 letters"),
    "dots": ("/j", ["..=/mnt"], r"'--site': ..: a name of 1 to 64 letters"),
    "relative": ("/j", ["a=mnt"], r"'--site': a=mnt: file:///DIRECTORY, or the absolute path"),
    "host": ("/j", ["a=file://host/mnt"], r"a=file://host/mnt: file:///DIRECTORY"),
    "ssh": ("/j", ["a=ssh://u@h/mnt"], r"a=ssh://u@h/mnt: ssh:// is not available in this version"),
    "root": ("/j", ["a=root://h//mnt"], r"root:// is not available in this version"),
    "unknown": ("/j", ["a=http://h/mnt"], r"a=http://h/mnt: file:///DIRECTORY"),
    "bytes": ("/j", ["a=/mnt/\udcff"], r"'a=/mnt/\\udcff': a path in UTF-8"),
    "line": ("/j", ["a=/mnt\n/x"], r"'a=/mnt\\n/x': a path in UTF-8, without control"),
    "name twice": ("/j", ["a=/mnt", "a=/other"], "'--site': a: named twice"),
    "path twice": ("/j", ["a=/mnt", "b=/mnt/./"], "'--site': b: /mnt/. is site a already"),
}


@pytest.mark.parametrize(("journal", "sites", "said"), OPTIONS.values(), ids=OPTIONS.keys())
def test_wrong_options(journal: str | None, sites: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        load(None, journal, sites)
    assert "\n" not in str(raised.value)


def test_two_journals_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, VOLUME + SITE)
    with pytest.raises(UsageError, match=r"'--journal': /j: .*prod.toml says /var/lib"):
        load(file, "/j", [])
    with pytest.raises(UsageError, match="'--site': backup: named twice"):
        load(file, None, ["backup=/mnt/other"])


def test_a_site_name_alone() -> None:
    assert parse_site_name("backup.2-x_Y") == "backup.2-x_Y"
    with pytest.raises(UsageError, match="'--site': a=b: a name of 1 to 64"):
        parse_site_name("a=b")


FILES = {
    "not TOML": ("[volume", "not TOML: "),
    "not text": ("\udcff", "not TOML: "),
    "table": (
        VOLUME + "[sites]\n",
        r"sites: not known; allowed: \[volume\], \[replicator\], \[\[site\]\]",
    ),
    "own": ("replicator = 3\n" + VOLUME, r"replicator: a table \[replicator\] is allowed"),
    "own key": (VOLUME + "[replicator]\nx = 1\n", "replicator.x: not known; allowed: warn_lag, "),
    "lag": (
        VOLUME + "[replicator]\nwarn_lag = true\n",
        "replicator.warn_lag: True: a number of seconds is allowed, 0 for never",
    ),
    "less": (VOLUME + "[replicator]\nwarn_lag = -1\n", "replicator.warn_lag: -1: from 0 on is"),
    "nan": (VOLUME + "[replicator]\nwarn_lag = nan\n", "replicator.warn_lag: nan: from 0 on is"),
    "half": (
        VOLUME + "[replicator]\nwarn_failed = 1.5\n",
        "replicator.warn_failed: 1.5: a whole number is allowed",
    ),
    "of a site": (VOLUME + SITE + 'warn-lag = "x"\n', r"site\[1\].warn_lag: x: a number of"),
    "metrics": (
        VOLUME + '[replicator]\nmetrics-file = "x"\n',
        "replicator.metrics_file: x: an absolute path is allowed",
    ),
    "everywhere": (
        VOLUME + '[replicator]\nmetrics_listen = "0.0.0.0:9191"\n',
        r"replicator.metrics_listen: 0.0.0.0:9191: 127.0.0.1:PORT or \[::1\]:PORT is allowed",
    ),
    "port": (
        VOLUME + '[replicator]\nmetrics_listen = "127.0.0.1:99999"\n',
        ".*: 127.0.0.1:PORT or",
    ),
    "no port": (VOLUME + "[replicator]\nmetrics_listen = 9191\n", ".*: 9191: 127.0.0.1:PORT or"),
    "no volume": (SITE, r"volume: missing; a table \[volume\] is needed"),
    "volume list": ("volume = 3\n", r"volume: missing; a table \[volume\] is needed"),
    "volume key": (VOLUME + "jurnal = 1\n", r"volume.jurnal: not known; allowed: attr_timeout, "),
    "no journal": ('[volume]\nname = "x"\n', "volume.journal: missing"),
    "journal type": ("[volume]\njournal = 3\n", "volume.journal: 3: an absolute path is allowed"),
    "journal path": ('[volume]\njournal = "x"\n', "volume.journal: x: an absolute path is allowed"),
    "site table": (VOLUME + SITE.replace("[[site]]", "[site]"), r"site: tables \[\[site\]\] are"),
    "site value": ("site = [1]\n" + VOLUME, r"site: tables \[\[site\]\] are"),
    "site key": (
        VOLUME + SITE + "worker = 3\n",
        r"site\[1\].worker: not known; allowed: name, url, workers",
    ),
    "no name": (VOLUME + "[[site]]\n", r"site\[1\].name: missing"),
    "no url": (VOLUME + '[[site]]\nname = "x"\n', r"site\[1\].url: missing"),
    "name type": (VOLUME + "[[site]]\nname = 3\n", r"site\[1\].name: 3: a string is allowed"),
    "name": (VOLUME + SITE.replace("backup", "ba ck", 1), r"site\[1\].name: ba ck: a name of 1"),
    "url": (
        VOLUME + SITE + SITE.replace("file:///mnt", "ssh://mnt"),
        r"site\[2\].url: ssh://mnt/backup/data: ssh:// is not available in this version",
    ),
    "workers": (VOLUME + SITE + "workers = 0\n", r"site\[1\].workers: 0: 1 to 1024 is allowed"),
    "workers type": (
        VOLUME + SITE + "workers = true\n",
        r"site\[1\].workers: True: 1 to 1024 is allowed",
    ),
    "commit order": (
        VOLUME + SITE + 'commit-order = "none"\n',
        r"site\[1\].commit_order: none: any, directory, journal is allowed",
    ),
    "deletes-max": (
        VOLUME + SITE + "deletes-max = -1\n",
        r"site\[1\].deletes_max: -1: 0 to 1000000000 is allowed",
    ),
    "deadline": (VOLUME + SITE + "deadline = 0\n", r"site\[1\].deadline: 0: 1 to 86400 is allowed"),
    "deadlines": (
        VOLUME + SITE + "deadlines = 5\n",
        r"site\[1\].deadlines: tables \[\[site.deadlines\]\] are allowed",
    ),
    "deadlines key": (
        VOLUME + SITE + DEADLINES + "x = 1\n",
        r"site\[1\].deadlines\[2\].x: not known; allowed: path, seconds",
    ),
    "deadlines path": (
        VOLUME + SITE + DEADLINES.replace("*.grib", "!a"),
        r"site\[1\].deadlines\[2\].path: !a: a pattern as in .gitignore is allowed",
    ),
    "deadlines pattern": (
        VOLUME + SITE + DEADLINES.replace("*.grib", "a/[z-a]"),
        r"site\[1\].deadlines\[2\].path: a/\[z-a\]: a pattern",
    ),
    "deadlines no path": (
        VOLUME + SITE + DEADLINES + "[[site.deadlines]]\nseconds = 1\n",
        r"site\[1\].deadlines\[3\].path: missing: a pattern",
    ),
    "deadlines no seconds": (
        VOLUME + SITE + DEADLINES + '[[site.deadlines]]\npath = "a"\n',
        r"site\[1\].deadlines\[3\].seconds: missing",
    ),
    "deadlines seconds": (
        VOLUME + SITE + DEADLINES.replace("60", "0"),
        r"site\[1\].deadlines\[2\].seconds: 0: 1 to 86400 is allowed",
    ),
    "verify writes": (
        VOLUME + SITE + "verify_writes = true\n",
        r"site\[1\].verify_writes: True: off, read-back is allowed",
    ),
    "twice": (VOLUME + SITE + SITE, "site: backup: named twice"),
}


@pytest.mark.parametrize(("text", "said"), FILES.values(), ids=FILES.keys())
def test_wrong_files(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "prod.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError, match=f"^{file}: {said}") as raised:
        load(str(file), None, [])
    assert raised.value.exit_code == 65


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none.toml: No such file or directory"):
        load(str(tmp_path / "none.toml"), None, [])
    with pytest.raises(ConfigurationError, match="Is a directory"):
        load(str(tmp_path), None, [])


def test_patterns_of_a_site(tmp_path: Path) -> None:
    keys = 'include = ["/a/"]\nexclude = ["*.tmp", "# x"]\n'
    (site,) = load(write(tmp_path, VOLUME + SITE + keys), None, []).sites
    assert (site.include, site.exclude) == (("/a/",), ("*.tmp", "# x"))
