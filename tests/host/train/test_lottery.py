"""Lottery tickets: what goes in each round, what is rewound, and what the control is."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.core.errors import BadInput

torch = pytest.importorskip("torch", reason="the extra train (PyTorch) is not installed")

from edgekit.host.train.fit import Moment  # noqa: E402
from edgekit.host.train.lottery import draw_tickets, pruned, weights_of  # noqa: E402

NOW = Moment(0, 1, 1, {}, {})


def network() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(20, 10), torch.nn.ReLU(), torch.nn.Linear(10, 4))


class Recorded:
    """A training that moves every weight, and keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []
        self.said: list[str] = []

    def __call__(self, module: Any, hook: Any, what: str) -> list[float]:
        self.given.append({name: value.detach().clone() for name, value in module.state_dict().items()})
        self.said.append(what)
        with torch.no_grad():
            for each in module.parameters():
                each.add_(torch.randn(each.shape, generator=torch.Generator().manual_seed(len(self.said))))
        hook.after_step(NOW)
        return [0.5, 0.6]


def drawn(**more: Any) -> tuple[Any, Any, Recorded]:
    torch.manual_seed(0)
    fit = Recorded()
    module, rounds = draw_tickets(network, fit, **{"rounds": 2, "rate": 0.5, **more})
    return module, rounds, fit


def test_each_round_keeps_its_share_of_every_layer_and_half_as_much_goes_of_the_last() -> None:
    module, rounds, _ = drawn()
    left = [int((weight != 0).sum()) for weight in weights_of(module).values()]
    assert left == [50, 22]  # 200 / 4; 40, less a quarter, less round(30 / 4)
    whole = 240
    assert [each.density for each in rounds] == [1.0, 130 / whole, (50 + left[1]) / whole]
    assert rounds[0].ticket == rounds[0].control == (0.5, 0.6)


def test_what_is_left_starts_where_the_network_started_biases_too() -> None:
    """The trap: the snapshot is taken before the first step, and holds biases."""
    _, _, fit = drawn()
    first = fit.given[0]
    for number in (2, 4):  # the tickets of rounds 1 and 2; controls are between them
        for name, value in fit.given[number].items():
            kept = value != 0 if name.endswith("weight") else torch.ones_like(value, dtype=torch.bool)
            assert torch.equal(value[kept], first[name][kept])
            assert kept.any()


def test_the_control_has_the_same_masks_on_other_weights() -> None:
    _, _, fit = drawn()
    assert fit.said == [
        "round 0",
        "round 0, drawn anew",
        "round 1",
        "round 1, drawn anew",
        "round 2",
        "round 2, drawn anew",
    ]
    for ticket, control in ((2, 3), (4, 5)):
        for name in ("0.weight", "2.weight"):
            assert torch.equal(fit.given[ticket][name] != 0, fit.given[control][name] != 0)
            kept = fit.given[ticket][name] != 0
            assert not torch.equal(fit.given[ticket][name][kept], fit.given[control][name][kept])


def test_exactly_so_many_go_though_magnitudes_are_equal() -> None:
    """The trap: a cut-off with <= takes one weight more, and all that are equal to it."""
    weight = torch.ones(10)
    mask = pruned(weight, torch.ones(10), 0.3)
    assert mask.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert pruned(weight, mask, 0.5).sum() == 7 - round(3.5)


def test_what_is_gone_is_not_counted_again() -> None:
    weight = torch.tensor([0.0, 0.0, 3.0, 1.0, 2.0, 4.0])
    mask = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert pruned(weight, mask, 0.5).tolist() == [0, 0, 1, 0, 0, 1]


def test_masks_hold_through_training() -> None:
    module, _, _ = drawn(rate=0.9, last_rate=0.0)
    first, last = weights_of(module).values()
    assert int((first != 0).sum()) == 2
    assert int((last != 0).sum()) == 40


@pytest.mark.parametrize(
    "wrong",
    [{"rounds": 0, "rate": 0.5}, {"rounds": 1, "rate": 1.0}, {"rounds": 1, "rate": 0.5, "last_rate": 1.0}],
)
def test_rates_that_leave_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="at least 1 round and rates in"):
        drawn(**wrong)
