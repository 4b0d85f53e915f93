"""Mixed precision: what 16-bit floats lose, and what the master copy and the loss scale keep."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgekit.core.errors import BadInput

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.fit import Gradient, fit  # noqa: E402
from edgekit.host.train.mixed import LossScaled  # noqa: E402
from edgekit.host.train.quantizers.half import HalfActivations, HalfValues, HalfWeights, rounded_to  # noqa: E402


class Line:
    """One number each."""

    count = 8

    def take(self, indices: Any, random: Any) -> Any:
        return {"x": indices.float()[:, None] / 8}


def one_weight(start: float = 1.0) -> Any:
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(start)
    return module


def descent(module: Any, lr: float = 1.0) -> Gradient:
    return Gradient(torch.optim.SGD(module.parameters(), lr))


def test_an_update_of_two_to_the_minus_12_is_lost_without_a_master_copy_and_kept_with_it() -> None:
    for master, after in ((False, 1.0), (True, 1 + 2.0**-12)):
        module = one_weight()
        update = descent(module)
        update.step(-(2.0**-12) * module.weight.sum())
        HalfWeights("fp16", master).settle(module.weight)
        assert float(module.weight.detach()) == after


def test_a_gradient_of_two_to_the_minus_26_is_zero_in_fp16_and_survives_a_scale_of_8() -> None:
    for scale, wanted in ((1.0, 0.0), (8.0, 2.0**-26)):
        module = one_weight()
        update = LossScaled(descent(module), scale, dynamic=False)
        value = HalfValues("fp16")(module(torch.ones(1, 1)))
        update.step(2.0**-26 * value.sum())
        assert float(module.weight.grad) == wanted


def test_products_are_of_rounded_values_and_sums_are_float32() -> None:
    weight = torch.tensor([[1 + 2.0**-12, 2049.0]])
    seen = HalfWeights("fp16")(weight)
    assert seen.tolist() == [[1.0, 2048.0]]
    made = seen @ torch.tensor([[1.0], [2.0**-11]])
    assert float(made) == 2.0  # in fp16 sums 1 + 1 is the same; 2^11 terms of 1 are not:
    ones = rounded_to(torch.full((1, 4096), 1.0), "fp16")
    assert float(ones.sum()) == 4096.0
    running = torch.tensor(0.0, dtype=torch.float16)
    for _ in range(4096):
        running += 1
    assert float(running) == 2048.0


@pytest.mark.parametrize(("format", "largest"), [("fp16", 65504.0), ("bf16", 3.3895313892515355e38)])
def test_the_formats_end_where_they_should(format: str, largest: float) -> None:  # noqa: A002
    assert float(rounded_to(torch.tensor(largest), format)) == largest
    assert math.isinf(float(rounded_to(torch.tensor(3.4e38), format)))
    with pytest.raises(BadInput, match="format must be one of fp16, bf16, got 'fp8'"):
        HalfWeights("fp8")


def test_activations_and_errors_are_of_the_format() -> None:
    value = torch.tensor([1.0 + 2.0**-12, -3.0, 2.0], requires_grad=True)
    made = HalfActivations("fp16")(value)
    assert made.tolist() == [1.0, 0.0, 2.0]
    made.backward(torch.tensor([1 + 2.0**-12, 1.0, 2.0**-26]))
    assert value.grad.tolist() == [1.0, 0.0, 0.0]


def test_an_overflow_leaves_the_step_out_and_halves_the_scale_and_clean_steps_double_it() -> None:
    module = one_weight()
    update = LossScaled(descent(module, 0.0), 2.0**16, clean=3)
    walk = []
    for size in (1.0, 1.0, 1.0, math.inf, 1.0, 1.0, 1.0):
        taken = update.step(size * module.weight.sum())
        walk.append((taken, update.scale))
    assert [taken for taken, _ in walk] == [True, True, True, False, True, True, True]
    assert [scale / 2**16 for _, scale in walk] == [1, 1, 2, 1, 1, 1, 2]


def test_a_scale_is_capped_and_a_static_one_stays() -> None:
    module = one_weight()
    update = LossScaled(descent(module, 0.0), 2.0**24, clean=1)
    update.step(1e-6 * module.weight.sum())
    assert update.scale == 2.0**24
    static = LossScaled(descent(module, 0.0), 8.0, dynamic=False)
    assert not static.step(math.inf * module.weight.sum())
    assert static.scale == 8.0


def test_gradients_are_unscaled_before_they_are_clipped() -> None:
    module = one_weight()
    inner = Gradient(torch.optim.SGD(module.parameters(), 1.0), clip=0.5)
    LossScaled(inner, 1024.0, dynamic=False).step(0.25 * module.weight.sum())
    assert float(module.weight.detach()) == 0.75


def test_a_step_that_is_left_out_does_not_advance_the_schedule() -> None:
    module = one_weight()
    seen: list[float] = []

    def rate(done: float) -> float:
        seen.append(done)
        return 0.0

    class Overflows:
        calls = 0

        def set(self, values: Any) -> None:
            """Nothing."""

        def step(self, loss: Any) -> bool:
            self.calls += 1
            return self.calls not in (2, 3)

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            """Nothing."""

    def loss(models: Any, batch: Any) -> Any:
        return models["m"](batch["x"]).square().mean()

    fit(Line(), {"m": module}, {"l": loss}, Overflows(), {"lr": rate}, epochs=3, batch=4, seed=0)
    assert seen == [0, 1 / 6, 1 / 6, 1 / 6, 2 / 6, 3 / 6]


def test_the_scale_is_part_of_a_checkpoint() -> None:
    module = one_weight()
    update = LossScaled(descent(module, 0.0), 4.0, clean=3)
    update.step(math.inf * module.weight.sum())
    update.step(module.weight.sum())
    again = LossScaled(descent(module, 0.0))
    again.load_state_dict(update.state_dict())
    assert again.state_dict() == update.state_dict()
    assert again.scale == 2.0


@pytest.mark.parametrize("scale", [0.0, 2.0**25])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(BadInput, match="scale must be above 0 and at most"):
        LossScaled(descent(one_weight()), scale)
