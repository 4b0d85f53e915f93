"""`edgekit run`: a bundle's answers to some inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from edgekit.cli.options import bundle_argument, json_option, policy_options
from edgekit.cli.output import console, number, print_json
from edgekit.cli.session import open_here
from edgekit.core.bundle import open_bundle
from edgekit.core.policy import policy_from_options
from edgekit.runtime.data import load_data
from edgekit.runtime.measure import golden_data, stage_costs
from edgekit.runtime.policy import make_policy
from edgekit.runtime.session import Answer


@click.command(epilog="Example:  edgekit run model.edge shirt.png --policy anytime --deadline-ms 2")
@bundle_argument
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@policy_options
@json_option
def command(
    bundle: Path,
    inputs: tuple[Path, ...],
    policy: str | None,
    budget: str | None,
    deadline_ms: float | None,
    max_drop: float | None,
    as_json: bool,
) -> None:
    """Run BUNDLE on each INPUT: images, folders of images, .npz or IDX files.

    The inputs are one stream in the order given; the policy decides at which exit each is answered. Without one it is
    always the last.
    """
    spec = policy_from_options(policy, budget, deadline_ms, max_drop)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    streams = [load_data(path, manifest.inputs, manifest.labels) for path in inputs]
    session = open_here(opened)
    costs = (
        stage_costs(session, golden_data(manifest, opened.read))
        if spec.kind in ("anytime", "budget")
        else None
    )
    controller = make_policy(spec, manifest, costs)
    answers = [
        _answer(data.name(index), session.run(data.inputs(index), controller), manifest.labels)
        for data in streams
        for index in range(data.count)
    ]
    if as_json:
        print_json({"answers": answers})
        return
    table = Table("input", "label", "exit", "confidence", "latency")
    for row in answers:
        label = "-" if row["label"] is None else str(row["label"])
        table.add_row(
            row["input"],
            label,
            row["exit"],
            number(row["confidence"], 3),
            number(row["latency_ms"], 3, " ms"),
        )
    console.print(table)


def _answer(name: str, answer: Answer, labels: tuple[str, ...] | None) -> dict[str, Any]:
    label: str | int | None = answer.label
    if label is not None and labels is not None:
        label = labels[int(label)]
    return {
        "input": name,
        "outputs": {key: array.tolist() for key, array in answer.outputs.items()},
        "label": label,
        "exit": answer.exit,
        "confidence": answer.confidence,
        "latency_ms": answer.latency_ms,
        "deadline_missed": answer.deadline_missed,
    }
