"""`edgekit fleet serve`: run the server in the foreground."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

import click

from edgekit.cli.options import json_option
from edgekit.cli.output import console, print_json
from edgekit.core.stopping import call_on_signal

# What a fleet.toml may hold; a commented line shows the default. tests/fleet/test_config.py reads it both ways.
EXAMPLE = """\
fleet = "demo"
data_dir = "server"          # paths are relative to this file
repository = "repository"    # made by: edgekit repo init
# max_bundle_mb = 512
# public_url = "https://fleet.example"          # what boards are told; else the served address
[retention]                  # what is older is forgotten; shorter ages where the store outgrows its budget
# raw_hours = 24             # records as boards sent them
# minute_days = 7            # their sums by minute
# hour_days = 730            # and by hour
# event_days = 90
# job_days = 400
# gb_per_1000_boards = 6     # at least 1 GB
[web]
# host = "127.0.0.1"         # "0.0.0.0": other machines as well
# port = 8080                # 0: any free one
# tls = true                 # false: this machine only, unless allow_remote = true
# allow_remote = false
[broker]
# host = "127.0.0.1"         # "0.0.0.0": other machines as well
# port = 8883
# tls = true                 # false: port 1883, this machine only, unless allow_remote = true
# allow_remote = false
# username = "edgekit-server"
# password_file = "server/broker.password"      # drawn if there is none
# files_dir = "server/broker"                   # Mosquitto's conf, passwd, acl and certificates
# pid_file = "server/broker/mosquitto.pid"      # Mosquitto's; gets a SIGHUP after each enrolment
# public_host = "127.0.0.1"                     # what boards are told
# public_port = 8883
[ingest]                     # the processes that share what boards send
# processes = 1              # more where one core is not enough; at most 16 on all machines
# leader = true              # false: this machine only ingests, for the PostgreSQL of another that leads
# first = 1                  # the first one's number: no two machines have the same
[limits]                     # of each board; what is above is dropped and counted
# records_per_hour = 7200
# records_burst = 100000     # at once, after a silence
# events_per_hour = 600
# events_burst = 10000
# boots_per_day = 1000
# names_per_board = 64       # new bundles, policies, exits, ...: of each kind
# devices = 20000            # boards of the whole fleet; more are not enrolled
"""
_HELP = (
    """Serve the repository, the JSON API and the page, and ingest what boards send, until SIGTERM or Ctrl-C.

The broker is Mosquitto, started by you as this server's user: mosquitto -c files_dir/mosquitto.conf. That file and
what it names (passwd, acl, certificates) are written here at each start.

The served address is also written to data_dir/address, the API's token to data_dir/api.token. The server is its own
certificate authority; data_dir/ca.pem is what commands (--ca) and browsers check it against. A fleet.toml:

\b
"""
    + EXAMPLE
)


@click.command(help=_HELP, epilog="Example:  edgekit fleet serve --config fleet.toml")
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The server's fleet.toml.",
)
@json_option
def serve(config_file: Path, as_json: bool) -> None:
    """Serve, until SIGTERM or Ctrl-C."""
    from edgekit.fleet.config import read_config
    from edgekit.fleet.serve import serve as run

    config = read_config(config_file)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s serve %(levelname)s %(message)s", stream=sys.stderr
    )
    stop = threading.Event()
    call_on_signal(stop.set, signal.SIGTERM, signal.SIGINT)

    def say(url: str) -> None:
        if as_json:
            print_json({"url": url, "token_file": str(config.token_file)})
        elif not url:
            which = ", ".join(str(number) for number in config.ingest.numbers)
            console.print(
                f"fleet {config.fleet}: ingester {which} for the machine that leads", soft_wrap=True
            )
        else:
            console.print(f"fleet {config.fleet}: {url}  (token: {config.token_file})", soft_wrap=True)

    run(config, stop, say)
