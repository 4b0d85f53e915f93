from __future__ import annotations

import dataclasses

import pytest

from edgekit.core.cost import SIDE_WORK, Work, estimate_layers, macs, predict
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure, unknown
from edgekit.core.profile import Costs, OpCosts, Profile, profile

CONV = Work("Conv", "int8", macs=2_000_000, bytes=10_000, calls=3)
DENSE = Work("Gemm", "float32", macs=1_000, bytes=4_000_000, calls=1)


def board(**costs: object) -> Profile:
    known: dict[str, object] = {
        "threads": 1,
        "macs_per_second": {
            "int8": Figure(1e9, "MAC/s", "measured", on="board"),
            "float32": Figure(5e8, "MAC/s", "measured", on="board"),
        },
        "bytes_per_second": Figure(2e9, "B/s", "measured", on="board"),
        "call_overhead_us": Figure(100.0, "us", "measured", on="board"),
    }
    return dataclasses.replace(profile("raspberrypi4b"), cost=Costs(**{**known, **costs}))  # type: ignore[arg-type]


def test_work_costs_the_slower_of_computing_and_moving_plus_each_calls_overhead() -> None:
    predicted = predict(board(), (CONV, DENSE))

    assert predicted.value == pytest.approx((2.0 + 3 * 0.1) + (2.0 + 0.1))
    assert predicted.unit == "ms"


def test_a_prediction_is_an_estimate_for_the_profile_even_from_measured_coefficients() -> None:
    predicted = predict(board(), (CONV,))

    assert (predicted.provenance, predicted.on) == ("estimated", "raspberrypi4b")


@pytest.mark.parametrize(
    "missing",
    [
        {"macs_per_second": {}},
        {"macs_per_second": {"int8": unknown("MAC/s")}},
        {"bytes_per_second": unknown("B/s")},
        {"call_overhead_us": unknown("us")},
    ],
)
def test_a_missing_coefficient_makes_the_prediction_unknown_and_never_smaller(
    missing: dict[str, object],
) -> None:
    assert predict(board(**missing), (CONV,)).value is None


def test_a_coefficient_that_the_work_does_not_need_may_be_unknown() -> None:
    only_moves = Work("Reshape", "binary", macs=0, bytes=2_000_000, calls=0)

    assert predict(board(call_overhead_us=unknown("us")), (only_moves,)).value == pytest.approx(1.0)


def test_no_work_is_unknown_and_not_zero() -> None:
    assert predict(board(), ()).value is None


def test_macs_are_added_up() -> None:
    assert macs((CONV, DENSE)) == 2_001_000


def test_work_survives_the_way_through_json() -> None:
    assert Work.from_json(CONV.to_json()) == CONV


@pytest.mark.parametrize(
    ("key", "value"),
    [("op", ""), ("format", None), ("macs", -1), ("bytes", 1.5), ("calls", True), ("calls", None)],
)
def test_bad_work_is_refused_with_the_place_and_the_key(key: str, value: object) -> None:
    with pytest.raises(BadInput, match=rf"stages\[0\]\.work\[2\]\.{key} must be"):
        Work.from_json({**CONV.to_json(), key: value}, "stages[0].work[2]")


def test_work_that_is_no_table_is_refused() -> None:
    with pytest.raises(BadInput, match="work must be a table"):
        Work.from_json([1, 2])


# --- coefficients of classes of operators -----------------------------------------------------------------------------

OWN = OpCosts(
    Figure(1e9, "MAC/s", "measured", on="board"),
    Figure(1e9, "B/s", "measured", on="board"),
    Figure(10.0, "us", "measured", on="board"),
)


def measured_board(**operators: OpCosts) -> Profile:
    return board(operators={op.replace("_", "."): {"int8": own} for op, own in operators.items()})


def test_a_measured_class_costs_the_sum_of_its_own_macs_bytes_and_calls() -> None:
    work = Work("Conv.depthwise", "int8", macs=1_000_000, bytes=500_000, calls=2)

    assert predict(measured_board(Conv_depthwise=OWN), [work]).value == pytest.approx(1.0 + 0.5 + 0.02)


def test_an_unmeasured_class_costs_what_the_closest_class_above_it_does() -> None:
    slow = dataclasses.replace(OWN, macs_per_second=Figure(1e6, "MAC/s", "measured", on="board"))
    known = measured_board(Conv=slow, Conv_depthwise=OWN)
    odd = Work("Conv.depthwise.odd", "int8", macs=1_000_000, bytes=0, calls=0)

    assert predict(known, [odd]).value == pytest.approx(1.0)
    assert predict(known, [dataclasses.replace(odd, op="Conv.1x1")]).value == pytest.approx(1000.0)


def test_a_class_in_another_format_or_of_another_operator_costs_the_general_roofline() -> None:
    known, plain = measured_board(Conv=OWN), board()

    for work in (dataclasses.replace(CONV, format="float32"), DENSE, Work("Convolve", "int8", 5, 5, 5)):
        assert predict(known, [work]) == predict(plain, [work])


def test_an_old_manifest_without_classes_is_predicted_from_the_operators_own_coefficients() -> None:
    assert predict(measured_board(Conv=OWN), [CONV]).value == pytest.approx(2.0 + 0.01 + 0.03)


def test_a_term_that_a_class_has_not_measured_is_the_general_one() -> None:
    part = dataclasses.replace(OWN, bytes_per_second=unknown("B/s"))
    work = Work("Conv", "int8", macs=0, bytes=2_000_000, calls=0)

    assert predict(measured_board(Conv=part), [work]).value == pytest.approx(1.0)


@pytest.mark.parametrize("op", SIDE_WORK)
def test_side_work_costs_nothing_but_where_it_was_measured(op: str) -> None:
    side = Work(f"{op}.some", "int8", macs=0, bytes=1_000_000, calls=1)

    assert predict(board(), [side, CONV]) == predict(board(), [CONV])
    assert predict(measured_board(**{op: OWN}), [side]).value == pytest.approx(1.01)


def test_layers_add_up_to_the_whole_and_a_fused_one_costs_nothing() -> None:
    @dataclasses.dataclass(frozen=True)
    class Row:
        work: tuple[Work, ...]

    rows = (Row((CONV,)), Row(()), Row((DENSE, CONV)))
    shares = estimate_layers(board(), rows)

    assert shares[1].value == 0.0
    assert [share.provenance for share in shares] == ["estimated"] * 3
    assert sum(share.value or 0.0 for share in shares) == pytest.approx(
        predict(board(), (CONV, DENSE, CONV)).value
    )
