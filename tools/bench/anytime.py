#!/usr/bin/env python3
"""Early exits, budgets and deadlines: what they bring on data that nothing was fitted or chosen on.

    python tools/bench/anytime.py [--networks demo resnet20 ...] [--seeds 1 2 3] [--tested 10000] [--page FILE]

Networks made for it (demo, msdnet, iamnn) come with their exits; finished ones (resnet20, mobilenet, text_direction)
get theirs by `edgekit convert --exits auto`, from unlabelled inputs. Ours are looked for in EDGEKIT_CACHE/networks and
trained by tools/train_network.py where they are not there (needs PyTorch, and minutes each). Fashion-MNIST: heads learn
from training images, thresholds come from the 5,000 held out, both without labels; the 10,000 test images judge. Lines
of text are rendered by tools/make_data.py, three parts with no line in common.

Everything is measured through the Session that boards run. "of full" is against the same network converted without
exits, or, where it was made with them, against its own last exit; times are interleaved in turns, medians of ratios.
Prints one JSON object; --page writes the tables of docs/benchmarks/anytime.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait must not take a core from others

import numpy as np
from numpy.typing import NDArray

from edgekit.core.bundle import Bundle, open_bundle
from edgekit.core.curves import LEAD_UNTIL, AnytimePoint, Curves
from edgekit.core.errors import EdgekitError
from edgekit.core.manifest import Manifest
from edgekit.core.policy import Budget, PolicySpec
from edgekit.host.cache import cache_root
from edgekit.host.load import load, parse_shapes, read_input_spec
from edgekit.host.ort import open_model
from edgekit.runtime.curves import Times, curves, measured_anytime, replayed, with_measured
from edgekit.runtime.data import Data, load_data, read_idx
from edgekit.runtime.measure import ExitTable, exit_table, machine_name, stage_costs
from edgekit.runtime.policy import Policy, make_policy
from edgekit.runtime.session import Session, open_session

TOOLS, PYTHON = Path(__file__).parents[1], Path(sys.executable)
DEMO_MODEL = TOOLS.parent / "models" / "fashion_mnist_3exit.onnx"
FITTED_ON = 8192  # unlabelled images that heads learn from
HELD_OUT = 5_000
SAFE_DROP = 0.5  # points of agreement the confidence policy may lose, by its 95 % bound on validation data
WITHIN = 0.2  # points of accuracy
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TURN, ROUNDS = 100, 30
LINES = {"--calib": 8192, "--val": 2500, "--test": 3000}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(*command: str | Path) -> None:
    """A command of ours; ends the benchmark where it fails."""
    say("$ " + shlex.join(map(str, command)))
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"anytime: {shlex.join(map(str, command))} ended with {done.returncode}")


# --- networks and data ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network and its data. made: with exits of its own. most: of full cost, the target; drop: points it may lose."""

    name: str
    model: Path
    calib: Path
    val: Path
    test: Path
    made: bool
    most: float
    drop: float
    extra: tuple[str, ...] = ()
    seed: int | None = None


EXITS = ("--exits", "auto")
MADE = {"demo": (0.40, WITHIN), "msdnet": (0.35, 0.3), "iamnn": (1.0, 0.3)}
FINISHED = {"resnet20": 0.50, "mobilenet": 0.60, "text_direction": 0.60}


def fashion(folder: Path, *, made: bool) -> tuple[Path, Path, Path]:
    """Calibration, validation and test images as .npz; only the test has labels, and for trained exits validation."""
    names = ("calib", "val", "labelled", "test")
    paths = {name: folder / f"{name}.npz" for name in names}
    chosen = (paths["calib"], paths["labelled" if made else "val"], paths["test"])
    if all(path.exists() for path in paths.values()):
        return chosen
    answer = subprocess.run(
        [sys.executable, str(TOOLS / "fetch_data.py")], stdout=subprocess.PIPE, text=True, check=False
    )
    if answer.returncode:
        sys.exit(answer.returncode)
    source = Path(answer.stdout.strip())
    train, test = (read_idx(source / f"{name}-images-idx3-ubyte.gz", 3) for name in ("train", "t10k"))
    classes, right = (read_idx(source / f"{name}-labels-idx1-ubyte.gz", 1) for name in ("train", "t10k"))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(paths["calib"], x=train[:FITTED_ON])
    np.savez(paths["val"], x=train[-HELD_OUT:])
    np.savez(paths["labelled"], x=train[-HELD_OUT:], y=classes[-HELD_OUT:])
    np.savez(paths["test"], x=test, y=right)
    return chosen


def lines(folder: Path) -> tuple[Path, Path, Path]:
    """Rendered lines of text, half upside down."""
    made = folder / "text_direction"
    if not (made / "made.json").exists():
        counts = [str(part) for pair in LINES.items() for part in pair]
        run(PYTHON, TOOLS / "make_data.py", "text_direction", *counts, "--out", folder)
    # with labels, thresholds would be found by accuracy instead of agreement
    unlabelled = made / "unlabelled.npz"
    if not unlabelled.exists():
        np.savez(unlabelled, x=np.load(made / "val.npz")["x"])
    return made / "calib.npz", unlabelled, made / "test.npz"


def cases(names: Sequence[str], seeds: Sequence[int], folder: Path) -> Iterator[Case]:
    """Every network of every seed, trained where it is not there."""
    for name in names:
        if name == "demo":
            yield Case("demo", DEMO_MODEL, *fashion(folder / "fashion", made=True), True, *MADE["demo"])
        elif name == "text_direction":
            model = cache_root() / "models" / name / "model.onnx"
            if not model.exists():
                run(PYTHON, TOOLS / "fetch_models.py", name)
            data = lines(folder / "lines")
            spec: tuple[str, ...] = ("--shape", "1,3,48,192", "--input-spec")
            spec = (*spec, str(data[0].with_name("spec.toml")))
            spec = (
                *spec,
                "--max-drop",
                f"{WITHIN:g}",
            )  # without it 8-bit weights take the points that exits may lose
            yield Case(name, model, *data, False, FINISHED[name], WITHIN, spec)
        else:
            for seed in seeds:
                model = cache_root() / "networks" / f"{name}-{seed}.onnx"
                if not model.exists():
                    train: list[str | Path] = [
                        Path(sys.executable),
                        TOOLS / "train_network.py",
                        "--network",
                        name,
                        "--bfloat16",
                    ]
                    run(*train, "--seed", str(seed), "--out", model)
                most, drop = MADE.get(name, (FINISHED.get(name, 1.0), WITHIN))
                data = fashion(folder / "fashion", made=name in MADE)
                yield Case(name, model, *data, name in MADE, most, drop, (), seed)


# --- one network ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """A bundle that runs, and every exit's answer to the validation and the test data."""

    bundle: Bundle
    session: Session
    validation: ExitTable
    test: ExitTable

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest


def converted(case: Case, folder: Path, *exits: str) -> Path:
    """The bundle, made by the command line; kept in the folder."""
    seed = "" if case.seed is None else f"-{case.seed}"
    out = folder / f"{case.name}{seed}{'-exits' if exits else ''}.edge"
    if not out.exists():
        files = ("--calib", case.calib, "--val", case.val, "--eval", case.test)
        command: list[str | Path] = [
            Path(sys.executable).with_name("edgekit"),
            "convert",
            case.model,
            "--profile",
            "host",
            *files,
        ]
        run(*command, "--backend", "onnxruntime", *case.extra, *exits, "--json", "-o", out)
    return out


def opened(path: Path, case: Case, tested: int) -> Opened:
    bundle = open_bundle(path)
    session = open_session(bundle.manifest, bundle.read)
    tables = []
    for source in (case.val, case.test):
        data = data_of(source, bundle.manifest, tested)
        tables.append(exit_table(session, data))
    return Opened(bundle, session, tables[0], tables[1])


def data_of(path: Path, manifest: Manifest, tested: int) -> Data:
    data = load_data(path, manifest.inputs, manifest.labels)
    return data.subset(range(min(tested, data.count)))


def answers(case: Case, data: Data) -> NDArray[np.int64]:
    """What the network that came in says: the class by its last exit, in onnxruntime."""
    spec = read_input_spec(Path(case.extra[3])) if case.extra else None
    shapes = parse_shapes((case.extra[1],)) if case.extra else None
    graph = load(case.model, shapes, spec).graph
    session = open_model(case.model.read_bytes())
    name = graph.exits[-1].output
    return np.array([session.run([name], data.inputs(row))[0].argmax() for row in range(data.count)])


@dataclass(frozen=True)
class Choice:
    """What one policy does to the test data."""

    taken: NDArray[np.int64]
    macs: float  # mean, of full
    agreement: float  # with the network that came in
    accuracy: float
    lost: float  # points against the network that came in


def outcome(
    policy: Policy, mine: Opened, original: NDArray[np.int64], labels: NDArray[np.int64], full_macs: float
) -> Choice:
    taken = replayed(policy, mine.test)
    said = mine.test.predicted[np.arange(len(taken)), taken]
    macs = np.array([leaving.cost_share for leaving in mine.manifest.exits]) * mine.manifest.macs
    right, before = said == labels, original == labels
    return Choice(
        taken,
        float(macs[taken].mean() / full_macs),
        float((said == original).mean()),
        float(right.mean()),
        100 * float(before.mean() - right.mean()),
    )


def judge(case: Case, folder: Path, tested: int) -> dict[str, Any]:
    """All figures of one network."""
    started = time.monotonic()
    mine = opened(converted(case, folder, *(() if case.made else EXITS)), case, tested)
    whole = mine if case.made else opened(converted(case, folder), case, tested)
    data = data_of(case.test, mine.manifest, tested)
    original = answers(case, data)
    assert data.labels is not None  # noqa: S101  (all test data here has them)
    labels = data.labels
    costs = stage_costs(mine.session, data)
    spec = PolicySpec("confidence", max_drop=case.drop / 2 if case.made else SAFE_DROP)
    chosen = outcome(make_policy(spec, mine.manifest, costs), mine, original, labels, whole.manifest.macs)
    ratios = [*turns(mine, whole, data, spec)]
    drawn = curves(mine.manifest, mine.test, Times.of(mine.test.latency_ms, "measured", machine_name()))
    if drawn is None:
        sys.exit(f"anytime: {case.name}: the bundle has one exit, nothing to draw")
    drawn = with_measured(drawn, under_deadlines(mine, data))
    lost = chosen.lost
    return {
        "network": case.name,
        "seed": case.seed,
        "exits": [
            {
                "name": leaving.name,
                "macs": leaving.cost_share * mine.manifest.macs / whole.manifest.macs,
                "accuracy": float((mine.test.predicted[:, k] == labels).mean()),
                "agreement": float((mine.test.predicted[:, k] == original).mean()),
            }
            for k, leaving in enumerate(mine.manifest.exits)
        ],
        "original_accuracy": float((original == labels).mean()),
        "policy": str(spec),
        "macs": chosen.macs,
        "ms": statistics.median(ratios),
        "ms_range": [min(ratios), max(ratios)],
        "ms_full": float(np.median(whole.test.latency_ms[:, -1])),
        "agreement": chosen.agreement,
        "accuracy": chosen.accuracy,
        "lost": lost,
        "target": case.most,
        "drop": case.drop,
        "made": case.made,
        "budgets": [*budgets(mine)],
        "lead": drawn.lead.to_json() if drawn.lead else None,
        "curves": drawn.to_json(),
        "anytime": anytime(drawn),
        "seconds": time.monotonic() - started,
    }


def under_deadlines(mine: Opened, data: Data) -> tuple[AnytimePoint, ...]:
    """Requests under deadlines drawn at random, by the thread's own time: others on the machine do not count."""
    session = open_session(mine.manifest, mine.bundle.read, clock=time.thread_time)
    table = exit_table(session, data)
    return measured_anytime(session, data, table, stage_costs(session, data), lambda done: None)


def turns(mine: Opened, whole: Opened, data: Data, spec: PolicySpec) -> Iterator[float]:
    """Mean processor time under the policy over the full network's, per round; both take the same requests in turn."""
    costs = stage_costs(mine.session, data)
    policy = make_policy(spec, mine.manifest, costs)
    full = make_policy(PolicySpec("full"), whole.manifest, None)
    samples = [data.inputs(row) for row in range(min(data.count, TURN * ROUNDS))]
    for number in range(ROUNDS):
        chunk = samples[number * TURN % len(samples) :][:TURN]
        spent = []
        for session, decides in ((mine.session, policy), (whole.session, full)):
            start = time.thread_time()
            for sample in chunk:
                session.run(sample, decides)
            spent.append(time.thread_time() - start)
        yield spent[0] / spent[1]


def budgets(mine: Opened) -> Iterator[dict[str, float]]:
    """What a budget in MACs comes to on validation and on test data."""
    shares = np.array([leaving.cost_share for leaving in mine.manifest.exits])
    for budget in BUDGETS:
        if budget > shares[0]:
            spec = PolicySpec("budget", Budget(100 * budget, "%"))
            found = {
                name: float(shares[replayed(make_policy(spec, mine.manifest, None), table)].mean())
                for name, table in (("validation", mine.validation), ("test", mine.test))
            }
            yield {"budget": budget, **found}


def anytime(drawn: Curves) -> dict[str, Any]:
    """Requests under deadlines drawn at random."""
    points = drawn.anytime
    total = sum(point.requests for point in points)
    return {
        "requests": total,
        "in_time": sum(point.in_time * point.requests for point in points) / max(1, total),
        "quality": [point.quality for point in points],
        "deadlines_ms": [point.deadline_ms for point in points],
    }


# --- targets and the page ---------------------------------------------------------------------------------------------


def verdicts(row: Mapping[str, Any]) -> dict[str, bool]:
    """Target -> met."""
    off = [abs(entry["validation"] / entry["budget"] - 1) for entry in row["budgets"]]
    off_test = [abs(entry["test"] / entry["budget"] - 1) for entry in row["budgets"]]
    found = {
        "cost": row["macs"] <= row["target"] and row["ms"] <= row["target"],
        "lost": row["lost"] <= row["drop"] + 1e-9,
        "budgets": max(off, default=0) <= 0.05 and max(off_test, default=0) <= 0.10,
        "curve": bool(row["lead"]) and row["lead"]["nowhere_below"],
        "lead": bool(row["lead"]) and row["lead"]["mean"] >= 0.005,
        "in time": row["anytime"]["in_time"] >= 0.99,
    }
    if not row["made"]:
        found["agreement"] = row["agreement"] >= 0.99
    return found


INTRODUCTION = (
    "{machine}, one thread, batch 1. Networks made with exits (demo, msdnet, iamnn) come as they were "
    "trained; resnet20, mobilenet and text_direction were finished without any and got theirs by `convert "
    "--exits auto` from unlabelled inputs. Thresholds come from validation data, everything below from test "
    "data that nothing was fitted or chosen on: 10,000 images of Fashion-MNIST, or 3,000 rendered lines. Cost"
    " is the mean over all requests, in multiply-accumulates and in measured processor time of the thread "
    "(the machine was shared), over the same network run whole: converted in the same way without exits, or "
    "to its own last exit where it was made with them. Ratios of times are medians of interleaved turns, with"
    " the range of the turns."
)
AGREEMENT = (
    "Agreement and points lost are against the network that came in, float32, run whole in onnxruntime, so the "
    "formats that convert chose count as well. text_direction was converted with --max-drop 0.2: its weights in "
    "8 bits alone lost 0.3 points."
)
CURVES = (
    "Lead: points of the budget policy over the static exits mixed to the same cost, mean from the first "
    "exit's cost to 0.8x of full, with its 95 % interval; at most: the lead of a policy that gave every "
    "request the best exit's accuracy at no cost, so that exits which are nearly as good as the last leave "
    "little to win; nowhere below: at no budget significantly under them. Budget: the largest relative "
    "deviation of the realised mean cost from the budget. Deadlines: one a request, drawn between the first "
    "stage's p99 and 1.2x of the full median; in time by the thread's own processor time, since the machine "
    "was shared; accuracy from the tightest deadlines to the laxest."
)


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def span(values: Sequence[float]) -> str:
    return f"{values[0]:.2f} to {values[1]:.2f}"


def headroom(row: Mapping[str, Any]) -> float:
    """Points that the best exit's accuracy on every request would lead the static mix by, over the same costs."""
    macs = np.array([entry["macs"] for entry in row["exits"]]) / row["exits"][-1]["macs"]
    accuracy = np.array([entry["accuracy"] for entry in row["exits"]])
    costs = np.linspace(macs[0], max(macs[0], LEAD_UNTIL), 200)
    return float(100 * (accuracy.max() - np.interp(costs, macs, accuracy)).mean())


def page(rows: Sequence[Mapping[str, Any]], command: str) -> str:
    """The tables, as Markdown."""
    text = [
        "# Exits, budgets and deadlines",
        "",
        f"    {command}",
        "",
        "Rows are of several runs (`--networks`, `--seeds`), each network's conversions and figures of one.",
        "",
        INTRODUCTION.format(machine=machine_name()),
        "",
        "| network | seed | policy | MACs | time | target | agreement | accuracy | points lost | allowed | met |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        met = verdicts(row)
        good = met["cost"] and met["lost"] and met.get("agreement", True)
        text.append(
            line(
                [
                    row["network"],
                    str(row["seed"] or ""),
                    row["policy"],
                    f"{row['macs']:.3f}x",
                    f"{row['ms']:.3f}x ({span(row['ms_range'])})",
                    f"<= {row['target']:.2f}x",
                    f"{100 * row['agreement']:.2f}",
                    f"{100 * row['accuracy']:.2f} of {100 * row['original_accuracy']:.2f}",
                    f"{row['lost']:.2f}",
                    f"{row['drop']:g}",
                    "yes" if good else "no",
                ]
            )
        )
    text += [
        "",
        AGREEMENT,
        "",
        "## Exits",
        "",
        "| network | seed | exit | MACs | accuracy | agreement |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        text += [
            f"| {row['network']} | {row['seed'] or ''} | {entry['name']} | {entry['macs']:.3f}x | "
            f"{100 * entry['accuracy']:.2f} | {100 * entry['agreement']:.2f} |"
            for entry in row["exits"]
        ]
    text += [
        "",
        "## Curves, budgets, deadlines",
        "",
        CURVES,
        "",
        "| network | seed | lead | at most | nowhere below | budget, validation | test | in time | accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lead, quality = row["lead"] or {}, row["anytime"]["quality"]
        off = [
            max((abs(e[k] / e["budget"] - 1) for e in row["budgets"]), default=0.0)
            for k in ("validation", "test")
        ]
        text.append(
            line(
                [
                    row["network"],
                    str(row["seed"] or ""),
                    f"{100 * lead.get('mean', 0):.2f} ({span([100 * lead.get(k, 0) for k in ('low', 'high')])})",
                    f"{headroom(row):.2f}",
                    "yes" if lead.get("nowhere_below") else "no",
                    *(f"{100 * value:.1f} %" for value in off),
                    f"{100 * row['anytime']['in_time']:.2f} %",
                    span([100 * quality[0], 100 * quality[-1]]),
                ]
            )
        )
    missed = [
        f"{row['network']}{'' if row['seed'] is None else ' ' + str(row['seed'])}: {name}"
        for row in rows
        for name, good in verdicts(row).items()
        if not good
    ]
    text += ["", f"Missed: {', '.join(missed) or 'nothing'}.", ""]
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    every = [*MADE, *FINISHED]
    parser.add_argument("--networks", nargs="+", choices=every, default=every)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of networks trained here")
    parser.add_argument("--tested", type=int, default=10_000, help="inputs of each part at most")
    parser.add_argument("--folder", type=Path, help="where bundles and data are kept (EDGEKIT_CACHE/anytime)")
    parser.add_argument("--prepare", action="store_true", help="train and convert, measure nothing yet")
    parser.add_argument(
        "--page", type=Path, help="write the tables here; rows of other runs in --folder stay"
    )
    wanted = parser.parse_args()
    folder = wanted.folder or cache_root() / "anytime"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    try:
        for case in cases(wanted.networks, wanted.seeds, folder):
            say(f"{case.name} {case.seed or ''}")
            if wanted.prepare:
                for exits in ((),) if case.made else ((), EXITS):
                    converted(case, folder, *exits)
                continue
            row = judge(case, folder, wanted.tested)
            rows.append(row)
            kept = folder / f"{case.name}{'' if case.seed is None else f'-{case.seed}'}.json"
            kept.write_text(json.dumps(row))
            say(json.dumps({key: row[key] for key in ("macs", "ms", "agreement", "lost")} | verdicts(row)))
    except EdgekitError as err:
        print(f"anytime: {err}", file=sys.stderr)
        return err.exit_code
    if wanted.page:
        seeds = [None, *wanted.seeds]
        files = [
            folder / f"{name}{'' if seed is None else f'-{seed}'}.json" for name in every for seed in seeds
        ]
        known = [json.loads(file.read_text()) for file in files if file.exists()]
        wanted.page.write_text(page(known, "python tools/bench/anytime.py --page docs/benchmarks/anytime.md"))
    print(json.dumps({"v": 1, "rows": [{**row, "met": verdicts(row)} for row in rows]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
