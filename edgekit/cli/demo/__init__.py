"""`edgekit demo`: a model, three simulated boards, a broker and a server on this machine, from file to fleet view."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

from edgekit.cli.demo import steps
from edgekit.cli.demo.boards import BOARDS
from edgekit.cli.demo.processes import Processes
from edgekit.cli.options import json_option
from edgekit.cli.output import console, number, percent, print_json

TEST_IMAGES = 10_000


@click.command(epilog="Example:  edgekit demo --keep")
@click.option("--keep", is_flag=True, help="Leave the fleet's page up at the end, until Ctrl-C.")
@click.option(
    "--images",
    type=click.IntRange(100, TEST_IMAGES),
    default=TEST_IMAGES,
    show_default=True,
    help="How many of the test images each board runs.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder with Fashion-MNIST's IDX files.")
@json_option
def command(keep: bool, images: int, data: Path | None, as_json: bool) -> None:
    """Run all of edgekit on this machine.

    Converts the demo model for three boards, signs and pushes the bundles, runs the test images on three agents with
    simulated sensors, throttles one of them, restarts the broker, and shows what the fleet server saw. Every figure of
    the boards' sensors is simulated; latency is this machine's.
    """
    for kind in (signal.SIGTERM, signal.SIGINT):  # a shell starts background jobs with SIGINT ignored
        signal.signal(kind, _interrupt)
    progress = Console(stderr=True, highlight=False)
    start = time.monotonic()

    def say(text: str) -> None:
        progress.print(f"[dim]{time.monotonic() - start:6.1f} s[/dim]  {text}")

    with tempfile.TemporaryDirectory(prefix="edgekit-demo-") as folder:
        demo = steps.Demo(Path(folder), images, say, Processes(Path(folder)))
        try:
            result, address = _story(demo, data)
            if as_json:
                print_json(result)
            else:
                _show(result)
            if keep:
                _keep(demo, address)
        finally:
            demo.end()
    say("everything that was started is gone")


def _interrupt(number_: int, frame: FrameType | None) -> NoReturn:
    del number_, frame
    raise KeyboardInterrupt


def _story(demo: steps.Demo, data: Path | None) -> tuple[dict[str, Any], str]:
    source = steps.find_data(data)
    demo.say("prepare Fashion-MNIST: calibration, validation, test images")
    steps.prepare_data(demo, source)
    demo.say("start repository, fleet server and broker")
    client, address = steps.start_server(demo)
    converted = steps.convert_all(demo)
    demo.say("measure the budget policy against the full one")
    measured = steps.measure_budget(demo)
    demo.say("enroll three boards and start their agents")
    steps.enroll_and_start(demo, address)
    steps.push_all(demo, address)
    demo.say(f"{demo.images} images on each board")
    steps.stream(demo, client)
    boards = steps.fleet_view(client)
    summaries = steps.stop_agents(demo, client)
    result = {
        "boards": boards,
        "fp32_accuracy": converted[BOARDS[0].profile]["accuracy"]["before"],
        **measured,
        "telemetry": steps.telemetry(client, summaries),
    }
    return result, address


def _show(result: Mapping[str, Any]) -> None:
    table = Table(title="What the fleet server saw", title_justify="left", box=None, pad_edge=False)
    for column in ("board", "bundle"):
        table.add_column(column, no_wrap=True)
    for column in ("requests", "accuracy", "exits %", "p50 ms", "p95 ms", "mJ each"):
        table.add_column(column, justify="right", no_wrap=True)
    for board in result["boards"]:
        total = max(1, sum(board["exit_counts"].values()))
        table.add_row(
            board["name"] if board["online"] else f"{board['name']} (offline)",
            str(board["bundle"]),
            str(board["requests"]),
            percent(board["accuracy"]),
            " / ".join(f"{100 * count / total:.0f}" for count in board["exit_counts"].values()),
            number(board["latency_ms"]["p50"], 3),
            number(board["latency_ms"]["p95"], 3),
            number(board["energy_mj"]["mean"], 2),
        )
    console.print(table)
    telemetry = result["telemetry"]
    ratio = f"{result['budget_over_full_latency']:.2f}x the full policy's mean latency"
    for line in (
        f"fp32, last exit     {percent(result['fp32_accuracy'])}",
        f"int8, budget {steps.BUDGET}    {percent(result['budget_accuracy'])}, at {ratio}",
        f"telemetry           {telemetry['sent']} records sent, {telemetry['received']} received",
        "Latency is this machine's, not the boards'. Energy is simulated; a Raspberry Pi 4 has no sensor for it.",
    ):
        console.print(line, soft_wrap=True)


def _keep(demo: steps.Demo, address: str) -> None:
    """Have the boards back, without new images, under the open page until somebody has seen enough."""
    for name in demo.agents:
        steps.rest(demo, name)
        steps.start_agent(demo, name)
    link = steps.login_link(demo, address)
    sys.stderr.write(
        f"The fleet's page: {address}{link}  (opens once, within ten minutes; Ctrl-C ends it)\n"
        f"Your browser will say that it does not know who signed for it: {demo.folder}/server/ca.pem did.\n"
    )
    try:
        signal.pause()
    except KeyboardInterrupt:
        return
