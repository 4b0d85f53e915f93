"""tools/make_data.py: one seed, the same inputs; parts that share nothing; files that edgekit reads."""

import importlib.util
import sys
import wave
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from edgekit.core.manifest import Input
from edgekit.runtime.data import load_data

SCRIPT = Path(__file__).parents[2] / "tools" / "make_data.py"
COUNTS = {"calib": 4, "val": 4, "test": 12}


def imported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_data"] = module
    spec.loader.exec_module(module)
    return module


make_data = imported()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Ten pictures of noise."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(1)
    for number in range(10):
        pixels = random.integers(0, 256, (110, 120, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    random = np.random.default_rng(1)
    for number in range(6):
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes((random.normal(0, 3000, 24_000)).astype(np.int16).tobytes())
    return folder


@pytest.fixture(scope="module")
def fonts() -> Path:
    """A font pillow brings itself, as a file."""
    found = sorted(Path("/usr/share/fonts").rglob("*.ttf"))
    if not found:
        pytest.skip("this machine has no fonts below /usr/share/fonts")
    return found[0].parent


def made(name: str, out: Path, folders: list[Path], seed: int = 1) -> dict[str, dict[str, np.ndarray]]:
    make_data.make(name, COUNTS, seed, out, folders)
    parts = {}
    for part in make_data.PARTS:
        with np.load(out / f"{part}.npz") as archive:
            parts[part] = {key: archive[key] for key in archive.files}
    return parts


def same(one, other) -> bool:
    return all(np.array_equal(one[part][key], other[part][key]) for part in one for key in one[part])


@pytest.mark.parametrize("name", ["resnet8", "rock_paper_scissors"])
def test_the_same_seed_makes_the_same_crops_and_another_seed_others(name, photos, tmp_path):
    first = made(name, tmp_path / "a", [photos])
    assert same(first, made(name, tmp_path / "b", [photos]))
    assert not same(first, made(name, tmp_path / "c", [photos], seed=2))
    assert {part: len(arrays["x"]) for part, arrays in first.items()} == COUNTS


def test_the_parts_share_no_photograph():
    sources = list(range(23))
    parts = [set(make_data.share(sources, part)) for part in make_data.PARTS]
    assert set.union(*parts) == set(sources)
    assert sum(map(len, parts)) == len(sources)


def test_the_parts_share_no_text_and_half_of_the_lines_are_upside_down(fonts, tmp_path):
    parts = made("text_direction", tmp_path / "a", [fonts])
    texts = [set(parts[part]["text"]) for part in make_data.PARTS]
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert set(np.concatenate([parts[part]["y"] for part in parts])) == {0, 1}
    assert same(parts, made("text_direction", tmp_path / "b", [fonts]))


def test_text_is_read_through_the_spec_as_the_network_wants_it(fonts, tmp_path):
    made("text_direction", tmp_path, [fonts])
    entry = Input.parse(
        {
            "name": "x",
            "shape": [1, 3, 48, 192],
            "dtype": "float32",
            "layout": "NCHW",
            "preprocess": {"channels": "BGR", "scale": 1 / 255, "mean": [0.5], "std": [0.5]},
        },
        "input",
    )
    data = load_data(tmp_path / "test.npz", (entry,))
    x = data.inputs(0)["x"]
    assert (data.count, x.shape, x.dtype) == (12, (1, 3, 48, 192), np.float32)
    assert data.labels is not None
    assert -1 <= x.min() < x.max() <= 1


def test_notes_are_the_same_for_the_same_seed_and_never_too_loud(speech, tmp_path):
    parts = made("basic_pitch", tmp_path / "a", [speech])
    assert same(parts, made("basic_pitch", tmp_path / "b", [speech]))
    assert parts["test"]["x"].shape == (12, 43_844, 1)
    assert np.abs(parts["test"]["x"]).max() <= 1


def test_a_file_becomes_its_first_bytes_stripped_on_the_left_and_its_last_stripped_on_the_right(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"  hello, this is a text  \n")
    row = make_data.bytes_of(tmp_path / "a.txt")
    assert bytes(row[:24].tolist()) == b"hello, this is a text  \n"
    assert bytes(row[-23:].tolist()) == b"  hello, this is a text"
    assert (row[24:-23] == make_data.PADDING).all()
    (tmp_path / "b").write_bytes(b"tiny")
    assert make_data.bytes_of(tmp_path / "b") is None


def test_files_of_the_parts_differ_and_too_few_are_said(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"file number {number} with some text in it")
    roots = (str(tmp_path),)
    rows = [
        {row.tobytes() for row in make_data.file_bytes(1, part, count, None, [], roots)["x"]}
        for part, count in COUNTS.items()
    ]
    assert len(set.union(*rows)) == sum(map(len, rows)) == sum(COUNTS.values())
    with pytest.raises(make_data.CannotMake, match="needs 100 different files"):
        make_data.file_bytes(1, "test", 100, None, [], roots)


def test_a_tone_is_loudest_in_its_own_channel_of_the_spectrogram():
    front = make_data.TENET
    time = np.arange(16_000) / make_data.RATE
    spectrogram = front.log_spectrogram((0.3 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32))
    assert spectrogram.shape == (98, 104)
    edges = np.linspace(*(1127 * np.log(1 + hertz / 700) for hertz in (125, 7500)), 106)
    wanted = int(np.abs(edges[1:-1] - 1127 * np.log(1 + 1000 / 700)).argmin())
    assert abs(int(spectrogram[5].argmax()) - wanted) <= 1
    steps = make_data.dynamic(spectrogram)
    assert (steps.min(), steps.max()) == (-128, 127)


def test_what_is_made_is_not_made_again_until_something_changes(photos, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(make_data, "fetched", lambda *names: calls.append(names) or [photos])
    options = ["resnet8", "--out", str(tmp_path), "--calib", "2", "--val", "2", "--test", "2"]
    for _ in range(2):
        assert make_data.main(options) == 0
    assert len(calls) == 1
    assert make_data.main([*options, "--seed", "2"]) == 0
    assert len(calls) == 2
    assert capsys.readouterr().out == f"{tmp_path}/resnet8\n" * 3


def test_when_materials_cannot_be_had_nothing_is_printed(tmp_path, monkeypatch, capsys):
    def fails(*names):
        raise make_data.CannotMake("fetch_models.py photos_foolbox failed")

    monkeypatch.setattr(make_data, "fetched", fails)
    assert make_data.main(["resnet8", "--out", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "make_data: resnet8: fetch_models.py photos_foolbox failed"
