"""The fit finds coefficients that are known, in noise and with samples that lie; what has few samples stays sane."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from edgekit.core.cost import Work, predict
from edgekit.core.profile import profile, profile_from
from edgekit.core.profile_toml import profile_toml
from edgekit.core.toml import parse_toml
from edgekit.host.fit_cost import Fitted, Sample, errors, fit, leave_one_out

# seconds per MAC, per byte, per call
TRUE = {
    ("Conv.kxk", "float32"): (1 / 100e9, 1 / 50e9, 2e-6),
    ("Conv.kxk", "int8"): (1 / 400e9, 1 / 40e9, 3e-6),
    ("Conv.depthwise", "float32"): (1 / 20e9, 1 / 30e9, 2e-6),
    ("Add", "float32"): (0.0, 1 / 20e9, 1e-6),
}


def cost_of(work: Work) -> float:
    per_mac, per_byte, per_call = TRUE[work.op, work.format]
    return work.macs * per_mac + work.bytes * per_byte + work.calls * per_call


def samples(count: int = 80, noise: float = 0.03, seed: int = 0) -> list[Sample]:
    """Networks of one to three kinds of layers, sizes from kilobytes to megabytes."""
    random = np.random.default_rng(seed)
    kinds, made = list(TRUE), []
    for index in range(count):
        work = []
        for kind in random.choice(len(kinds), random.integers(1, 4), replace=False):
            op, fmt = kinds[kind]
            moved = int(10 ** random.uniform(3, 6.5))
            macs = 0 if op == "Add" else int(moved * 10 ** random.uniform(0.5, 2))
            work.append(Work(op, fmt, macs, moved, int(random.integers(1, 9))))
        seconds = sum(map(cost_of, work)) * math.exp(noise * random.normal())
        made.append(Sample(f"net {index}", tuple(work), seconds))
    return made


def test_known_coefficients_are_found_in_noise() -> None:
    found = fit(samples()).seconds
    for (op, fmt), terms in TRUE.items():
        for term, true in zip(("macs", "bytes", "calls"), terms, strict=True):
            if true:
                assert found[op, fmt, term] == pytest.approx(true, rel=0.25), (op, fmt, term)


def test_predictions_of_networks_that_were_not_seen_are_as_good_as_the_noise() -> None:
    missed = errors(fit(samples(seed=1)), samples(40, noise=0.0, seed=2))
    assert np.median(np.abs(list(missed.values()))) < 0.03


def test_some_samples_that_lie_by_a_factor_do_not_bend_the_rest() -> None:
    lying = [
        Sample(s.name, s.work, s.seconds * 8) if index % 10 == 0 else s for index, s in enumerate(samples())
    ]
    missed = errors(fit(lying), samples(40, noise=0.0, seed=2))
    assert np.median(np.abs(list(missed.values()))) < 0.08


def test_no_coefficient_is_negative_where_a_term_costs_nothing() -> None:
    free = [Sample(s.name, s.work, sum(w.calls for w in s.work) * 1e-5) for s in samples()]
    fitted = fit(free)
    assert all(seconds > 0 for seconds in fitted.seconds.values())
    assert np.median(np.abs(list(errors(fitted, free).values()))) < 0.05


def test_a_class_with_one_sample_stays_close_to_its_kind() -> None:
    rare = Work("Conv.rare", "float32", 10**8, 10**6, 4)
    with_rare = [
        *samples(),
        Sample("rare", (rare,), 40 * cost_of(Work("Conv.kxk", "float32", 10**8, 10**6, 4))),
    ]
    small = Work("Conv.rare", "float32", 10**4, 10**3, 1)
    kind = Work("Conv", "float32", 10**4, 10**3, 1)
    fitted = fit(with_rare)
    assert fitted.predict([rare]) > 5 * fitted.predict([Work("Conv", "float32", 10**8, 10**6, 4)])  # believed
    assert fitted.predict([small]) < 20 * fitted.predict([kind])  # but not for everything


def test_a_class_that_was_never_seen_costs_what_its_kind_does_and_new_side_work_nothing() -> None:
    fitted = fit(samples())
    kind, new = (Work(op, "float32", 10**6, 10**5, 1) for op in ("Conv", "Conv.new"))
    assert fitted.predict([new]) == fitted.predict([kind]) > 0
    assert fitted.predict([Work("Erf", "float32", 0, 10**5, 1)]) > 0
    assert fitted.predict([Work("Layout", "float32", 0, 10**5, 1)]) == 0.0


def test_the_same_samples_give_the_same_coefficients() -> None:
    assert fit(samples()).seconds == fit(samples()).seconds


def test_a_network_that_is_left_out_does_not_help_to_predict_itself() -> None:
    odd = Sample("odd", (Work("Add", "float32", 0, 10**6, 1),), 1.0)  # 20,000 times what an addition takes
    networks = [[s] for s in samples(20)]
    found = leave_one_out(samples(40, seed=3), [*networks, [odd]])
    assert found["odd"] < -0.99
    assert np.median([abs(found[s.name]) for (s,) in networks]) < 0.05
    assert set(found) == {"odd", *(s.name for (s,) in networks)}


def test_a_profile_with_the_coefficients_predicts_what_the_fit_does_and_survives_its_file() -> None:
    fitted = fit(samples())
    made = profile("raspberrypi5")
    made = dataclasses.replace(made, cost=fitted.costs(1, "here", "2026-01-02"))
    read = profile_from(parse_toml(profile_toml(made), "made.toml"), "made.toml")
    assert read.cost.operators == made.cost.operators
    for sample in samples(10, seed=4):
        assert predict(read, sample.work).value == pytest.approx(1e3 * fitted.predict(sample.work), rel=1e-3)
    own = read.cost.operators["Conv.kxk"]["int8"].macs_per_second
    assert (own.provenance, own.on, own.when) == ("measured", "here", "2026-01-02")


def test_nothing_is_known_of_what_nothing_was_measured_for() -> None:
    assert Fitted({}).costs(1, "here", None).bytes_per_second.value is None
