"""A real PostgreSQL for tests: in a folder of its own, on a Unix socket, ended by its process id. Knows no table."""

from __future__ import annotations

import atexit
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

import pytest
from agents import until

_USER = "postgres"  # PostgreSQL refuses to run as root: its package makes this user
_SETTINGS = {"listen_addresses": "", "shared_buffers": "16MB", "max_connections": "60", "autovacuum": "off"}
_UNSAFE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Postgres:
    """A server and its databases. safe: what is committed survives a crash of the machine; tests rarely need it."""

    def __init__(self, folder: Path, *, safe: bool = False, settings: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._settings = _SETTINGS | ({} if safe else _UNSAFE) | (settings or {})
        self._numbers = itertools.count(1)
        self.process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            shutil.chown(folder, _USER)
        options = ["-A", "trust", "-U", _USER, "-E", "UTF8", "--locale=C", "--no-sync", "-D", str(self.data)]
        command = _as_user([_program("initdb"), *options])
        subprocess.run(command, check=True, capture_output=True, cwd="/")
        self.start()

    def start(self) -> None:
        """Start it, also after `kill`, and wait until it answers."""
        settings = {**self._settings, "unix_socket_directories": str(self.folder)}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        command = _as_user([_program("postgres"), "-D", str(self.data), *options])
        until(lambda: self._started(command), "PostgreSQL's start", 30)

    def _started(self, command: Sequence[str]) -> bool:
        """Whether it answers. One that was killed keeps its memory until its last child is gone: tried again then."""
        if self.process is None or self.process.poll() is not None:
            with (self.folder / "log").open("ab") as log:
                self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        ready = [_program("pg_isready"), "-q", "-h", str(self.folder)]
        return subprocess.run(ready, check=False).returncode == 0

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in order, hanging up on whoever is connected."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)

    def url(self, database: str = _USER) -> str:
        """A database's address, as SQLAlchemy writes it."""
        return f"postgresql+psycopg://{_USER}@/{database}?host={quote(str(self.folder), safe='/')}"

    def sql(self, statement: str, database: str = _USER) -> str:
        """Have one statement done outside of a transaction; what it prints."""
        command = [_program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-U", _USER]
        done = subprocess.run(
            [*command, "-d", database, "-c", statement], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def new_database(self, template: str = "template0") -> str:
        """A fresh database, or a copy of one that nobody is connected to; its name."""
        name = f"test_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def drop_database(self, name: str) -> None:
        """Delete a database, hanging up on whoever is connected."""
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@cache
def shared_postgres() -> Postgres:
    """This test process's own server, started when it is first wanted. Skips where PostgreSQL is missing."""
    return make_postgres()


def make_postgres(*, safe: bool = False, settings: dict[str, str] | None = None) -> Postgres:
    """A server that ends with this process at the latest. Skips where PostgreSQL is missing."""
    need_postgres()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: the path of a Unix socket has a bound
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    server = Postgres(folder, safe=safe, settings=settings)
    atexit.register(server.stop)
    return server


def need_postgres() -> None:
    """Skip, and say why, where there is no PostgreSQL or nobody it may run as."""
    pytest.importorskip("psycopg", reason="the package psycopg is missing")
    if _folder() is None:
        pytest.skip("PostgreSQL's server is missing (apt-get install postgresql)")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(_USER)
        except KeyError:
            pytest.skip(f"PostgreSQL refuses to run as root, and there is no user {_USER}")


@cache
def _folder() -> Path | None:
    """Where the server's programs are: Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    other = shutil.which("initdb")
    return None if other is None else Path(other).resolve().parent


def _program(name: str) -> str:
    folder = _folder()
    assert folder is not None
    return str(folder / name)


def _as_user(command: list[str]) -> list[str]:
    """The command as the server's user; it ends with this process, however that ends."""
    setpriv = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() == 0:
        setpriv += ["--reuid", _USER, "--regid", _USER, "--init-groups"]
    return [*setpriv, "--", *command]
