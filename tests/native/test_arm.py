"""The same C files, cross-compiled for ARM and run under emulation: kernels against their reference, plans bit for bit
against this machine's reference."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from c_programs import built, on, run, sums_by, sums_of
from overlay_plans import lfc, small_cnv
from plan_reference import to_outside
from random_plans import random_codes, random_plan
from trained_binary import images, plan_of

from edgekit.native.plan import Plan
from edgekit.native.plan_door import outside_shape

CPUS = [
    ("aarch64", "cortex-a53", {"neon"}),
    ("aarch64", "cortex-a72", {"neon"}),
    ("aarch64", "cortex-a76", {"neon", "dotprod", "fp16"}),
    ("armv7", "cortex-a7", {"neon"}),
    ("armv7", "cortex-a9", {"neon"}),
]
on_every_cpu = pytest.mark.parametrize(("target", "cpu", "features"), CPUS, ids=[cpu for _, cpu, _ in CPUS])


@on_every_cpu
def test_neon_agrees_with_the_reference_and_the_reference_with_this_machines(
    target: str, cpu: str, features: set[str]
) -> None:
    said = run(*on(target, cpu), built(target) / "check_kernels", "300", "1").splitlines()
    assert [line.split()[:-1] for line in said[:-1]] == [
        [f"{family}:", "reference", "portable", "neon"] for family in ("xnor", "dot8")
    ]
    assert set(said[-1].split()[1:]) == features
    sums = [line.split()[-1] for line in run(built() / "check_kernels", "300", "1").splitlines()[:-1]]
    assert [line.split()[-1] for line in said[:-1]] == sums


@on_every_cpu
def test_every_count_of_a_binary_layer_meets_every_limit_as_in_the_reference(
    target: str, cpu: str, features: set[str]
) -> None:
    said = run(*on(target, cpu), built(target) / "check_xnor", "1", "15").splitlines()
    assert said == ["reference", "portable", "neon chosen"]


def image(plan: Plan, rng: np.random.Generator) -> list[np.ndarray]:
    """Blurred noise over the whole range, for each input."""
    made = []
    for index in plan.marked(outputs=False):
        h, w, c = outside_shape(plan.tensors[index])
        coarse = rng.random((-(-h // 4), -(-w // 4), -(-c // 4)))
        values = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[:h, :w, :c] + rng.normal(0, 0.2, (h, w, c))
        made.append((np.clip(values, 0, 1) * 255).astype(np.uint8))
    return made


NETWORKS = {"small cnv": small_cnv(), "lfc": lfc()}


@on_every_cpu
@pytest.mark.parametrize("network", NETWORKS)
def test_every_layer_of_a_network_has_the_bits_of_this_machines_reference(
    target: str, cpu: str, features: set[str], network: str, tmp_path: Path
) -> None:
    plan, rng = NETWORKS[network], np.random.default_rng(5)
    inputs = [image(plan, rng) for _ in range(3)]
    wanted = sums_of(plan, inputs, "reference")
    assert len(set(wanted)) == len(inputs)
    for kernels in ("neon", "portable"):
        assert (
            sums_by((*on(target, cpu), built(target) / "run_plan"), plan, inputs, kernels, tmp_path) == wanted
        )


@on_every_cpu
def test_random_plans_of_all_operators_have_the_bits_of_this_machines_reference(
    target: str, cpu: str, features: set[str], tmp_path: Path
) -> None:
    for seed in range(8):
        plan, rng = random_plan(seed), np.random.default_rng(seed)
        tensors = [plan.tensors[index] for index in plan.marked(outputs=False)]
        inputs = [[to_outside(tensor, random_codes(rng, tensor)) for tensor in tensors] for _ in range(2)]
        wanted = sums_of(plan, inputs, "reference")
        got = sums_by((*on(target, cpu), built(target) / "run_plan"), plan, inputs, "-", tmp_path)
        assert got == wanted, f"seed {seed}: {plan}"


@on_every_cpu
@pytest.mark.parametrize("network", ["lfc", "cnv"])
def test_real_images_through_a_trained_network_have_this_machines_bits(
    target: str, cpu: str, features: set[str], network: str, tmp_path: Path
) -> None:
    plan, inputs = plan_of(network), [[image] for image in images(2)]
    got = sums_by((*on(target, cpu), built(target) / "run_plan"), plan, inputs, "neon", tmp_path)
    assert got == sums_of(plan, inputs, None)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@on_every_cpu
@pytest.mark.parametrize("network", ["lfc", "cnv"])
def test_a_thousand_real_images_through_every_layer_have_the_bits_of_this_machines_reference(
    target: str, cpu: str, features: set[str], network: str, tmp_path: Path
) -> None:
    plan, inputs = plan_of(network), [[image] for image in images(1000)]
    got = sums_by((*on(target, cpu), built(target) / "run_plan"), plan, inputs, "neon", tmp_path)
    assert got == of_the_reference(network)


@cache
def of_the_reference(network: str) -> list[str]:
    return sums_of(plan_of(network), [[image] for image in images(1000)], "reference")
