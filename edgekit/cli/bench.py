"""`edgekit bench`: what a bundle does on this machine, by the code that runs in production."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from edgekit.cli.bench_curves import check_curves, measure_curves, print_curves, write_page
from edgekit.cli.options import bundle_argument, check_targets, json_option, policy_options
from edgekit.cli.output import console, number, percent, print_json, progress
from edgekit.cli.session import open_here
from edgekit.core.bundle import open_bundle
from edgekit.core.policy import policy_from_options
from edgekit.runtime.command import runner
from edgekit.runtime.data import load_data
from edgekit.runtime.detect import find_profile
from edgekit.runtime.energy import metered, per_unit, with_energy
from edgekit.runtime.measure import golden_data, machine_name, measure_policy, stage_costs
from edgekit.runtime.memory import Memory, measure_memory
from edgekit.runtime.power import open_sensor


@click.command(epilog="Example:  edgekit bench model.edge --data test.npz --policy budget --budget 40%")
@bundle_argument
@click.option(
    "--data", type=click.Path(path_type=Path), help="Inputs; without it the bundle's own golden cases."
)
@policy_options
@click.option(
    "--memory",
    "with_memory",
    is_flag=True,
    help="Also open it in a process of its own and tell what memory that takes.",
)
@click.option(
    "--curves",
    "with_curves",
    is_flag=True,
    help="Also draw quality over mean cost and over deadlines from --data, beside the static exits.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Write both curves as an HTML page; it includes --curves.",
)
@json_option
def command(
    bundle: Path,
    data: Path | None,
    policy: str | None,
    budget: str | None,
    deadline_ms: float | None,
    max_drop: float | None,
    with_memory: bool,
    with_curves: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    """Measure BUNDLE here: latency, exits taken, accuracy where labels are known, energy where a sensor is."""
    spec = policy_from_options(policy, budget, deadline_ms, max_drop)
    check_targets({"--report": report}, (bundle, data))
    opened = open_bundle(bundle)
    with_curves = with_curves or report is not None
    if with_curves:
        check_curves(len(opened.manifest.exits), data)
    manifest = opened.manifest
    golden = golden_data(manifest, opened.read)
    inputs = load_data(data, manifest.inputs, manifest.labels) if data else golden
    session = open_here(opened)
    memory = measure_memory(bundle) if with_memory else None
    host = find_profile("host")
    sensor = open_sensor(host.power.sensor, Path("/"), runner())
    costs = stage_costs(session, golden)
    if spec.budget is not None and spec.budget.unit == "mJ":
        costs = with_energy(costs, session, golden, sensor)
    with progress() as bar:
        task = bar.add_task("bench", total=inputs.count)
        result, window = metered(
            sensor, lambda: measure_policy(session, inputs, spec, costs, lambda done: bar.advance(task, done))
        )
    found = measure_curves(session, inputs, costs) if with_curves else None
    if report is not None and found is not None:
        write_page(report, opened.label, str(data), found)
    energy = per_unit(window, result.requests)
    total = max(1, result.requests)
    cost = sum(leaving.cost_share * result.exit_counts[leaving.name] for leaving in manifest.exits) / total
    known = energy.mj is not None
    simulated = any("simulated" in provider for provider in session.providers)
    if as_json:
        print_json(
            {
                "policy": result.policy,
                "requests": result.requests,
                "latency_ms": result.latency.to_json(),
                "latency_provenance": "simulated" if simulated else "measured",
                "deadline_missed": result.missed,
                "exit_counts": dict(result.exit_counts),
                "cost_share": cost,
                "accuracy": result.accuracy,
                "energy_mj": {
                    "mean": energy.mj,
                    "provenance": "measured" if known else None,
                    "on": machine_name() if known else None,
                    "why": energy.why,
                },
                "memory": None if memory is None else memory.to_json() | {"on": machine_name()},
                "curves": None if found is None else found.to_json(),
                "bundle": opened.label,
                "on": machine_name(),
            }
        )
        return
    table = Table(title=f"{opened.label} on {machine_name()}", title_justify="left", show_header=False)
    latency = result.latency
    table.add_row("policy", result.policy)
    table.add_row("requests", str(result.requests))
    for name, value in latency.to_json().items():
        table.add_row(f"latency {name}", number(value, 3, " ms"))
    if result.missed is not None:
        table.add_row("in time", percent(1 - result.missed / total))
    table.add_row(
        "exits taken", ", ".join(f"{name} {percent(n / total, 1)}" for name, n in result.exit_counts.items())
    )
    table.add_row("mean cost", percent(cost, 1) + " of the network's MACs")
    table.add_row(
        "accuracy", percent(result.accuracy) if result.accuracy is not None else "unknown (no labels)"
    )
    table.add_row(
        "energy per request", number(energy.mj, 3, " mJ, measured") if known else f"unknown ({energy.why})"
    )
    console.print(table)
    if simulated:
        console.print(
            "simulated: these are times of the simulation on this machine, not of any board's logic"
        )
    if found is not None:
        print_curves(found)
    if memory is not None:
        console.print(_memory_table(memory))


def _memory_table(memory: Memory) -> Table:
    table = Table(title="memory, measured in a process of its own", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "weights in the file": memory.weights_file_bytes,
        "weights as they compute": memory.weights_bytes,
        "buffers between stages": memory.buffers_bytes,
        "the runtime alone": memory.base_bytes,
        "the bundle, opened": memory.opened_bytes,
        "the bundle, after running": memory.ran_bytes,
        "at most while opening": memory.peak_bytes,
    }
    for name, value in rows.items():
        table.add_row(name, number(None if value is None else value / 2**20, 2, " MiB"))
    table.add_row("weights held", number(memory.times, 2, " times"))
    return table
