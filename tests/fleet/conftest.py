from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from bundles import write_null_bundle
from postgres import shared_postgres
from servers import NOW, write_config

from edgekit.core.bundle import Bundle
from edgekit.fleet.api import Context, make_app
from edgekit.fleet.config import FleetConfig, read_secret
from edgekit.fleet.enroll import enroll, prepare
from edgekit.fleet.store import Store, open_store

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette would like another HTTP client than the one that is installed
    from starlette.testclient import TestClient


LOOPBACK = "http://127.0.0.1"  # what a server that listens on loopback is called


class Clock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `both_databases` run on SQLite and on PostgreSQL, the others on SQLite."""
    if "database_url" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_databases"):
        metafunc.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@cache
def _template() -> str:
    """A database whose tables are made: copying it is quicker than making them."""
    server = shared_postgres()
    name = server.new_database()
    open_store(server.url(name)).close()
    return name


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database of the test's own."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    server = shared_postgres()
    name = server.new_database(_template())
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def config(tmp_path: Path, database_url: str) -> FleetConfig:
    """A prepared server folder; no broker listens."""
    more = {} if database_url.startswith("sqlite") else {"database_url": database_url}
    config = write_config(tmp_path, 1, **more)
    prepare(config)
    return config


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = open_store(database_url)
    yield store
    store.close()


@pytest.fixture
def boards(store: Store) -> tuple[str, ...]:
    """Three enrolled boards."""
    with store.write() as connection:
        enroll(connection, "pi5-a", "raspberrypi5", ["site-a"], NOW)
        enroll(connection, "pi5-b", "raspberrypi5", ["site-b"], NOW)
        enroll(connection, "orin", "jetson-orin-nano", ["site-a", "lab"], NOW)
    return ("pi5-a", "pi5-b", "orin")


@pytest.fixture
def context(config: FleetConfig) -> Iterator[Context]:
    store = open_store(config.database_url)
    yield Context(config, store, read_secret(config.token_file), lambda: "http://127.0.0.1:8080")
    store.close()


@pytest.fixture
def web(context: Context) -> Iterator[TestClient]:
    """The web process without its page, with the token."""
    with TestClient(make_app(context), base_url=LOOPBACK, raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {context.token}"
        yield client


@pytest.fixture
def small(context: Context) -> Context:
    """The same, for bundles of at most 1 MiB."""
    return dataclasses.replace(context, config=dataclasses.replace(context.config, max_bundle_bytes=2**20))


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    def make(file: str = "", **options: object) -> Bundle:
        name = file or f"{options.get('name', 'toy')}-{options.get('version', 1)}.edge"
        return write_null_bundle(tmp_path / name, **options)

    return make
