"""The search: int8 where it is faster and harmless, float elsewhere, and everything that was tried is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import CLASSES, SIDE, Builder, image_out, save, three_exits, write_data

from edgekit.core.bench import BenchReport
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure
from edgekit.core.profile import HOST
from edgekit.core.report import Latency, Report
from edgekit.host import search_int8 as subject
from edgekit.host import tried
from edgekit.host.bench import Bench, Candidate
from edgekit.host.cache import Cache
from edgekit.host.convert import Request, convert
from edgekit.host.effort import DEFAULT, QUICK
from edgekit.host.formats import NodeCosts
from edgekit.host.graph import Graph
from edgekit.host.limits import Limits
from edgekit.host.pack import MEMBER
from edgekit.host.passes import PASSES, Context, step
from edgekit.host.recipe import read_recipe
from edgekit.host.search import pruning_steps
from edgekit.host.tried import work_of
from edgekit.runtime.data import Data
from edgekit.runtime.detect import find_profile

PI = find_profile("raspberrypi5")
BOARD = replace(PI, cost=replace(PI.cost, call_overhead_us=Figure(0.0, "us", "estimated", None, "a test")))
ANY = Limits(max_drop=100.0)  # random networks have no accuracy worth keeping
Files = tuple[Path, Path, Path]


def clock(int8: float) -> Bench:
    """A bench on which int8 takes `int8` times what float32 takes, by bytes and MACs: no noise."""

    def bench(candidates: Sequence[Candidate], data: Data) -> tuple[BenchReport, ...]:
        reports = []
        for candidate in candidates:
            work = work_of(candidate.manifest)
            ms = 1e-4 * sum((entry.macs + 1) * (int8 if entry.format == "int8" else 1.0) for entry in work)
            latency = Latency(ms, ms, ms, ms)
            reports.append(BenchReport("0" * 64, exits=_each(latency, candidate), turns_ms=(ms, ms, ms)))
        return tuple(reports)

    return bench


def _each(latency: Latency, candidate: Candidate) -> tuple[Latency, ...]:
    return (latency,) * len(candidate.manifest.exits)


def request(files: Files, **changes: object) -> Request:
    model, calib, test = files
    base = Request(
        model, BOARD, calib, evaluation=test, name="three", limits=ANY, effort=QUICK, bench=clock(0.3)
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def formats(report: Report) -> set[str]:
    return {layer.format for layer in report.layers if layer.macs}


def labels(report: Report) -> list[str]:
    return [attempt.label for attempt in report.tried]


def test_int8_that_is_faster_is_chosen_and_float_is_told_as_tried(files: Files) -> None:
    report = convert(request(files)).report
    assert formats(report) == {"int8"}
    assert labels(report)[:2] == ["float32", "int8"]
    (chosen,) = [attempt for attempt in report.tried if attempt.chosen]
    assert chosen.label == "int8"
    assert chosen.latency_ms is not None
    assert chosen.provenance == "measured"
    assert report.dropped == ()


def test_int8_that_is_slower_is_taken_back_and_its_weights_still_take_a_quarter(files: Files) -> None:
    report = convert(request(files, bench=clock(1.5))).report
    assert formats(report) == {"float32"}
    assert report.dropped[0].layer == "*"
    assert "slower on the target" in report.dropped[0].why
    (chosen,) = [attempt for attempt in report.tried if attempt.chosen]
    assert chosen.label == "float32, weights in int8"
    stored = {layer.name: layer.weights for layer in report.layers}
    assert stored["n_b1"] == "int8"
    assert stored["n_exit1"] is None  # 40 numbers: codes would not be smaller
    plain = next(attempt for attempt in report.tried if attempt.label == "float32")
    assert chosen.size_bytes < plain.size_bytes
    assert plain.why == "the same with smaller weights is as fast"


def test_stored_weights_that_slow_the_network_down_are_taken_back(files: Files) -> None:
    def slow_when_small(candidates: Sequence[Candidate], data: Data) -> tuple[BenchReport, ...]:
        found = []
        for candidate in candidates:
            ms = 1e6 / sum(map(len, candidate.files.values()))
            exits = _each(Latency(ms, ms, ms, ms), candidate)
            found.append(BenchReport("0" * 64, exits=exits, turns_ms=(ms,)))
        return tuple(found)

    report = convert(request(files, bench=slow_when_small)).report
    (chosen,) = [attempt for attempt in report.tried if attempt.chosen]
    assert chosen.label == "float32"
    assert any(
        entry.step == "quantize_weights int8" and "ms with float weights" in entry.why
        for entry in report.dropped
    )


def test_only_the_layers_that_gain_are_int8(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def times(setting: object, plain: Graph, quantized: Graph) -> NodeCosts:
        names = [node.name or "" for node in plain.model.graph]
        in_int8 = {name: 5.0 if name.startswith("n_b") else 0.1 for name in names}
        return NodeCosts(dict.fromkeys(names, 1.0), in_int8, 0.0, 1e-6, "measured")

    monkeypatch.setattr(subject, "_costs", times)

    def bench(candidates: Sequence[Candidate], data: Data) -> tuple[BenchReport, ...]:
        found = []
        for candidate in candidates:
            work = work_of(candidate.manifest)
            share = sum(entry.format == "int8" for entry in work)
            mixed = share and any(e.op.startswith("Conv") and e.format == "float32" and e.macs for e in work)
            ms = 0.5 if mixed else 2.0 if share else 1.0
            exits = _each(Latency(ms, ms, ms, ms), candidate)
            found.append(BenchReport("0" * 64, exits=exits, turns_ms=(ms,)))
        return tuple(found)

    report = convert(request(files, bench=bench)).report
    by_name = {layer.name: layer for layer in report.layers}
    assert by_name["n_a2_y"].format == "int8"
    assert by_name["n_b1"].format == "float32"
    assert by_name["n_b1"].why == "float32: 1000 us in float32, 5000 in int8 (measured)"
    assert any(entry.layer == "n_b1" and entry.step == "quantize_static" for entry in report.dropped)
    assert any(label.startswith("int8 in ") for label in labels(report))


def test_a_layer_that_int8_ruins_goes_back_to_float_and_the_others_stay(tmp_path: Path) -> None:
    """One convolution makes values of 1e4 beside those of 1 that decide: eight bits cannot hold both."""
    b = Builder(3)
    b.op("Conv", ["x", b.weight("w1", 8, 3, 3, 3), b.weight("b1", 8)], "c1", pads=[1] * 4)
    b.op("Relu", ["c1"], "r1")
    wild = b.weight("w2", 8, 8, 3, 3)
    array = onnx.numpy_helper.to_array(b.weights[-1]).copy()
    array[0] *= 1e4
    b.weights[-1] = onnx.numpy_helper.from_array(array, wild)
    b.op("Conv", ["r1", wild, b.weight("b2", 8)], "c2", pads=[1] * 4)
    b.op("Relu", ["c2"], "r2")
    b.op("Mul", ["r2", b.constant("tame", np.array([1e-4, *[1] * 7], np.float32).reshape(1, 8, 1, 1))], "m2")
    b.head("m2", "out", 8)
    model = save(b.model([("out", (1, CLASSES))]), tmp_path / "m.onnx")
    random = np.random.default_rng(1)
    tinted = random.normal(size=(300, 3, SIDE, SIDE)) + random.uniform(-3, 3, (300, 3, 1, 1))
    data = tmp_path / "d.npz"
    np.savez(data, x=tinted.astype(np.float32))
    wanted = Request(model, BOARD, data, limits=Limits(max_drop=6.0), effort=DEFAULT, bench=clock(0.3))
    report = convert(wanted).report
    by_name = {layer.name: layer for layer in report.layers}
    whole = next(attempt for attempt in report.tried if attempt.label == "int8")
    assert whole.lost is not None
    assert whole.lost > 6.0
    assert by_name["n_c1"].format == "int8"
    assert "float32" in {by_name["n_c2"].format, by_name["n_m2"].format}
    assert report.accuracy.after is not None
    assert report.accuracy.after >= 0.93
    assert any("harms most for what it gains" in entry.why for entry in report.dropped)


def test_int8_that_costs_too_much_accuracy_is_taken_back(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses(stayed: object, tried_table: object) -> tuple[float, float]:
        return (0.0, 0.0) if stayed is tried_table else (3.0, 0.1)

    monkeypatch.setattr(tried, "_lost", loses)
    report = convert(request(files, limits=Limits())).report
    assert formats(report) == {"float32"}
    assert report.dropped[0].why == "it costs 3.00 points of accuracy on the validation data, more than 0.5"


def test_a_limit_on_the_drop_is_exact_and_the_default_allows_for_chance(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tried, "_lost", lambda a, b: (0.0, 0.0) if a is b else (0.6, 0.2))
    assert formats(convert(request(files, limits=Limits())).report) == {"int8"}
    assert formats(convert(request(files, limits=Limits(max_drop=0.5))).report) == {"float32"}


def test_answers_that_are_no_classes_must_stay_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(image_out(), tmp_path / "m.onnx")
    data = write_data(tmp_path / "d.npz", (3, SIDE, SIDE), 20)
    wanted = Request(model, BOARD, data, effort=QUICK, bench=clock(0.3))
    assert convert(wanted).report.dropped == ()
    monkeypatch.setattr(tried, "MIN_SQNR_DB", 90.0)
    assert "dB on the validation data, 90 are wanted" in convert(wanted).report.dropped[0].why


def test_a_board_that_is_not_faster_in_int8_gets_float(files: Files) -> None:
    slow = replace(BOARD, backends=tuple(replace(b, fast_formats=("float32",)) for b in BOARD.backends))
    report = convert(request(files, profile=slow)).report
    assert report.dropped[0].why == "int8 is not faster than float32 on raspberrypi5 with onnxruntime"


def test_what_the_int8_writer_cannot_handle_stays_float_and_says_so(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*arguments: object) -> None:
        raise BadInput("no such operator in int8")

    monkeypatch.setitem(PASSES, "quantize_static", replace(PASSES["quantize_static"], apply=stumble))  # type: ignore[arg-type, call-overload]
    report = convert(request(files)).report
    assert report.dropped[0].why == "no such operator in int8"
    assert formats(report) == {"float32"}


def test_without_a_bench_the_profiles_estimate_decides_and_is_called_so(files: Files) -> None:
    report = convert(request(files, bench=None)).report
    (chosen,) = [attempt for attempt in report.tried if attempt.chosen]
    assert chosen.provenance == "estimated"
    assert {layer.ms_provenance for layer in report.layers} <= {"estimated", None}


def test_a_rerun_by_its_recipe_makes_the_same_content_and_times_only_the_result(
    files: Files, tmp_path: Path
) -> None:
    first = convert(request(files, effort=DEFAULT))

    rounds: list[int] = []

    def counted(candidates: Sequence[Candidate], data: Data) -> tuple[BenchReport, ...]:
        rounds.append(len(candidates))
        return clock(0.3)(candidates, data)

    (tmp_path / "recipe.toml").write_bytes(first.finished.files[MEMBER])
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert (
        convert(request(files, recipe=recipe, bench=counted)).finished.content_id == first.finished.content_id
    )
    assert rounds == [2], "what came in against what went out, for the report"


def test_interrupted_work_goes_on_where_it_was(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    costly = replace(
        PASSES["quantize_static"], costly=True, apply=_noted(PASSES["quantize_static"].apply, taken)
    )
    monkeypatch.setitem(PASSES, "quantize_static", costly)  # type: ignore[arg-type, call-overload]
    cache = Cache(tmp_path / "cache")

    def breaks(candidates: Sequence[Candidate], data: Data) -> tuple[BenchReport, ...]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(request(files, bench=breaks, cache=cache))
    before = len(taken)
    assert before
    convert(request(files, cache=cache))
    assert len(taken) == before


def test_what_was_kept_for_other_calibration_samples_is_not_taken(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --val all of --calib calibrates, without it four fifths: the ranges are others."""
    taken: list[str] = []
    costly = replace(
        PASSES["quantize_static"], costly=True, apply=_noted(PASSES["quantize_static"].apply, taken)
    )
    monkeypatch.setitem(PASSES, "quantize_static", costly)  # type: ignore[arg-type, call-overload]
    cache, val = Cache(tmp_path / "cache"), files[2]
    convert(request(files, cache=cache))
    before = len(taken)
    kept = convert(request(files, cache=cache, val=val)).finished
    assert len(taken) > before
    assert kept.content_id == convert(request(files, val=val)).finished.content_id


def test_adaround_rounds_what_int8_will_take_onto_the_grid_it_will_take() -> None:
    int8 = step("quantize_static", activation="uint8", reduce_range=True, keep_float=("n_b1",))
    rounding, *rest = subject._around(("adaround", "bias_correction"), (int8,))
    assert rounding == step("adaround", reduce_range=True, keep_float=("n_b1",))
    assert rest == [int8, step("bias_correction")]


def _noted(apply: Callable[..., Graph], taken: list[str]) -> Callable[..., Graph]:
    def noted(*arguments: object) -> Graph:
        taken.append("once")
        return apply(*arguments)

    return noted


def test_weights_shrink_to_fewer_bits_until_the_limit_on_size_is_met(files: Files) -> None:
    loose = convert(request(files, bench=clock(1.5))).report
    assert loose.size_bytes.after is not None
    wanted_kb = 0.85 * loose.size_bytes.after / 1e3
    report = convert(
        request(files, bench=clock(1.5), limits=Limits(max_drop=100.0, max_size_kb=wanted_kb))
    ).report
    assert report.limits_missed == ()
    assert {layer.weights for layer in report.layers if layer.op == "Conv" and layer.macs} <= {
        "int4",
        "ternary",
        "binary",
        None,
    }


def test_a_limit_that_cannot_be_met_is_missed_by_the_best_found(files: Files) -> None:
    report = convert(request(files, limits=Limits(max_drop=100.0, max_size_kb=0.001))).report
    (missed,) = report.limits_missed
    assert missed.startswith("max-size-kb: wanted at most 0.001 kB, got ")


def test_what_the_target_cannot_use_is_taken_back_with_its_reason(files: Files) -> None:
    """A board that refuses int8, or on which its golden cases fail, gives no time for it."""

    def no_int8(candidates: Sequence[Candidate], data: Data) -> tuple[BenchReport, ...]:
        return tuple(
            replace(report, exits=(), turns_ms=(), problems=("exit1 is off by 0.5",)) if refused else report
            for report, refused in zip(
                clock(0.3)(candidates, data),
                [any(entry.format == "int8" for entry in work_of(made.manifest)) for made in candidates],
                strict=True,
            )
        )

    report = convert(request(files, bench=no_int8)).report
    assert formats(report) == {"float32"}
    assert "of no use on the target: exit1 is off by 0.5" in report.dropped[0].why
    refused = next(attempt for attempt in report.tried if attempt.label == "int8")
    assert (refused.latency_ms, refused.chosen) == (None, False)


def wide(tmp_path: Path) -> Files:
    model = save(three_exits(channels=16), tmp_path / "wide.onnx")
    data = [write_data(tmp_path / f"{seed}.npz", (3, SIDE, SIDE), 60, seed, CLASSES) for seed in (1, 2)]
    return model, data[0], data[1]


def test_what_the_user_prunes_is_not_held_against_int8_and_the_recipe_knows_the_channels(
    tmp_path: Path,
) -> None:
    files = wide(tmp_path)
    base = pruning_steps(0.5, None, BOARD)
    made = convert(request(files, base=base, limits=Limits(max_drop=60.0)))
    report = made.report
    assert labels(report)[:3] == ["float32", "prune_channels 0.5", "prune_channels 0.5, int8"]
    macs = {layer.name: layer.macs for layer in report.layers}
    whole = convert(request(files)).report
    assert sum(macs.values()) <= 0.5 * sum(layer.macs for layer in whole.layers)
    assert formats(report) == {"int8"}
    (tmp_path / "recipe.toml").write_bytes(made.finished.files[MEMBER])
    recipe = read_recipe(tmp_path / "recipe.toml")
    pruned = next(entry for entry in recipe.steps if entry.name == "prune_channels")
    assert pruned.options.keep
    assert all(layer.sqnr_db is not None for layer in report.layers if layer.op == "Conv")
    assert convert(request(files, recipe=recipe)).finished.content_id == made.finished.content_id


def test_a_limit_on_latency_prunes_until_it_is_met_and_tells_of_nothing_else(tmp_path: Path) -> None:
    files = wide(tmp_path)
    fast = convert(request(files)).report
    chosen = next(attempt for attempt in fast.tried if attempt.chosen)
    assert chosen.latency_ms is not None
    wanted = Limits(max_drop=100.0, max_latency_ms=0.7 * chosen.latency_ms)
    report = convert(request(files, limits=wanted, effort=replace(QUICK, shares=(0.1, 0.5, 0.9)))).report
    taken = next(attempt for attempt in report.tried if attempt.chosen)
    assert taken.label.startswith("prune_channels")
    assert taken.latency_ms is not None
    assert taken.latency_ms <= 0.7 * chosen.latency_ms
    assert report.limits_missed == ()
    assert not any("0.9" in label for label in labels(report))


def test_another_runtime_of_the_board_is_taken_where_it_is_measured_faster(
    files: Files, tmp_path: Path
) -> None:
    pytest.importorskip("ai_edge_litert")

    def litert_is_fast(candidates: Sequence[Candidate], data: Data) -> tuple[BenchReport, ...]:
        found = []
        for candidate in candidates:
            there = all(
                part.backend == "litert" for stage in candidate.manifest.stages for part in stage.parts
            )
            int8 = any(entry.format == "int8" for entry in work_of(candidate.manifest))
            ms = (0.3 if there else 1.2) if int8 else 1.0
            exits = tuple(Latency(ms, ms, ms, ms) for _ in candidate.manifest.exits)
            found.append(BenchReport("0" * 64, exits=exits, turns_ms=(ms, ms)))
        return tuple(found)

    made = convert(request(files, effort=DEFAULT, bench=litert_is_fast))
    report = made.report
    assert {part.backend for stage in made.finished.manifest.stages for part in stage.parts} == {"litert"}
    assert next(attempt for attempt in report.tried if attempt.chosen).label.endswith("int8, litert")
    assert report.parity is not None
    assert report.parity.backends == ("onnxruntime", "litert")
    (tmp_path / "recipe.toml").write_bytes(made.finished.files[MEMBER])
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.backend == "litert"
    again = convert(request(files, effort=DEFAULT, recipe=recipe, bench=litert_is_fast))
    assert again.finished.content_id == made.finished.content_id
    named = convert(request(files, effort=DEFAULT, backend="onnxruntime", bench=litert_is_fast)).report
    assert not any("litert" in label for label in labels(named))


def test_node_times_are_onnxruntimes_and_say_so_where_another_runtime_is_converted_for(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times(plain: Graph, quantized: Graph, data: Data) -> NodeCosts:
        names = [node.name or "" for node in plain.model.graph]
        return NodeCosts(dict.fromkeys(names, 2.0), dict.fromkeys(names, 1.0), 0.0, 0.0, "measured")

    monkeypatch.setattr(subject, "measured_costs", times)
    said = {}
    for backend in ("onnxruntime", "litert"):
        if backend == "litert":
            pytest.importorskip("ai_edge_litert")
        here = replace(BOARD, name=HOST)
        layers = convert(request(files, profile=here, backend=backend)).report.layers
        said[backend] = next(layer.why for layer in layers if layer.name == "n_b1")
    assert said["onnxruntime"] == "int8: 2000 us in float32, 1000 in int8 (measured)"
    assert said["litert"] == "int8: 2000 us in float32, 1000 in int8 (measured with onnxruntime)"


def test_when_the_time_is_up_nothing_new_is_tried_and_that_is_told(files: Files) -> None:
    report = convert(request(files, effort=replace(DEFAULT, limit_s=0.0))).report
    assert labels(report) == ["float32", "int8"]  # without these two there is nothing to say
    assert any("not tried: 0 s were over" in entry.why for entry in report.dropped)


def test_what_came_of_pruning_and_of_few_samples_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = wide(tmp_path)
    monkeypatch.setattr(tried, "_lost", lambda a, b: (0.0, 0.0) if a is b else (40.0, 1.0))
    notes = convert(request(files, base=pruning_steps(0.5, None, BOARD), limits=Limits())).report.notes
    assert notes[0].startswith("candidates were compared on 12 validation samples")
    assert notes[1].startswith("prune_channels 0.5: it costs 40.00 points of accuracy")


def test_training_that_did_not_help_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = replace(PASSES["recover"], apply=lambda graph, options, context: graph)
    monkeypatch.setitem(PASSES, "recover", idle)  # type: ignore[arg-type, call-overload]
    base = pruning_steps(0.5, 1, BOARD)
    notes = convert(request(wide(tmp_path), base=base)).report.notes
    assert any(note.startswith("recover: training brought the answers no nearer") for note in notes)


def test_an_edited_recipe_tells_of_nothing_that_was_taken_back_once(files: Files, tmp_path: Path) -> None:
    first = convert(request(files, bench=clock(1.5)))
    assert first.report.dropped
    (tmp_path / "recipe.toml").write_bytes(first.finished.files[MEMBER])
    assert convert(request(files, recipe=read_recipe(tmp_path / "recipe.toml"))).report.dropped == ()


def test_a_recipes_seed_is_the_one_its_steps_draw_with(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = convert(request(files))
    text = first.finished.files[MEMBER].decode().replace("seed = 1\n", "seed = 7\n")
    (tmp_path / "recipe.toml").write_text(text)
    seen: list[int] = []

    def noting(graph: Graph, options: object, context: Context) -> Graph:
        seen.append(context.seed)
        return PASSES["equalize"].apply(graph, PASSES["equalize"].options(), context)

    spied = replace(PASSES["quantize_static"], apply=noting)
    monkeypatch.setitem(PASSES, "quantize_static", spied)  # type: ignore[arg-type, call-overload]
    convert(request(files, recipe=read_recipe(tmp_path / "recipe.toml")))
    assert set(seen) == {7}
