"""One bench for every kind of store, and for each kind of file system a site may be on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.stores.base import SiteStore
from tests.support import mounting, sites
from tests.support.sites import Bench

REAL_KINDS = ["ext4", "xfs", "tmpfs", "bindfs"]
KINDS = ["memory", *REAL_KINDS]

Factory = Callable[[str], contextlib.AbstractContextManager[Bench]]


@pytest.fixture(scope="session")
def make_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    """Makes a bench of a kind; file systems are mounted when first asked for."""
    base = tmp_path_factory.mktemp("file-systems")
    mounted: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:

        def make(kind: str) -> contextlib.AbstractContextManager[Bench]:
            if kind == "memory":
                return sites.memory()
            if kind == "bindfs":
                return sites.on_bindfs()
            if kind not in mounted:
                mounted[kind] = stack.enter_context(mounting.MOUNTS[kind](base / kind))
            return sites.on_directory(mounted[kind])

        yield make


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, make_bench: Factory) -> Iterator[Bench]:
    """A fresh store."""
    with make_bench(request.param) as made:
        yield made


@pytest.fixture
def store(bench: Bench) -> SiteStore:
    """The same, for tests that need no more than the protocol."""
    return bench.store
