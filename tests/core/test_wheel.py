"""What wheels' names say."""

from __future__ import annotations

import pytest

from edgekit.core.errors import BadInput
from edgekit.core.wheel import PYTHONS, newest, older, parse_wheel


@pytest.mark.parametrize(
    ("file", "pythons", "machines"),
    [
        ("rich-13.7.0-py3-none-any.whl", PYTHONS, None),
        ("six-1.0-py2.py3-none-any.whl", PYTHONS, None),
        (
            "numpy-2.2.6-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
            ("3.11",),
            {"aarch64": "2.17"},
        ),
        ("cryptography-42.0-cp39-abi3-manylinux_2_28_x86_64.whl", PYTHONS, {"x86_64": "2.28"}),
        ("thing-1.0-cp312-abi3-manylinux_2_28_x86_64.whl", ("3.12", "3.13", "3.14"), {"x86_64": "2.28"}),
        ("edgekit-0.1-py3-none-linux_armv7l.whl", PYTHONS, {"armv7l": None}),
        ("a-1-cp310-cp310-manylinux_2_28_x86_64.manylinux_2_17_x86_64.whl", ("3.10",), {"x86_64": "2.17"}),
        ("ort-1.2+jp6-1-cp310-cp310-linux_aarch64.whl", ("3.10",), {"aarch64": None}),
    ],
)
def test_a_wheels_name_says_where_it_runs(
    file: str, pythons: tuple[str, ...], machines: dict[str, str | None] | None
) -> None:
    wheel = parse_wheel(file)
    assert (wheel.pythons, wheel.machines) == (pythons, machines)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("numpy.whl", "must be called as a wheel"),
        ("numpy-2.0.tar.gz", "must be called as a wheel"),
        ("numpy-2.0-cp36-cp36m-linux_x86_64.whl", "runs on no Python"),
        ("numpy-2.0-cp311-cp311-win_amd64.whl", "must be for Linux with glibc"),
        ("numpy-2.0-cp311-cp311-musllinux_1_2_x86_64.whl", "must be for Linux with glibc"),
    ],
)
def test_what_no_board_runs_is_refused_by_name(file: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_wheel(file)


def test_versions_compare_as_numbers() -> None:
    assert older("2.9", "2.17")
    assert not older("2.36", "2.36")
    assert newest(["2.9", None, "2.17"]) == "2.17"
    assert newest([None]) is None
