from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from servers import write_config

from edgekit.cli.fleet.serve import EXAMPLE, serve
from edgekit.core.errors import BadInput
from edgekit.fleet.config import FleetConfig, read_config

SMALLEST = 'fleet = "demo"\ndata_dir = "data"\nrepository = "repo"\n'


def read(folder: Path, text: str) -> FleetConfig:
    (folder / "fleet.toml").write_text(text)
    return read_config(folder / "fleet.toml")


def test_three_lines_are_enough_and_serve_loopback_only(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(SMALLEST)
    config = read_config(tmp_path / "fleet.toml")
    assert (config.web.host, config.web.port) == ("127.0.0.1", 8080)
    assert (config.broker.host, config.broker.port, config.broker.username) == (
        "127.0.0.1",
        8883,
        "edgekit-server",
    )
    assert (config.web.tls, config.broker.tls) == (True, True)
    assert config.broker.password_file == tmp_path / "data" / "broker.password"
    assert config.repository == tmp_path / "repo"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ('[web]\nhost = "0.0.0.0"\ntls = false\n', 'web.host = "0.0.0.0" is not loopback'),
        ('[web]\nhost = "fleet.example"\ntls = false\n', "is not loopback"),
        ('[broker]\nhost = "0.0.0.0"\ntls = false\n', 'broker.host = "0.0.0.0" is not loopback'),
        ('[broker]\ntls = "no"\n', 'broker.tls must be true or false, got "no"'),
        ("[web]\nport = 70000\n", "web.port must be a port from 0 to 65535, got 70000"),
        ("[web]\nprot = 80\n", "does not know the key web.prot"),
        ('[broker]\nusername = "demo/pi5"\n', "broker.username must be a name"),
        ('public_url = "fleet.example"\n', "public_url must be an address such as https://fleet.example"),
        ("[ingest]\nprocesses = 17\n", "ingest.processes must be at most 16, got 17"),
        ("[ingest]\nprocesses = 2\nfirst = 16\n", "ingest.processes must be at most 1, got 2"),
        ("[ingest]\nfirst = 17\n", "ingest.first must be at most 16, got 17"),
        ("[ingest]\nleader = false\n", "ingest.leader = false needs the database_url of the PostgreSQL"),
        ("max_bundle_mb = 0\n", "max_bundle_mb must be a positive integer, got 0"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(more: str, says: str, tmp_path: Path) -> None:
    text = more + SMALLEST if "[" not in more else SMALLEST + more
    with pytest.raises(BadInput) as raised:
        read(tmp_path, text)
    assert says in str(raised.value)
    assert "fleet.toml" in str(raised.value)


@pytest.mark.parametrize("section", ["web", "broker"])
def test_other_machines_are_let_in_encrypted_or_where_the_file_says_so(section: str, tmp_path: Path) -> None:
    for line in ("", "tls = false\nallow_remote = true\n"):
        config = read(tmp_path, SMALLEST + f'[{section}]\nhost = "0.0.0.0"\n' + line)
        assert getattr(config, section).host == "0.0.0.0"
        assert getattr(config, section).tls == (line == "")
    assert config.broker.reached_at == "127.0.0.1"


def test_without_tls_the_broker_has_its_plain_port(tmp_path: Path) -> None:
    assert read(tmp_path, SMALLEST + "[broker]\ntls = false\n").broker.port == 1883


@pytest.mark.parametrize("fleet", ['"de mo"', '"+"', '"a/b"', "7"])
def test_a_fleet_name_that_topics_do_not_take_is_refused(fleet: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="fleet must be a"):
        read(tmp_path, SMALLEST.replace('"demo"', fleet))


def test_the_example_of_the_help_is_read_and_its_comments_tell_the_defaults(tmp_path: Path) -> None:
    as_it_stands = read(tmp_path, EXAMPLE)
    shown = re.sub(r"^# (?=\w+ = )", "", EXAMPLE, flags=re.MULTILINE)
    assert shown.count("\n# ") == 0
    complete = read(tmp_path, shown)
    given = {"public_url": "https://fleet.example"}
    broker = dataclasses.replace(as_it_stands.broker, pid_file=tmp_path / "server/broker/mosquitto.pid")
    assert complete == dataclasses.replace(as_it_stands, broker=broker, **given)


def test_the_help_says_how_the_broker_is_started() -> None:
    said = " ".join(CliRunner().invoke(serve, ["--help"]).output.split())
    assert "mosquitto -c files_dir/mosquitto.conf" in said
    assert "this server's user" in said


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("sqlite:///other/fleet.db", "sqlite:///{folder}/other/fleet.db"),
        ("postgresql://fleet@db/edgekit", "postgresql+psycopg://fleet:p%40ss@db/edgekit"),
        (
            "postgresql+psycopg://fleet@/edgekit?host=/run/pg",
            "postgresql+psycopg://fleet:p%40ss@/edgekit?host=/run/pg",
        ),
    ],
    ids=["sqlite", "postgresql", "socket"],
)
def test_a_database_is_chosen_by_its_address(tmp_path: Path, url: str, wanted: str) -> None:
    (tmp_path / "password").write_text("p@ss\n")
    more = {"database_password_file": "password"} if url.startswith("postgresql") else {}
    config = write_config(tmp_path, 1, database_url=url, **more)
    assert config.database_url == wanted.format(folder=tmp_path)
    assert "p@ss" not in repr(config)


@pytest.mark.parametrize(
    "url",
    ["mysql://u:secret@db/x", "postgresql://u:secret@db", "postgresql://u:secret@db/", "secret", "sqlite://"],
    ids=["other", "no slash", "no database", "no address", "no file"],
)
def test_an_address_of_no_database_of_ours_is_refused_without_being_shown(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadInput, match="database_url must be sqlite:///FILE or postgresql") as failure:
        write_config(tmp_path, 1, database_url=url)
    assert "secret" not in str(failure.value)


def test_ingesters_have_numbers_and_accounts_of_their_own_and_one_leads(tmp_path: Path) -> None:
    config = read(tmp_path, SMALLEST)
    assert list(config.ingest.numbers) == [1]
    assert config.ingest.leads(1)
    assert config.broker.accounts[:3] == ("edgekit-server", "edgekit-server-2", "edgekit-server-3")
    assert len(set(config.broker.accounts)) == 16
    url = 'database_url = "postgresql://fleet@db/fleet"\n'
    more = "[ingest]\nprocesses = 2\nfirst = 3\nleader = false\n"
    second = read(tmp_path, url + SMALLEST + more).ingest
    assert list(second.numbers) == [3, 4]
    assert not any(second.leads(number) for number in second.numbers)
