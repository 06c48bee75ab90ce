"""What every test gets: facilities or a reason to skip, hypothesis profiles, two watchmen.

REQUIRE=fuse,xrootd,… in the environment turns "the facility is missing, skip" into a failure.
No test may leave a mount behind, and none may log a warning that it does not look at itself.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import campaign

_SLOW_MACHINES = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, suppress_health_check=_SLOW_MACHINES
)
settings.register_profile(
    "explore",
    deadline=None,
    database=None,
    max_examples=int(os.environ.get("EXAMPLES", "5000")),
    print_blob=True,
    suppress_health_check=_SLOW_MACHINES,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def _missing_fuse() -> str | None:
    if os.geteuid() != 0:
        return "needs root"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return None


def _missing_xrootd() -> str | None:
    for program in ("xrootd", "cmsd", "xrdfs", "xrdcp"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return None if importlib.util.find_spec("XRootD") else "the XRootD binding is not installed"


def _missing_postgresql() -> str | None:
    found = any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return None if found else "PostgreSQL is not installed"


_FACILITIES = {
    "fuse": _missing_fuse,
    "xrootd": _missing_xrootd,
    "postgresql": _missing_postgresql,
}
_REQUIRED = frozenset(os.environ.get("REQUIRE", "").replace(",", " ").split())


def pytest_configure(config: pytest.Config) -> None:
    """A facility REQUIRE does not know would otherwise be required of nobody.

    What is started here gets an interrupt, also where all this runs in a shell's background.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    unknown = _REQUIRED - _FACILITIES.keys()
    if unknown:
        allowed = ", ".join(_FACILITIES)
        raise pytest.UsageError(f"REQUIRE: unknown {', '.join(sorted(unknown))}; known: {allowed}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the campaigns have done, all together."""
    line = campaign.total()
    if line:
        terminalreporter.write_line(line)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, or fail if it was said that it must."""
    for facility, missing in _FACILITIES.items():
        if item.get_closest_marker(facility) is None:
            continue
        reason = missing()
        if reason is not None and facility in _REQUIRED:
            pytest.fail(f"REQUIRE={facility}, but {reason}", pytrace=False)
        if reason is not None:
            pytest.skip(f"{facility}: {reason}")


@pytest.fixture(autouse=True)
def _no_unexpected_warning(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """A test that takes `caplog` itself judges the log itself; every other log stays quiet."""
    yield
    # An asynchronous test as it was written: what runs it in its place takes no fixtures.
    test = getattr(request.module, request.node.name.partition("[")[0], request.function)
    if "caplog" in inspect.signature(test).parameters:
        return
    loud = [r for r in caplog.get_records("call") if r.levelno >= logging.WARNING]
    assert not loud, f"unexpected in the log: {[r.getMessage() for r in loud]}"


@pytest.fixture(scope="session", autouse=True)
def _no_mount_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever was mounted below the tests' directory is unmounted again."""
    yield
    below = f"{tmp_path_factory.getbasetemp()}/"
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    left = [line for line in lines if line.split(" ")[4].startswith(below)]
    assert not left, f"mounts left behind: {left}"
