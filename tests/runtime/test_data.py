"""Data: three ways in, the same tensors out, and bad files in one line."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input, Preprocess, Tensor
from edgekit.runtime.data import load_data

GRAY = Input(
    Tensor("x", "float32", (1, 1, 6, 4)), "NCHW", Preprocess(channels="L", scale=1 / 255, mean=(0.5,))
)
CLASSES = ("cat", "dog", "owl")
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 6, 4), np.uint8)
LABELS = np.arange(9) % 3


def idx(path: Path, array: np.ndarray, magic: int, *, zipped: bool = True) -> Path:
    data = struct.pack(f">{array.ndim + 1}I", magic, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    np.savez(tmp_path / "d.npz", x=PIXELS, y=LABELS)
    images = idx(tmp_path / "t-images-idx3-ubyte.gz", PIXELS, 0x803)
    idx(tmp_path / "t-labels-idx1-ubyte.gz", LABELS, 0x801)
    folder = tmp_path / "folder"
    for index, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / CLASSES[label] / f"{index}.png")
    return {"npz": tmp_path / "d.npz", "idx": images, "folder": folder}


def test_npz_idx_and_folder_give_the_same_samples(sources: dict[str, Path]) -> None:
    found = {}
    for kind, path in sources.items():
        data = load_data(path, (GRAY,), CLASSES)
        assert data.count == 9
        assert data.labels is not None
        pairs = [(data.inputs(i)["x"].tobytes(), int(data.labels[i])) for i in range(9)]
        found[kind] = sorted(pairs)
    assert found["npz"] == found["idx"] == found["folder"]


def test_preprocessing_is_scale_then_mean_then_std(sources: dict[str, Path]) -> None:
    tensor = load_data(sources["npz"], (GRAY,), CLASSES).inputs(3)["x"]
    np.testing.assert_allclose(tensor[0, 0], PIXELS[3] / 255 - 0.5, atol=1e-6)
    assert tensor.dtype == np.float32


def test_ready_tensors_are_taken_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((5, 1, 6, 4)).astype(np.float32)
    np.savez(tmp_path / "t.npz", x=x)
    data = load_data(tmp_path / "t.npz", (GRAY,))
    assert data.labels is None
    np.testing.assert_array_equal(data.inputs(4)["x"], x[4:5])


def test_several_inputs_are_read_by_name(tmp_path: Path) -> None:
    other = Input(Tensor("speed", "float32", (1, 2)), "flat", None)
    np.savez(tmp_path / "t.npz", x=PIXELS, speed=np.ones((9, 2), np.float32))
    assert set(load_data(tmp_path / "t.npz", (GRAY, other)).inputs(0)) == {"x", "speed"}
    np.savez(tmp_path / "t.npz", x=PIXELS)
    with pytest.raises(BadInput, match="needs an array 'speed', has x"):
        load_data(tmp_path / "t.npz", (GRAY, other))


def test_one_image_is_one_sample_without_label(sources: dict[str, Path]) -> None:
    file = next(sources["folder"].rglob("*.png"))
    data = load_data(file, (GRAY,), CLASSES)
    assert (data.count, data.labels, data.name(0)) == (1, None, file.name)


def test_a_split_is_seeded_and_takes_every_sample_once(sources: dict[str, Path]) -> None:
    data = load_data(sources["npz"], (GRAY,), CLASSES)
    rest, taken = data.split(1 / 3, seed=4)
    again = data.split(1 / 3, seed=4)[1]
    assert [taken.name(i) for i in range(3)] == [again.name(i) for i in range(3)]
    names = {part.name(i) for part in (rest, taken) for i in range(part.count)}
    assert (rest.count, taken.count, len(names)) == (6, 3, 9)
    assert taken.labels is not None
    assert [int(taken.name(i).split("[")[1][:-1]) % 3 for i in range(3)] == taken.labels.tolist()


@pytest.mark.parametrize(
    ("arrays", "wanted"),
    [
        (
            {"x": np.zeros((5, 1, 7, 4), np.float32)},
            r"must be float32 \(N, 1, 6, 4\).*got float32 \(5, 1, 7, 4\)",
        ),
        ({"x": np.zeros((5, 6, 4), np.float32)}, "uint8 images"),
        ({"x": np.zeros((0, 6, 4), np.uint8)}, "no samples"),
        ({"z": PIXELS}, "needs an array 'x', has z"),
        ({"x": PIXELS, "y": np.zeros(3, np.int64)}, "must be 9 labels"),
        ({"x": PIXELS, "y": np.full(9, 3)}, "label 3 is out of range"),
        ({"x": PIXELS, "y": np.full(9, -1)}, "labels >= 0"),
        ({"x": PIXELS, "y": np.zeros(9)}, "integers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], wanted: str
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(BadInput, match=wanted) as caught:
        load_data(tmp_path / "bad.npz", (GRAY,), CLASSES)
    assert "\n" not in str(caught.value)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadInput, match=r"not an \.npz"):
        load_data(tmp_path / "bad.npz", (GRAY,))


def test_files_that_are_no_data_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("hello")
    (tmp_path / "t.npz").write_text("hello")
    (tmp_path / "t.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    idx(tmp_path / "short", PIXELS, 0x803, zipped=False)
    (tmp_path / "short").write_bytes((tmp_path / "short").read_bytes()[:-1])
    for name in ("t.txt", "t.npz", "t.png", "empty", "short", "missing"):
        with pytest.raises(BadInput, match=name) as caught:
            load_data(tmp_path / name, (GRAY,))
        assert "\n" not in str(caught.value)


def test_sub_folders_that_are_no_class_names_are_refused(sources: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="class names"):
        load_data(sources["folder"], (GRAY,), ("cat", "dog", "fish"))
    data = load_data(sources["folder"], (GRAY,))
    assert data.labels is not None
    assert set(data.labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_images_of_another_size_are_resized_as_the_model_says(tmp_path: Path, resize: str) -> None:
    spec = Input(Tensor("x", "float32", (1, 6, 4, 3)), "NHWC", Preprocess(channels="RGB", resize=resize))
    Image.new("RGB", (40, 20), (200, 100, 50)).save(tmp_path / "a.png")
    tensor = load_data(tmp_path / "a.png", (spec,)).inputs(0)["x"]
    assert tensor.shape == (1, 6, 4, 3)
    np.testing.assert_array_equal(tensor[0, 3, 2], [200, 100, 50])
    np.testing.assert_array_equal(tensor[0, 0, 0], [0, 0, 0] if resize == "pad" else [200, 100, 50])


def test_bgr_is_rgb_turned_round_and_none_refuses_another_size(tmp_path: Path) -> None:
    Image.new("RGB", (4, 6), (200, 100, 50)).save(tmp_path / "a.png")
    spec = Input(Tensor("x", "uint8", (1, 3, 6, 4)), "NCHW", Preprocess(channels="BGR", resize="none"))
    assert load_data(tmp_path / "a.png", (spec,)).inputs(0)["x"][0, :, 0, 0].tolist() == [50, 100, 200]
    Image.new("RGB", (5, 6)).save(tmp_path / "b.png")
    with pytest.raises(BadInput, match="must be 4x6 pixels, got 5x6"):
        load_data(tmp_path / "b.png", (spec,))


@pytest.mark.parametrize("shape", [(2, 1, 3), (5,), ()])
def test_an_input_without_a_batch_of_one_takes_samples_of_its_whole_shape(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    state = Input(Tensor("state", "float32", shape), "flat", None)
    rows = np.random.default_rng(2).standard_normal((4, *shape)).astype(np.float32)
    np.savez(tmp_path / "t.npz", state=rows)
    data = load_data(tmp_path / "t.npz", (state,))
    assert data.count == 4
    np.testing.assert_array_equal(data.inputs(3)["state"], rows[3])
    np.savez(tmp_path / "t.npz", state=np.zeros((4, 9, 9, 9, 9), np.float32))
    wanted = ", ".join(["N", *map(str, shape)])
    with pytest.raises(BadInput, match=rf"float32 \({wanted}\), got"):
        load_data(tmp_path / "t.npz", (state,))


def test_samples_may_come_with_their_batch_of_one(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((5, 1, 1, 6, 4)).astype(np.float32)
    np.savez(tmp_path / "t.npz", x=x)
    np.testing.assert_array_equal(load_data(tmp_path / "t.npz", (GRAY,)).inputs(4)["x"], x[4])


def test_an_input_called_y_is_no_label(tmp_path: Path) -> None:
    y = Input(Tensor("y", "float32", (1, 3)), "flat", None)
    np.savez(tmp_path / "t.npz", x=PIXELS, y=np.ones((9, 3), np.float32))
    data = load_data(tmp_path / "t.npz", (GRAY, y))
    assert data.labels is None
    assert data.inputs(0)["y"].shape == (1, 3)
