"""A mount for all tests of a module, and a directory in it for each; a machine to install on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine import Machine, make, running_machine
from tests.support.mounts import Mounted
from tests.support.overlay import overlaid


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mounted tree, not over its source so that both can be looked at."""
    with overlaid(tmp_path_factory.mktemp("overlay")) as overlay:
        yield overlay


@pytest.fixture
def work(overlay: Mounted, request: pytest.FixtureRequest) -> Path:
    """A new directory in the mount."""
    path: Path = overlay.mountpoint / request.node.name.replace("/", "_")[:100]
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make install` installs from."""
    path = tmp_path_factory.mktemp("wheels")
    make("wheels", path)
    return path


@pytest.fixture(scope="session")
def machine(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine of its own that this project was installed on, by `make install`."""
    with running_machine(tmp_path_factory.mktemp("machine")) as machine:
        make("install", wheels, machine=machine)
        yield machine
