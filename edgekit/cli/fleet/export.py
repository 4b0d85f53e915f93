"""`edgekit fleet export`: all of the server's records, roll-ups or events in a file, for tools of other makers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any, Protocol

import click
from rich.console import Console
from rich.status import Status

from edgekit.cli.options import json_option
from edgekit.cli.output import console, print_json
from edgekit.cli.server import client_of, server_options
from edgekit.core.errors import BadInput, MissingExtra, WorldFailed
from edgekit.core.exported import COLUMNS
from edgekit.core.files import sync_folder
from edgekit.core.selector import parse_selector

GROUP_ROWS = 10_000  # of Parquet, written at once
_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_EVERY_S = 0.2


class _Sink(Protocol):
    """What the server's answer is written into. rows: that have come."""

    rows: int

    @property
    def name(self) -> str: ...

    def write(self, data: bytes, /) -> Any: ...

    def end(self) -> None: ...

    def close(self) -> None: ...


@click.command(
    epilog="""Examples:

\b
  edgekit fleet export hours -o hours.parquet --since 7d --server http://127.0.0.1:8080 --token-file api.token
  edgekit fleet export records -o today.csv --since 24h --to profile=raspberrypi5
  edgekit fleet export events -o november.jsonl --since 2026-11-01 --until 2026-12-01"""
)
@click.argument("what", type=click.Choice(list(COLUMNS)))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file: .parquet, .csv or .jsonl. It appears when all is in it.",
)
@click.option(
    "--since", metavar="AGE|DATE", help="From then on: 30m, 24h, 7d, 4w, or a date in UTC. Default: all."
)
@click.option("--until", metavar="AGE|DATE", help="Before then. Default: now.")
@click.option("--to", "selector", default="all", metavar="SELECTOR", help="Of these boards, as in push --to.")
@server_options
@json_option
def export(
    what: str,
    output: Path,
    since: str | None,
    until: str | None,
    selector: str,
    server: str,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Write all records, minutes, hours (of every board) or events that the server has into a file.

    Columns have their units in their names; times are in UTC. Texts of CSV that a spreadsheet would take for a formula
    begin with an apostrophe. Parquet wants: pip install 'edgekit[export]'.
    """
    begun = time.monotonic()
    now = time.time()
    begin = 0.0 if since is None else moment(since, now, "--since")
    end = now if until is None else moment(until, now, "--until")
    parse_selector(selector)
    make = _sink_of(output)
    client = client_of(server, token_file)
    wanted = {"since": begin, "until": end, "to": selector}
    wanted["format"] = "csv" if output.suffix == ".csv" else "ndjson"
    with _new_file(output) as file, contextlib.closing(make(file, what)) as sink, _shown(sink, what):
        client.export(what, sink, **wanted)
        sink.end()
    found = {
        "what": what,
        "file": str(output),
        "rows": sink.rows,
        "bytes": output.stat().st_size,
        "since": begin,
        "until": end,
    }
    if as_json:
        print_json(found)
        return
    took = time.monotonic() - begun
    console.print(
        f"{output}: {sink.rows} rows of {what}, {output.stat().st_size / 1e6:.1f} MB, in {took:.1f} s",
        markup=False,
    )


def moment(text: str, now: float, option: str) -> float:
    """Unix seconds of a time as people write it: an age such as 7d, or a date or time in UTC. Raises BadInput."""
    age = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([mhdw])", text.strip())
    if age:
        return max(0.0, now - float(age[1]) * _UNITS[age[2]])
    try:
        found = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        aware = found if found.tzinfo else found.replace(tzinfo=timezone.utc)
        return max(0.0, (aware - datetime(1970, 1, 1, tzinfo=timezone.utc)) / timedelta(seconds=1))
    except ValueError as err:
        raise BadInput(
            f"{option} must be an age such as 30m, 24h, 7d or 4w, or a date such as 2026-11-01, got {text!r}"
        ) from err


def _sink_of(path: Path) -> Callable[[IO[bytes], str], _Sink]:
    """How the file is written, by its ending. Raises BadInput, MissingExtra."""
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as err:
            raise MissingExtra(
                "Parquet needs: pip install 'edgekit[export]' (.csv and .jsonl need nothing)"
            ) from err
        return _Parquet
    if path.suffix == ".csv":
        return _Csv
    if path.suffix == ".jsonl":
        return _Lines
    raise BadInput(f"-o must be a file that ends in .parquet, .csv or .jsonl, got {path.name!r}")


class _Lines:
    """Lines of JSON, as they come."""

    def __init__(self, file: IO[bytes], _what: str) -> None:
        self.rows = 0
        self._file = file

    @property
    def name(self) -> str:
        return str(self._file.name)

    def write(self, data: bytes, /) -> None:
        self.rows += data.count(b"\n")
        self._file.write(data)

    def end(self) -> None:
        """Nothing is left to write."""

    def close(self) -> None:
        """As for Parquet."""


class _Csv(_Lines):
    """CSV, as it comes: a line break inside quotes ends no row."""

    def __init__(self, file: IO[bytes], what: str) -> None:
        super().__init__(file, what)
        self.rows = -1  # the heading is none
        self._quoted = False

    def write(self, data: bytes, /) -> None:
        for place, part in enumerate(data.split(b'"')):
            if place:
                self._quoted = not self._quoted
            if not self._quoted:
                self.rows += part.count(b"\n")
        self._file.write(data)


class _Parquet:
    """Lines of JSON as Parquet, a group of rows at a time."""

    def __init__(self, file: IO[bytes], what: str) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        kinds = {
            "text": pa.string(),
            "time": pa.timestamp("ms", tz="UTC"),
            "integer": pa.int64(),
            "number": pa.float64(),
            "flag": pa.bool_(),
        }
        self.rows = 0
        self._file = file
        self._times = [name for name, kind in COLUMNS[what].items() if kind == "time"]
        self._schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS[what].items()])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._batch = pa.RecordBatch.from_pylist
        self._wrong = pa.ArrowException
        self._rest = b""
        self._waiting: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return str(self._file.name)

    def write(self, data: bytes, /) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._waiting += (self._read(line) for line in lines)
        self.rows += len(lines)
        if len(self._waiting) >= GROUP_ROWS:
            self._write_group()

    def end(self) -> None:
        """Write what is left, and the file's foot."""
        if self._waiting:
            self._write_group()
        self._writer.close()

    def close(self) -> None:
        """Let go of the file, whatever is in it."""
        with contextlib.suppress(Exception):  # it would like to write its foot where there is no room
            self._writer.close()

    def _read(self, line: bytes) -> dict[str, Any]:
        try:
            row: dict[str, Any] = json.loads(line)
            for name in self._times:
                if row[name] is not None:
                    row[name] = datetime.fromisoformat(row[name].replace("Z", "+00:00"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
            raise WorldFailed(
                "the server's answer is not an export: are its version and this one's the same?"
            ) from err
        return row

    def _write_group(self) -> None:
        try:
            self._writer.write_batch(self._batch(self._waiting, schema=self._schema))
        except (self._wrong, TypeError, AttributeError) as err:
            if isinstance(err, OSError):
                raise
            raise WorldFailed(f"the server's answer does not fit its columns: {err}") from err
        self._waiting = []


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when the block ends well; else nothing of it is left. Raises BadInput, WorldFailed."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: must be a file to be written, and is none")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as err:  # Ctrl-C as well
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(err, OSError):
            raise WorldFailed(f"{path}: could not be written: {err.strerror or err}") from err
        raise


@contextlib.contextmanager
def _shown(sink: _Sink, what: str) -> Iterator[None]:
    """Say on a terminal's stderr how many rows have come."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield
        return
    with screen.status(f"{what}: asking the server") as status:
        write, last = sink.write, 0.0

        def told(data: bytes, /) -> None:
            nonlocal last
            write(data)
            if time.monotonic() - last > _EVERY_S:
                last = time.monotonic()
                _tell(status, what, sink.rows)

        sink.write = told  # type: ignore[method-assign]
        yield


def _tell(status: Status, what: str, rows: int) -> None:
    status.update(f"{what}: {max(0, rows)} rows")
