#!/usr/bin/env python3
"""The converter against other tools on public networks: accuracy, latency, size, and what converting costs.

    python tools/bench/convert_peers.py [--network NAME ...] [--rounds 15] [--quick] [--page docs/benchmarks/convert.md]

Per network, on the same calibration inputs and judged on the same test inputs, in one run: ours (`edgekit convert`),
onnxruntime's quantize_static, NNCF, and litert-quantizer on the float .tflite. Tools that are not ours work in
environments of their own below EDGEKIT_CACHE, made the first time. Peers of onnxruntime are timed against the float
network in onnxruntime, those of litert against the float one in litert: interleaved rounds, medians, thread CPU time,
one thread. Networks and inputs come from fetch_models.py and make_data.py.

Prints one JSON object (targets beside values); keeps each network's results in EDGEKIT_CACHE/bench and writes the page
of all kept ones with --page. Progress goes to stderr. --quick: one small network, few inputs, within 50 s.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib.metadata
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit.core.bundle import open_bundle
from edgekit.core.errors import EdgekitError
from edgekit.core.manifest import Part
from edgekit.core.profile import HOST, Backend
from edgekit.host.convert import BEFORE, whole_stage
from edgekit.host.graph import Graph
from edgekit.host.load import InputSpec, load, read_input_spec
from edgekit.host.lower import LOWERINGS, litert
from edgekit.host.passes import Context, run_steps, step
from edgekit.runtime.backends import Options, allocate, opener
from edgekit.runtime.data import Data, load_data
from edgekit.runtime.measure import machine_name
from edgekit.runtime.quiet_ort import onnxruntime

Array = NDArray[Any]
Answers = list[Array]  # one array per output, samples along the first axis

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).with_name("peer.py")
EDGEKIT = Path(sys.executable).with_name("edgekit")
DEMO_MODEL = ROOT / "models" / "fashion_mnist_3exit.onnx"
NNCF = ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0", "sympy==1.14.0")
LITERT = ("litert-quantizer==0.11.0", "ai-edge-litert==2.3.0")
QUICK_INPUTS, QUICK_TURN_S, TURN_S = 300, 0.004, 0.02
MAX_LATENCY, MAX_SIZE, MAX_QUICK, MAX_DEMO_LOSS = 1.02, 1.05, 1.5, 0.2
MIN_AGREEMENT = 99.0
BOOTSTRAP = 2000
ON = 0.5  # a cell of an activation map counts as on from here
OURS = "ours"


@dataclass(frozen=True)
class Case:
    """A network to convert. kind: how its answers are judged, see score(). model: where it is, if not in the cache."""

    name: str
    kind: str
    model: Path | None = None


CASES = (
    Case("fashion_mnist", "labels", DEMO_MODEL),
    Case("resnet8", "top1"),
    Case("visual_wake_words", "top1"),
    Case("ds_cnn", "top1"),
    Case("rock_paper_scissors", "top1"),
    Case("kws_on_off", "top1"),
    Case("kws_pacman", "top1"),
    Case("text_direction", "labels"),
    Case("text_recognizer", "sequence"),
    Case("magika", "top1"),
    Case("basic_pitch", "maps"),
)
KINDS = {
    "labels": "accuracy",
    "top1": "same largest output as float32",
    "sequence": "same largest output per position as float32",
    "maps": "cells on in both over cells on in either, with float32",
}


class NotMade(Exception):
    """A tool could not convert a network; the text is its last word."""


def now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc).astimezone()


def say(text: str) -> None:
    print(f"{now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def cache_root() -> Path:
    named = os.environ.get("EDGEKIT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "edgekit"


# --- processes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a whole process took, in seconds: on the clock, and of the processors."""

    wall: float
    cpu: float


def run(command: Sequence[str | Path], extra: Mapping[str, str] | None = None) -> Cost:
    """Run to the end. Raises NotMade with the last line it wrote, when it fails."""
    env = {**os.environ, "NNCF_CI": "1", **(extra or {})}  # NNCF_CI: no usage statistics
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, check=False, env=env
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1 if "convert" in command else 0):  # convert says 1 where a limit is missed
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise NotMade(lines[-1][:300] if lines else f"exit code {done.returncode}")
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of an environment with exactly these packages, made the first time. Raises NotMade."""
    folder = cache_root() / "venvs" / f"{name}-py{sys.version_info.major}.{sys.version_info.minor}"
    stamp = folder / "requirements.txt"
    if not stamp.is_file() or stamp.read_text().split() != list(requirements):
        say(f"making an environment for {', '.join(requirements)}")
        shutil.rmtree(folder, ignore_errors=True)
        run([sys.executable, "-m", "venv", folder])
        run(
            [
                folder / "bin" / "python",
                "-m",
                "pip",
                "--disable-pip-version-check",
                "install",
                "-q",
                *requirements,
            ]
        )
        stamp.write_text("\n".join(requirements))
    return folder / "bin" / "python"


def tool(name: str, *names: str) -> list[Path]:
    """What one of the fetching scripts prints."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / name, *names], stdout=subprocess.PIPE, text=True, check=True
    )
    return [Path(line) for line in done.stdout.splitlines()]


# --- runners: a model file and what it answers ------------------------------------------------------------------------


@dataclass
class Runner:
    """One converted network, opened. run: named inputs -> the outputs in the float network's order."""

    name: str
    runtime: str
    size: int
    run: Callable[[Mapping[str, Array]], Answers]


def ort_session(model: Path | bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def ort_runner(name: str, parts: Sequence[bytes], outputs: Sequence[str]) -> Runner:
    """A chain of ONNX files; each reads what the inputs and the files before it give."""
    sessions = [ort_session(part) for part in parts]
    reads = [[entry.name for entry in session.get_inputs()] for session in sessions]
    gives = [[entry.name for entry in session.get_outputs()] for session in sessions]

    def chain(inputs: Mapping[str, Array]) -> Answers:
        known = dict(inputs)
        for session, wanted, made in zip(sessions, reads, gives, strict=True):
            known.update(zip(made, session.run(made, {each: known[each] for each in wanted}), strict=True))
        return [known[each] for each in outputs]

    return Runner(name, "onnxruntime", sum(map(len, parts)), chain)


def litert_runner(name: str, model: bytes, like: Answers, sample: Mapping[str, Array]) -> Runner:
    """A .tflite file. like: the float network's answers to `sample`, by which outputs and axes are told apart."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    entries, results = interpreter.get_input_details(), interpreter.get_output_details()
    names = tensors_of(sample, entries)

    def raw(inputs: Mapping[str, Array]) -> Answers:
        for entry, key in zip(entries, names, strict=True):
            value = inputs[key]
            if value.ndim == 4 and value.shape != tuple(entry["shape"]):
                value = value.transpose(0, 2, 3, 1)
            scale, zero = entry["quantization"]
            if entry["dtype"] == np.int8 and value.dtype != np.int8:
                value = np.clip(np.rint(value / scale) + zero, -128, 127)
            interpreter.set_tensor(entry["index"], np.ascontiguousarray(value, entry["dtype"]))
        interpreter.invoke()
        made = []
        for entry in results:
            value = interpreter.get_tensor(entry["index"])
            scale, zero = entry["quantization"]
            made.append((value.astype(np.float32) - zero) * scale if entry["dtype"] == np.int8 else value)
        return made

    first = raw(sample)
    order = [int(np.argmin([distance(each, wanted) for each in first])) for wanted in like]
    return Runner(name, "litert", len(model), lambda inputs: pick_outputs(raw(inputs), order))


def pick_outputs(given: Answers, order: Sequence[int]) -> Answers:
    return [given[index] for index in order]


def tensors_of(sample: Mapping[str, Array], entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which of our inputs each of the .tflite's is: the one of its name, else by position."""
    left = list(sample)
    for entry in entries:
        same = [name for name in left if name == entry["name"]]
        if same:
            left.remove(same[0])
            left.insert(entries.index(entry), same[0])
    return left


def distance(ours: Array, wanted: Array) -> float:
    return (
        float(np.abs(ours.reshape(-1) - wanted.reshape(-1)).mean())
        if ours.size == wanted.size
        else float("inf")
    )


# --- judging ---------------------------------------------------------------------------------------------------------


def decisions(runner: Runner, data: Data, kind: str) -> Answers:
    """What each sample is taken for.

    labels, top1: (n,) the last output's largest; sequence: (n, positions) the largest per position; maps: per output
    (n, ...) which cells are on.
    """
    rows: list[Answers] = []
    for index in range(data.count):
        given = runner.run(data.inputs(index))
        if kind == "maps":
            rows.append([each[0] > ON for each in given])
        elif kind == "sequence":
            rows.append([given[-1][0].argmax(-1)])
        else:
            rows.append([np.asarray(given[-1].argmax())])
    return [np.stack([row[output] for row in rows]) for output in range(len(rows[0]))]


def score(kind: str, given: Answers, reference: Answers, labels: Array | None) -> Array:
    """Per sample, 0 to 1.

    labels: right or not; top1, sequence: the share of positions decided as the float network does; maps: of the cells
    that are on in either network, the share that is on in both, 1 where none is.
    """
    count = len(given[0])
    if kind == "labels":
        return np.asarray(given[0] == labels, np.float64)
    if kind == "maps":
        pairs = [(a.reshape(count, -1), b.reshape(count, -1)) for a, b in zip(given, reference, strict=True)]
        both = np.sum([(a & b).sum(1) for a, b in pairs], 0)
        either = np.sum([(a | b).sum(1) for a, b in pairs], 0)
        return np.asarray(np.where(either > 0, both / np.maximum(either, 1), 1.0))
    return np.asarray((given[0] == reference[0]).reshape(count, -1).mean(1), np.float64)


def interval(differences: Array, seed: int = 1) -> tuple[float, float, float]:
    """(mean, low, high): the mean of paired differences with its 95 % bootstrap interval."""
    random, count = np.random.default_rng(seed), len(differences)
    means = [differences[random.integers(0, count, count)].mean() for _ in range(BOOTSTRAP)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)


def latencies(
    runners: Sequence[Runner], samples: Sequence[Mapping[str, Array]], rounds: int, turn_s: float
) -> Array:
    """ms a request, thread CPU time, shape (rounds, runners): the networks take turns within each round."""
    counts = []
    for runner in runners:
        for sample in samples[:3]:
            runner.run(sample)
        started = time.thread_time_ns()
        runner.run(samples[0])
        counts.append(max(1, int(turn_s * 1e9 / max(1, time.thread_time_ns() - started))))
    made = np.empty((rounds, len(runners)))
    order = np.random.default_rng(1)
    for row in range(rounds):
        for index in order.permutation(len(runners)):
            run_one, count = runners[index].run, counts[index]
            started = time.thread_time_ns()
            for turn in range(count):
                run_one(samples[turn % len(samples)])
            made[row, index] = (time.thread_time_ns() - started) / count / 1e6
    return made


# --- one network -----------------------------------------------------------------------------------------------------


@dataclass
class Prepared:
    """What all tools get."""

    case: Case
    model: Path  # as published
    float32: Path  # the same with its input shapes fixed
    data: Path
    spec: Path
    graph: Graph
    test: Data
    calibration: Path  # ready tensors
    scratch: Path
    outputs: list[str]
    tflite: Path | None = None


def prepare(case: Case, scratch: Path, inputs: int | None) -> Prepared:
    """Fetch the network and its data; write the calibration tensors and the float network with fixed shapes."""
    model = case.model or tool("fetch_models.py", case.name)[0] / "model.onnx"
    data = tool("make_data.py", case.name)[0]
    spec = data / "spec.toml"
    told = read_input_spec(spec) if "=" in spec.read_text() else InputSpec()
    graph = load(model, {}, told).graph
    test = load_data(data / "test.npz", graph.inputs, graph.labels)
    if inputs is not None:
        test = test.subset(range(min(inputs, test.count)))
    calibration = load_data(data / "calib.npz", graph.inputs, graph.labels)
    rows = [calibration.inputs(index) for index in range(calibration.count)]
    tensors: dict[str, Any] = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    np.savez(scratch / "calibration.npz", allow_pickle=False, **tensors)
    fixed = fixed_shapes(model, graph)
    onnx.save(fixed, scratch / "float32.onnx")
    published = model.with_name("model.tflite")
    return Prepared(
        case,
        model,
        scratch / "float32.onnx",
        data,
        spec,
        graph,
        test,
        scratch / "calibration.npz",
        scratch,
        [entry.name for entry in fixed.graph.output],
        published if published.is_file() and published.parent.name == case.name else None,
    )


def fixed_shapes(model: Path, graph: Graph) -> onnx.ModelProto:
    """The published network with the inputs' shapes written in, and inferred from there."""
    proto = onnx.load(model)
    shapes = {entry.tensor.name: entry.tensor.shape for entry in graph.inputs}
    for value in proto.graph.input:
        if value.name in shapes:
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, shapes[value.name], strict=True):
                dim.Clear()
                dim.dim_value = size
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(proto)


def convert_command(
    made: Prepared,
    output: Path,
    *,
    effort: str = "default",
    backend: str = "onnxruntime",
    judged: bool = True,
) -> list[str | Path]:
    """`edgekit convert`, with nothing kept from earlier runs. judged: on validation inputs beside the calibration's."""
    command: list[str | Path] = [
        *(EDGEKIT, "convert", made.model, "--profile", HOST, "--backend", backend, "--effort", effort),
        *("--calib", made.data / "calib.npz", "-o", output, "--json", "--no-cache"),
    ]
    if "=" in made.spec.read_text():
        command += ["--input-spec", made.spec]
    if judged:
        command += ["--val", made.data / "val.npz"]
    return command


def ours(made: Prepared, backend: str) -> tuple[Runner, dict[str, Any]]:
    """What edgekit makes for this machine, and what it says about it."""
    path = made.scratch / f"{backend}.edge"
    cost = run(convert_command(made, path, backend=backend))
    opened = open_bundle(path)
    parts = [(part, opened.read(part.file)) for stage in opened.manifest.stages for part in stage.parts]
    outputs = outputs_of(opened.manifest.exits, made.outputs)
    if backend == "onnxruntime":
        runner = ort_runner(OURS, [content for _, content in parts], outputs)
    else:
        runner = parts_runner(OURS_LITERT, parts, outputs)
    dropped = opened.report.get("dropped", [])
    return runner, {"seconds": round(cost.wall, 1), "recipe": recipe_of(path), "dropped": dropped}


def parts_runner(name: str, parts: Sequence[tuple[Part, bytes]], outputs: Sequence[str]) -> Runner:
    """A bundle's .tflite parts, run as a board does: each on buffers that the next one reads."""
    buffers: dict[str, Array] = {}
    opened = []
    for part, content in parts:
        for tensor in (*part.inputs, *part.outputs):
            buffers.setdefault(tensor.name, allocate(tensor.dtype, tensor.shape))
        reads, writes = (
            {each.name: buffers[each.name] for each in side} for side in (part.inputs, part.outputs)
        )
        opened.append(opener(part.backend)(content, part, reads, writes, Options()))

    def chain(inputs: Mapping[str, Array]) -> Answers:
        for key, value in inputs.items():
            np.copyto(buffers[key], value)
        for each in opened:
            each.run()
        return [buffers[key].copy() for key in outputs]

    return Runner(name, "litert", sum(len(content) for _, content in parts), chain)


def outputs_of(exits: Sequence[Any], wanted: Sequence[str]) -> list[str]:
    """The bundle's outputs in the float network's order."""
    given = [name for entry in exits for name in entry.outputs]
    return [name for name in wanted if name in given] or given


def recipe_of(path: Path) -> str:
    """The passes of a bundle's recipe in one line, without what every network goes through."""
    with zipfile.ZipFile(path) as archive:
        text = archive.read("recipe.toml").decode()
    found = [
        line.partition("=")[2].strip().strip('"') for line in text.splitlines() if line.startswith("pass =")
    ]
    return " ".join(name for name in found if name not in ("opset", "confidence", "fold")) or "float32"


def peer(made: Prepared, name: str, python: Path, source: Path, suffix: str) -> tuple[bytes, Cost]:
    """What another tool makes. Raises NotMade."""
    output = made.scratch / f"{name}{suffix}"
    cost = run([python, PEER, name, source, made.calibration, output])
    return output.read_bytes(), cost


def as_tflite(graph: Graph) -> bytes:
    """The graph as one .tflite file, by our lowering. Raises BadInput where TFLite has no operator for a node."""
    (part,) = litert.lower(whole_stage(graph), Backend(litert.NAME))
    return part.content


def float_tflite(made: Prepared) -> bytes | None:
    """The float network for litert: as published, else as we write it; None where TFLite cannot hold it."""
    if made.tflite is not None:
        return made.tflite.read_bytes()
    try:
        return as_tflite(run_steps(made.graph, BEFORE, Context()))
    except EdgekitError as err:
        say(f"{made.case.name}: no float .tflite: {err}")
        return None


# --- what is said about a network --------------------------------------------------------------------------------


@dataclass
class Row:
    """One variant of a network. score: per sample. ratio: its time over the float network's, median of the rounds."""

    runner: Runner
    score: Array
    ratio: tuple[float, float, float] = (0.0, 0.0, 0.0)  # median, least, most
    ms: float = 0.0
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.runner.name,
            "runtime": self.runner.runtime,
            "score": round(100 * float(self.score.mean()), 3),
            "latency_ms": round(self.ms, 4),
            "latency_ratio": round(self.ratio[0], 3),
            "latency_ratio_range": [round(each, 3) for each in self.ratio[1:]],
            "bytes": self.runner.size,
            "note": self.note,
        }


def target(
    name: str, value: float | None, low: float | None, high: float | None, unit: str, want: str, *, met: bool
) -> dict[str, Any]:
    figures = [None if each is None else round(each, 4) for each in (value, low, high)]
    return {
        "name": name,
        "value": figures[0],
        "min": figures[1],
        "max": figures[2],
        "unit": unit,
        "target": want,
        "met": bool(met),
    }


@contextlib.contextmanager
def tolerated(what: str, failures: dict[str, str]) -> Iterator[None]:
    """Another tool's failure is a result, not the end."""
    try:
        yield
    except (NotMade, EdgekitError) as err:
        failures[what] = str(err)
        say(f"{what}: {err}")
    except Exception as err:  # noqa: BLE001  (what a foreign tool made may fail anywhere when it runs)
        failures[what] = f"{type(err).__name__}: {err}"[:300]
        say(f"{what}: {traceback.format_exc(limit=3)}")


@dataclass
class Settings:
    """How much is done."""

    rounds: int
    turn_s: float
    inputs: int | None
    repeats: int  # of the whole processes
    tools: tuple[str, ...]
    int4: bool


def judge(made: Prepared, settings: Settings) -> dict[str, Any]:
    """All tools on one network: rows, targets, failures."""
    case, failures = made.case, dict[str, str]()
    float32 = ort_runner("float32", [made.float32.read_bytes()], made.outputs)
    runners: list[Runner] = [float32]
    notes: dict[str, Any] = {}

    say(f"{case.name}: ours")
    with tolerated(OURS, failures):
        runner, notes[OURS] = ours(made, "onnxruntime")
        runners.append(runner)
    for name in ("onnxruntime", "nncf"):
        if name in settings.tools:
            say(f"{case.name}: {name}")
            with tolerated(name, failures):
                python = Path(sys.executable) if name == "onnxruntime" else environment("nncf", NNCF)
                content, _ = peer(made, name, python, made.float32, ".onnx")
                runners.append(ort_runner(name, [content], made.outputs))
    with tolerated("litert", failures):
        runners += litert_runners(made, settings, float32.run(made.test.inputs(0)), notes, failures)

    reference = decisions(float32, made.test, case.kind)
    found, rows = {"float32": reference}, []
    for runner in runners:
        say(f"{case.name}: judging {runner.name}")
        with tolerated(runner.name, failures):
            if runner is not float32:
                found[runner.name] = decisions(runner, made.test, case.kind)
            rows.append(Row(runner, score(case.kind, found[runner.name], reference, made.test.labels)))
    say(f"{case.name}: timing")
    time_rows(rows, made, settings)
    for row in rows:
        row.note = (notes.get(row.runner.name) or {}).get("recipe", "")

    targets = [
        *against_peers(rows, "onnxruntime", OURS, "float32"),
        *against_peers(rows, "litert", OURS_LITERT, FLOAT_LITERT),
    ]
    by_name = {row.runner.name: row for row in rows}
    if OURS not in by_name:
        targets.append(target("converted and run", None, None, None, "", "no failure", met=False))
    if case.name == "fashion_mnist" and OURS in by_name:
        loss = interval((rows[0].score - by_name[OURS].score) * 100)
        targets.append(
            target("loss to float32", *loss, "points", f"<= {MAX_DEMO_LOSS}", met=loss[0] <= MAX_DEMO_LOSS)
        )
    if case.kind == "labels":
        with tolerated("parity", failures):
            targets.append(parity(made))
    with tolerated("quick", failures):
        targets.append(quick(made, settings))
    if settings.int4:
        with tolerated("int4", failures):
            targets.append(int4(made, reference))
    return {
        "network": case.name,
        "judged_by": KINDS[case.kind],
        "inputs": made.test.count,
        "rows": [row.to_json() for row in rows],
        "ours": notes,
        "failures": failures,
        "targets": [{**each, "name": f"{case.name}: {each['name']}"} for each in targets],
    }


FLOAT_LITERT, OURS_LITERT = "float32 .tflite", "ours .tflite"


def litert_runners(
    made: Prepared, settings: Settings, like: Answers, notes: dict[str, Any], failures: dict[str, str]
) -> list[Runner]:
    """The float .tflite, ours and litert-quantizer's. like: the float network's answers to the first test input."""
    content = float_tflite(made)
    if content is None:
        return []
    sample = made.test.inputs(0)
    runners = [litert_runner(FLOAT_LITERT, content, like, sample)]
    source = made.scratch / "float32.tflite"
    source.write_bytes(content)
    say(f"{made.case.name}: ours for litert")
    with tolerated(OURS_LITERT, failures):
        runner, notes[OURS_LITERT] = ours(made, "litert")
        runners.append(runner)
    if "litert" in settings.tools:
        say(f"{made.case.name}: litert-quantizer")
        with tolerated("litert-quantizer", failures):
            content, _ = peer(made, "litert", environment("litert", LITERT), source, ".tflite")
            runners.append(litert_runner("litert-quantizer", content, like, sample))
    return runners


def parity(made: Prepared) -> dict[str, Any]:
    """One recipe, all of it in int8, lowered for both runtimes: on how many test inputs the two say the same."""
    say(f"{made.case.name}: one recipe in both runtimes")
    plain = run_steps(made.graph, BEFORE, Context())
    data = load_data(made.data / "calib.npz", made.graph.inputs, made.graph.labels)
    quantized = run_steps(plain, [step("quantize_static", activation="int8")], Context(data, plain))
    (part,) = LOWERINGS["onnxruntime"](whole_stage(quantized), Backend("onnxruntime"))
    sample = made.test.inputs(0)
    first = ort_runner("parity", [part.content], made.outputs)
    second = litert_runner("parity", as_tflite(quantized), first.run(sample), sample)
    told = [decisions(each, made.test, made.case.kind)[0] for each in (first, second)]
    same = 100 * float((told[0] == told[1]).mean())
    name = "one int8 recipe, .tflite and ONNX agree"
    return target(name, same, None, None, "%", f">= {MIN_AGREEMENT:g}", met=same >= MIN_AGREEMENT)


def time_rows(rows: Sequence[Row], made: Prepared, settings: Settings) -> None:
    """Fill in times, each over the float network in the same runtime, all in the same rounds."""
    samples = [made.test.inputs(index) for index in range(min(8, made.test.count))]
    times = latencies([row.runner for row in rows], samples, settings.rounds, settings.turn_s)
    base = {"onnxruntime": 0}
    base.update(
        {row.runner.runtime: index for index, row in enumerate(rows) if row.runner.name == FLOAT_LITERT}
    )
    for index, row in enumerate(rows):
        ratios = times[:, index] / times[:, base[row.runner.runtime]]
        row.ratio = (float(np.median(ratios)), float(ratios.min()), float(ratios.max()))
        row.ms = float(np.median(times[:, index]))


def against_peers(rows: Sequence[Row], runtime: str, mine: str, base: str) -> list[dict[str, Any]]:
    """Accuracy, latency and size of ours in one runtime, against its peers there."""
    there = {row.runner.name: row for row in rows if row.runner.runtime == runtime}
    peers = [row for name, row in there.items() if name not in (mine, base)]
    if mine not in there:
        return []
    own, where = there[mine], "" if runtime == "onnxruntime" else ", litert"
    latency = target(
        f"latency over float32{where}", *own.ratio, "x", f"<= {MAX_LATENCY}", met=own.ratio[0] <= MAX_LATENCY
    )
    if not peers:
        return [latency]
    best = max(peers, key=lambda row: float(row.score.mean()))
    gain = interval((own.score - best.score) * 100)
    made = [
        target(
            f"ours - {best.runner.name}, the most accurate peer{where}",
            *gain,
            "points",
            "95 % interval reaches 0",
            met=gain[2] >= 0,
        ),
        latency,
    ]
    fit = [
        row
        for row in peers
        if interval((row.score - best.score) * 100)[2] >= 0 and row.ratio[0] <= MAX_LATENCY
    ]
    if not fit:
        return [
            *made,
            target(
                f"size over the smallest good peer's{where}",
                None,
                None,
                None,
                "x",
                f"<= {MAX_SIZE}; no peer meets both other limits",
                met=True,
            ),
        ]
    least = min(fit, key=lambda row: row.runner.size)
    size = own.runner.size / least.runner.size
    return [
        *made,
        target(
            f"size over {least.runner.name}'s, the smallest good peer{where}",
            size,
            None,
            None,
            "x",
            f"<= {MAX_SIZE}",
            met=size <= MAX_SIZE,
        ),
    ]


def quick(made: Prepared, settings: Settings) -> dict[str, Any]:
    """Whole processes in turns, same calibration inputs: `edgekit convert --effort quick` over quantize_static."""
    say(f"{made.case.name}: timing the processes")
    ratios, used = [], []
    for _ in range(settings.repeats):
        own = run(convert_command(made, made.scratch / "quick.edge", effort="quick", judged=False))
        _, other = peer(made, "onnxruntime", Path(sys.executable), made.float32, ".quick.onnx")
        ratios.append(own.wall / other.wall)
        used.append(own.cpu / other.cpu)
    value = statistics.median(ratios)
    name = f"quick convert over quantize_static (processor time: {statistics.median(used):.2f})"
    return target(name, value, min(ratios), max(ratios), "x", f"<= {MAX_QUICK}", met=value <= MAX_QUICK)


def int4(made: Prepared, reference: Answers) -> dict[str, Any]:
    """Weights in int4, one scale per output channel, the rest in float: AdaRound against rounding to the nearest."""
    say(f"{made.case.name}: int4")
    plain = run_steps(made.graph, BEFORE, Context())
    data = load_data(made.data / "calib.npz", made.graph.inputs, made.graph.labels)
    scores, kind = [], made.case.kind
    for steps in (
        [step("quantize_weights", format="int4", min_size=1)],
        [step("adaround", format="int4"), step("quantize_weights", format="int4", min_size=1)],
    ):
        graph = run_steps(plain, steps, Context(data, plain))
        (part,) = LOWERINGS["onnxruntime"](whole_stage(graph), Backend("onnxruntime"))
        runner = ort_runner("int4", [part.content], made.outputs)
        scores.append(score(kind, decisions(runner, made.test, kind), reference, made.test.labels))
    gain = interval((scores[1] - scores[0]) * 100)
    means = " against ".join(f"{100 * float(each.mean()):.2f}" for each in reversed(scores))
    return target(f"int4, AdaRound - nearest ({means} %)", *gain, "points", "> 0", met=gain[0] > 0)


# --- the page ------------------------------------------------------------------------------------------------------


INTRODUCTION = """# The converter against other tools

    .venv/bin/python tools/bench/convert_peers.py --page docs/benchmarks/convert.md

Every tool gets the same network and the same 256 calibration inputs, and is judged on the same test inputs in one run.
`ours`: `edgekit convert --profile host` with 1,000 more inputs (250 for basic_pitch) to validate on.
`onnxruntime`: quantize_static, QDQ, per channel, MinMax, uint8 activations and int8 weights, after quant_pre_process.
`nncf`: nncf.quantize with its defaults, on the same prepared network. `litert-quantizer`: static_wi8_ai8 on the float
.tflite (as published, else as we write it). `ours .tflite`: `edgekit convert --backend litert`.

Times are thread CPU time, one thread, batch 1, interleaved rounds, medians, over the float network in the same runtime.
Intervals are 95 %, bootstrap of paired differences. Networks and inputs: tools/fetch_models.py, tools/make_data.py;
the inputs are real ones only for Fashion-MNIST, the others are crops, renderings and synthesized sound.
"""


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """The kept results as Markdown."""
    lines = [INTRODUCTION]
    missing = [case.name for case in CASES if case.name not in {result["network"] for result in results}]
    if missing:
        lines += [f"Without a finished run, and so not here: {', '.join(missing)}.", ""]
    for result in results:
        lines += network_page(result)
    return "\n".join(lines) + "\n"


def network_page(result: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    judged = f"{result['inputs']} inputs, judged by: {result['judged_by']}"
    where = f"{result['rounds']} rounds, {result['machine']}, {result['date']}; {versions}"
    lines = [
        f"## {result['network']}",
        "",
        f"{judged}. {where}.",
        "",
        "| | runtime | score, % | ms | over float32 | kB | made by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [
            row["name"],
            row["runtime"],
            f"{row['score']:.2f}",
            f"{row['latency_ms']:.3f}",
            f"{row['latency_ratio']:.2f}",
            f"{row['bytes'] / 1e3:.1f}",
            row["note"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| target | value | range | wanted | met |", "|---|---|---|---|---|"]
    for each in result["targets"]:
        name = each["name"].partition(": ")[2]
        value = "-" if each["value"] is None else f"{each['value']:g} {each['unit']}"
        span = "" if each["min"] is None else f"{each['min']:g} … {each['max']:g}"
        lines.append(
            f"| {name} | {value} | {span} | {each['target']} | {'yes' if each['met'] else '**no**'} |"
        )
    lines.append("")
    for what, why in result["failures"].items():
        lines += [f"{what} failed: {why.splitlines()[0][:200]}", ""]
    return lines


def versions() -> dict[str, str]:
    names = ("onnxruntime", "onnx", "numpy", "ai-edge-litert")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    peers = (NNCF[0], LITERT[0])
    return {**found, **dict(each.split("==") for each in peers)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--network", action="append", choices=[case.name for case in CASES], help="only this one"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--inputs", type=int, help="judge on this many test inputs only")
    parser.add_argument("--quick", action="store_true", help="one small network, few inputs")
    parser.add_argument("--repeats", type=int, default=3, help="whole processes timed in turns (3)")
    parser.add_argument("--no-int4", action="store_true", help="leave the comparison of int4 roundings out")
    parser.add_argument("--page", type=Path, help="write this page from all kept results afterwards")
    parser.add_argument("--only-page", action="store_true", help="run nothing")
    asked = parser.parse_args()
    kept = cache_root() / "bench"
    names = asked.network or (["rock_paper_scissors"] if asked.quick else [case.name for case in CASES])
    results = []
    for case in () if asked.only_page else [case for case in CASES if case.name in names]:
        settings = Settings(
            rounds=asked.rounds,
            turn_s=QUICK_TURN_S if asked.quick else TURN_S,
            inputs=asked.inputs or (QUICK_INPUTS if asked.quick else None),
            repeats=1 if asked.quick else asked.repeats,
            tools=("onnxruntime",) if asked.quick else ("onnxruntime", "nncf", "litert"),
            int4=not (asked.quick or asked.no_int4),
        )
        with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as scratch:
            result = {
                "machine": machine_name(),
                "versions": versions(),
                "rounds": settings.rounds,
                "date": f"{now():%Y-%m-%d}",
                **judge(prepare(case, Path(scratch), settings.inputs), settings),
            }
        results.append(result)
        if not asked.quick:
            kept.mkdir(parents=True, exist_ok=True)
            (kept / f"{case.name}.json").write_text(json.dumps(result, indent=1))
    if asked.page:
        stored = [kept / f"{case.name}.json" for case in CASES]
        asked.page.write_text(page([json.loads(path.read_text()) for path in stored if path.is_file()]))
    targets = [each for result in results for each in result["targets"]]
    whole = {
        "machine": machine_name(),
        "versions": versions(),
        "rounds": asked.rounds,
        "targets": targets,
        "networks": results,
    }
    print(json.dumps(whole, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
