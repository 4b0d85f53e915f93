from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.profile import (
    Profile,
    known_profiles,
    parse_profile,
    profile,
    profile_from,
    read_profile,
)
from edgekit.core.resources import device_profile_files

SMALL = """
format = 1
name = "myboard"

[cpu]
model = "Cortex-A35"
cores = 4
isa = "armv8-a"

[[backends]]
name = "onnxruntime"
max_opset = 23
max_ir = 11
fast_formats = ["float32", "int8"]
int8_activation = "int8"
"""
SHIPPED = tuple(device_profile_files())


def changed(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new)


def test_a_small_profile_parses_and_what_it_leaves_out_is_unknown() -> None:
    board = parse_profile(SMALL, "myboard.toml")

    assert (board.name, board.title, board.cpu.cores) == ("myboard", "myboard", 4)
    assert board.cost.threads == 4
    assert board.power.sensor == "none"
    assert board.fpga is None
    assert all(figure.value is None for _, figure in board.figures())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            changed("cores = 4", 'cores = "four"'),
            'profile.toml: cpu.cores must be a positive integer, got "four"',
        ),
        (changed("cores = 4", "cores = 0"), "profile.toml: cpu.cores must be a positive integer, got 0"),
        (
            changed("cores = 4", "cores = true"),
            "profile.toml: cpu.cores must be a positive integer, got true",
        ),
        (changed("cores = 4", ""), "profile.toml: cpu.cores must be a positive integer, got nothing"),
        (changed('"myboard"', '"../etc"'), "profile.toml: name must be a name (letters, digits, "),
        (changed("[cpu]", "[cpus]"), "profile.toml: cpu must be a table, got nothing"),
        (
            changed('"onnxruntime"', '"onnx"'),
            (
                "profile.toml: backends[0].name must be one of onnxruntime, litert, tflite-runtime, native, overlay, "
                "overlay-sim, null, "
                'got "onnx"'
            ),
        ),
        (
            changed('int8_activation = "int8"', 'int8_activation = "int4"'),
            'profile.toml: backends[0].int8_activation must be one of uint8, int8, got "int4"',
        ),
        (
            changed('["float32", "int8"]', '["fp32"]'),
            (
                "profile.toml: backends[0].fast_formats must be a list of float32, float16, int8, binary, "
                'got "fp32"'
            ),
        ),
        (
            SMALL + '[[backends]]\nname = "onnxruntime"\n',
            'profile.toml: backends[1].name must be a backend not listed before, got "onnxruntime"',
        ),
        (
            "backends = []\n" + SMALL.split("[[backends]]", maxsplit=1)[0],
            "profile.toml: backends must be a list of at least one table, got []",
        ),
        (
            changed("cores = 4", 'cores = 4\nfeatures = "neon"'),
            'profile.toml: cpu.features must be a list of texts, got "neon"',
        ),
        (
            changed("cores = 4", 'cores = 4\nfeatures = ["neon", 2]'),
            'profile.toml: cpu.features must be a list of texts, got ["neon", 2]',
        ),
        (changed('isa = "armv8-a"', 'isa = " "'), 'profile.toml: cpu.isa must be a text, got " "'),
        ("a = " + "[" * 5000, "profile.toml: must be a TOML file: "),
        ("format = ", "profile.toml: must be a TOML file: "),
    ],
)
def test_a_bad_value_is_named_with_file_key_what_was_wanted_and_what_came(text: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_profile(text, "profile.toml")

    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ('"fast"', 'p.toml: memory.ram_mb must be a table, got "fast"'),
        ("512", "p.toml: memory.ram_mb must be a table, got 512"),
        ('{ value = 512, unit = "GB" }', 'p.toml: memory.ram_mb.unit must be "MB", got "GB"'),
        (
            '{ value = "512", unit = "MB" }',
            "p.toml: memory.ram_mb.value must be a positive number, or left out",
        ),
        ('{ value = 0, unit = "MB" }', "p.toml: memory.ram_mb.value must be a positive number, or left out"),
        (
            '{ value = nan, unit = "MB" }',
            "p.toml: memory.ram_mb.value must be a positive number, or left out",
        ),
        (
            '{ value = inf, unit = "MB" }',
            "p.toml: memory.ram_mb.value must be a positive number, or left out",
        ),
        (
            '{ value = 512, unit = "MB", on = "board" }',
            "p.toml: memory.ram_mb.provenance must be one of measured, simulated, estimated, published",
        ),
        (
            '{ value = 512, unit = "MB", provenance = "published" }',
            "p.toml: memory.ram_mb.on must be the machine, profile or source the value comes from, got nothing",
        ),
    ],
)
def test_a_figure_without_unit_provenance_or_source_is_refused(figure: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_profile(SMALL + f"[memory]\nram_mb = {figure}\n", "p.toml")

    assert str(caught.value).startswith(message)


def test_a_figure_keeps_its_source_and_a_toml_date_becomes_text() -> None:
    text = SMALL + (
        "[memory]\n"
        'ram_mb = { value = 512, unit = "MB", provenance = "measured", on = "my desk", when = 2026-03-01 }\n'
    )

    figure = parse_profile(text, "p.toml").memory.ram_mb

    assert (figure.value, figure.provenance, figure.on, figure.when) == (
        512,
        "measured",
        "my desk",
        "2026-03-01",
    )


def test_unknown_keys_are_kept_with_their_path_and_change_nothing_else() -> None:
    text = "colour = 'green'\n" + changed("cores = 4", "cores = 4\nsockets = 2")

    board = parse_profile(text, "p.toml")

    assert board.extra == {"colour": "green", "cpu.sockets": 2}
    assert board.cpu == parse_profile(SMALL, "p.toml").cpu


def test_a_newer_format_is_refused_by_its_number() -> None:
    with pytest.raises(BadInput, match=r"p\.toml: profile format 2 is newer than this edgekit reads \(1\)"):
        parse_profile(changed("format = 1", "format = 2"), "p.toml")


def test_a_format_that_runs_fast_and_has_no_cost_is_listed_as_unknown() -> None:
    rates = parse_profile(SMALL, "p.toml").cost.macs_per_second

    assert {fmt: figure.value for fmt, figure in rates.items()} == {"float32": None, "int8": None}


def test_an_unknown_name_lists_every_known_one_and_host() -> None:
    with pytest.raises(BadInput) as caught:
        profile("raspberrypi99")

    for name in known_profiles():
        assert name in str(caught.value)
    assert known_profiles()[-1] == "host"


def test_an_unknown_backend_lists_the_ones_the_board_has() -> None:
    board = parse_profile(SMALL, "p.toml")

    assert board.backend("onnxruntime").max_opset == 23
    with pytest.raises(BadInput, match="unknown backend of myboard 'litert'; known: onnxruntime"):
        board.backend("litert")


def test_a_path_is_read_as_a_file_and_a_missing_one_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "myboard.toml"
    path.write_text(SMALL)

    assert profile(str(path)).name == "myboard"
    with pytest.raises(BadInput, match="must be an existing TOML file"):
        profile(str(tmp_path / "other.toml"))
    with pytest.raises(BadInput, match="must be an existing TOML file"):
        read_profile(str(tmp_path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="must be a TOML file"):
        read_profile(str(path))


def test_a_file_the_disk_does_not_give_is_the_worlds_fault(tmp_path: Path) -> None:
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)

    with pytest.raises(WorldFailed):
        read_profile(str(loop))


def test_the_boards_of_the_first_version_ship() -> None:
    assert set(SHIPPED) == {
        "raspberrypi3b",
        "raspberrypizero2w",
        "raspberrypi4b",
        "raspberrypi5",
        "jetson-nano",
        "jetson-xavier-nx",
        "jetson-orin-nano",
        "pynq-z1",
        "pynq-z2",
    }


@pytest.fixture(params=SHIPPED)
def shipped(request: pytest.FixtureRequest) -> Profile:
    return profile(request.param)


def test_a_shipped_profile_is_called_like_its_file_and_has_no_unknown_key(
    request: pytest.FixtureRequest, shipped: Profile
) -> None:
    assert shipped.name == request.node.callspec.params["shipped"]
    assert not shipped.extra


def test_no_figure_of_a_shipped_profile_claims_to_be_measured(shipped: Profile) -> None:
    for path, figure in shipped.figures():
        assert figure.provenance in {None, "published", "estimated"}, path
        assert (figure.value is None) == (figure.provenance is None), path
        assert figure.value is None or figure.on, path


def test_a_shipped_profile_survives_the_way_through_json(shipped: Profile) -> None:
    assert profile_from(shipped.to_json(), "json") == shipped


def test_arm_boards_want_int8_activations_and_python_3_10_boards_the_older_ceilings(shipped: Profile) -> None:
    for backend in shipped.backends:
        assert backend.int8_activation in {None, "int8"}
        if backend.name == "onnxruntime":
            old = "3.10" in shipped.python
            assert (backend.max_opset, backend.max_ir) == ((23, 11) if old else (28, 14))
            assert backend.providers[-1] == "CPUExecutionProvider"


def test_an_estimated_rate_follows_from_what_its_source_says(shipped: Profile) -> None:
    for path, figure in shipped.figures():
        if figure.provenance != "estimated" or "macs_per_second" not in path:
            continue
        stated = re.match(
            r"(\d+) cores x ([\d.]+) GHz x ([\d.]+) MAC/cycle .* x ([\d.]+) efficiency", figure.on or ""
        )
        assert stated, path
        cores, ghz, macs, efficiency = (float(group) for group in stated.groups())
        assert (cores, ghz) == (shipped.cpu.cores, shipped.cpu.clock_ghz.value)
        assert figure.value == pytest.approx(cores * ghz * macs * efficiency * 1e9, rel=0.005)


def test_no_format_is_called_fast_whose_rate_is_below_that_of_float32(shipped: Profile) -> None:
    rates = shipped.cost.macs_per_second
    base = rates["float32"].value
    for backend in shipped.backends:
        for fmt in backend.fast_formats:
            rate = rates[fmt].value
            assert rate is None or base is None or rate >= base
