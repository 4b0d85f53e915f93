"""Read inputs from an .npz, a folder of images or an IDX pair. Decodes one sample at a time; never guesses labels."""

from __future__ import annotations

import functools
import gzip
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit.core.errors import BadInput, one_line
from edgekit.core.manifest import Input
from edgekit.runtime.preprocess import image_size, open_image, preprocess

Array = NDArray[Any]
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
_HELD_BYTES = 256 * 2**20
_IDX_UINT8 = 0x800  # the magic number of unsigned bytes; the rank is added


@dataclass(frozen=True)
class Data:
    """Samples, read when asked for. labels: int64 of shape (count,), or None. source: where they came from, to report.

    sample: index -> the model's inputs by name, each of its full shape (batch 1). name_of: index -> a name for people.
    """

    source: str
    indices: Sequence[int]
    labels: NDArray[np.int64] | None
    sample: Callable[[int], dict[str, Array]]
    name_of: Callable[[int], str]

    @property
    def count(self) -> int:
        """How many samples."""
        return len(self.indices)

    def inputs(self, index: int) -> dict[str, Array]:
        """The model's inputs for one sample. Raises BadInput where its file cannot be used."""
        return self.sample(self.indices[index])

    def name(self, index: int) -> str:
        """What to call the sample."""
        return self.name_of(self.indices[index])

    def subset(self, indices: Sequence[int]) -> Data:
        """These samples only, in this order."""
        chosen = [self.indices[index] for index in indices]
        labels = None if self.labels is None else self.labels[np.asarray(indices, np.int64)]
        return replace(self, indices=chosen, labels=labels)

    def held(self, most_bytes: int = _HELD_BYTES) -> Data:
        """The same, every sample read and prepared at most once: for data that is run again and again.

        As it is where all samples together would take more than `most_bytes`.
        """
        if not self.count or self.count * sum(array.nbytes for array in self.inputs(0).values()) > most_bytes:
            return self
        return replace(self, sample=functools.lru_cache(maxsize=None)(self.sample))

    def split(self, fraction: float, seed: int) -> tuple[Data, Data]:
        """(the rest, a seeded `fraction` of the samples), both in their old order. Raises BadInput below 2 samples."""
        if self.count < 2:
            raise BadInput(
                f"{self.source}: at least 2 samples are needed to set some aside, got {self.count}"
            )
        taken = max(1, min(self.count - 1, round(fraction * self.count)))
        order = np.random.default_rng(seed).permutation(self.count)
        return self.subset(sorted(order[taken:].tolist())), self.subset(sorted(order[:taken].tolist()))


def load_data(path: Path, inputs: tuple[Input, ...], labels: tuple[str, ...] | None = None) -> Data:
    """Open `path` for a model with these inputs and class names. Shapes are checked at once.

    .npz: `x` (or an array per input, by name): uint8 images (N, H, W[, 3]) where the input has preprocessing, else
    tensors (N, *shape), which may leave out a first axis of 1, the batch; `y`: labels, optional, unless an input is
    called so. Folder: images; sub-folder = label. One image. IDX: the images file, gzipped or not, with its labels file
    beside it. Raises BadInput.
    """
    if path.is_dir():
        data = _folder(path, _single(path, inputs), labels)
    elif not path.exists():
        raise BadInput(
            f"{path}: no such file or folder (data: an .npz, a folder of images, or an IDX images file)"
        )
    elif path.suffix == ".npz":
        data = _npz(path, inputs)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        data = _images([path], path.parent, _single(path, inputs), None)
    else:
        data = _idx(path, _single(path, inputs))
    if data.count == 0:
        raise BadInput(f"{path}: holds no samples")
    if data.labels is not None and labels is not None and int(data.labels.max()) >= len(labels):
        raise BadInput(
            f"{path}: label {int(data.labels.max())} is out of range; the model has {len(labels)} classes"
        )
    data.inputs(0)
    return data


def _single(path: Path | str, inputs: tuple[Input, ...]) -> Input:
    if len(inputs) != 1:
        names = ", ".join(entry.tensor.name for entry in inputs)
        raise BadInput(f"{path}: the model has several inputs ({names}): give an .npz with an array for each")
    return inputs[0]


def _npz(path: Path, inputs: tuple[Input, ...]) -> Data:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise BadInput(f"{path}: not an .npz file of plain arrays") from err
    found = {}
    for position, entry in enumerate(inputs):
        key = (
            entry.tensor.name if entry.tensor.name in arrays else "x" if position == 0 else entry.tensor.name
        )
        if key not in arrays:
            raise BadInput(f"{path}: needs an array {key!r}, has {', '.join(sorted(arrays)) or 'none'}")
        found[entry.tensor.name] = _reader(arrays[key], entry, f"{path}: {key}")
    counts = {name: count for name, (count, _) in found.items()}
    count = next(iter(counts.values()))
    if len(set(counts.values())) != 1:
        raise BadInput(f"{path}: arrays must have the same number of samples, got {counts}")
    labels = _labels(arrays["y"], count, f"{path}: y") if "y" in arrays and "y" not in found else None

    def sample(index: int) -> dict[str, Array]:
        return {name: read(index) for name, (_, read) in found.items()}

    return Data(str(path), range(count), labels, sample, lambda index: f"{path.name}[{index}]")


def _reader(array: Array, entry: Input, where: str) -> tuple[int, Callable[[int], Array]]:
    """How many samples an array holds, and how one becomes the input tensor."""
    shape = entry.tensor.shape
    single = shape[:1] == (1,)  # the batch: samples may come without it
    whole = array.ndim > 0 and array.shape[1:] == shape
    if (whole or (single and array.ndim == len(shape) and array.shape[1:] == shape[1:])) and (
        array.dtype.kind in "fiub"
    ):
        if not (array.dtype == np.uint8 and entry.preprocess is not None and entry.tensor.dtype != "uint8"):
            dtype = np.dtype(entry.tensor.dtype)
            if dtype.kind in "iu" and array.dtype.kind == "f" and (array != np.rint(array)).any():
                raise BadInput(
                    f"{where} must be {dtype} codes, as the input takes them, got {array.dtype} with fractions"
                )
            return len(array), lambda index: np.array(array[index], dtype, order="C").reshape(shape)
        if whole:
            array = array[:, 0]
        if entry.layout == "NCHW":
            array = np.moveaxis(array, 1, -1)
        array = array[..., 0] if array.shape[-1] == 1 else array
        return len(array), lambda index: preprocess(array[index], entry)
    are_images = array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (1, 3))
    if entry.preprocess is not None and array.dtype == np.uint8 and are_images:
        pixels = array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array
        return len(array), lambda index: preprocess(pixels[index], entry)
    wanted = f"{entry.tensor.dtype} ({', '.join(['N', *map(str, shape[1:] if single else shape)])})"
    if entry.preprocess is not None:
        wanted += " or uint8 images (N, height, width[, 3])"
    raise BadInput(f"{where} must be {wanted}, got {array.dtype} {array.shape}")


def sample_of(arrays: Mapping[str, Array], inputs: tuple[Input, ...], where: str) -> dict[str, Array]:
    """One sample given as arrays by input name (`x` does for the first): tensors or a uint8 image, as in an .npz.

    Shapes are those of one sample: with or without a first axis of 1, the batch. Raises BadInput.
    """
    sample = {}
    for position, entry in enumerate(inputs):
        name = entry.tensor.name
        array = arrays.get(name, arrays.get("x") if position == 0 else None)
        if array is None:
            raise BadInput(f"{where}: needs an array {name!r}, has {', '.join(sorted(arrays)) or 'none'}")
        sample[name] = _reader(array[None], entry, f"{where}: {name}")[1](0)
    return sample


def image_sample(
    image: Image.Image | NDArray[np.uint8], inputs: tuple[Input, ...], where: str
) -> dict[str, Array]:
    """An image for a model whose one input takes images, see `preprocess`. Raises BadInput."""
    entry = _single(where, inputs)
    return {entry.tensor.name: preprocess(image, entry)}


def _labels(array: Array, count: int, where: str) -> NDArray[np.int64]:
    if array.shape != (count,) or array.dtype.kind not in "iu" or (count and int(array.min()) < 0):
        raise BadInput(f"{where} must be {count} labels >= 0 (integers), got {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _idx(path: Path, entry: Input) -> Data:
    images = read_idx(path, 3)
    image_size(entry)
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = None
    if beside != path and beside.exists():
        labels = _labels(read_idx(beside, 1), len(images), str(beside))
    count, read = _reader(images, entry, str(path))
    name = entry.tensor.name
    return Data(
        str(path),
        range(count),
        labels,
        lambda index: {name: read(index)},
        lambda index: f"{path.name}[{index}]",
    )


def read_idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or not, of this rank (images 3, labels 1). Raises BadInput."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as err:
        raise BadInput(f"{path}: cannot be read: {one_line(err)}") from err
    header = 4 + 4 * rank
    if len(raw) < header or struct.unpack(">I", raw[:4])[0] != _IDX_UINT8 + rank:
        raise BadInput(
            f"{path}: not data edgekit reads (an .npz, a folder of images, or an IDX file of {rank} dimensions)"
        )
    shape = struct.unpack(f">{rank}I", raw[4:header])
    if len(raw) - header != int(np.prod(shape, dtype=object)):
        raise BadInput(
            f"{path}: an IDX file of shape {shape} must hold {np.prod(shape, dtype=object)} bytes of data"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _folder(path: Path, entry: Input, labels: tuple[str, ...] | None) -> Data:
    image_size(entry)
    found = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    files = sorted(
        found, key=lambda file: (file.name, file)
    )  # by name: a stream sorted by label is no stream
    if not files:
        raise BadInput(f"{path}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    groups = [file.relative_to(path).parts[0] if file.parent != path else None for file in files]
    values = None
    if None not in groups:
        index = label_index(sorted({group for group in groups if group is not None}), labels, str(path))
        values = np.array([index[group] for group in groups if group is not None], np.int64)
    return _images(files, path, entry, values)


def _images(files: list[Path], folder: Path, entry: Input, labels: NDArray[np.int64] | None) -> Data:
    name = entry.tensor.name

    def sample(number: int) -> dict[str, Array]:
        try:
            return {name: preprocess(open_image(files[number]), entry)}
        except BadInput as err:
            raise BadInput(f"{files[number]}: {err}") from err

    return Data(
        str(folder), range(len(files)), labels, sample, lambda number: str(files[number].relative_to(folder))
    )


def label_index(folders: list[str], labels: tuple[str, ...] | None, where: str) -> dict[str, int]:
    """Sub-folder name -> label: class names where the model has them, else numbers, else alphabetical order.

    Raises BadInput where some folders are class names and others are not.
    """
    if labels is not None and set(folders) <= set(labels):
        return {folder: labels.index(folder) for folder in folders}
    if all(folder.isdecimal() for folder in folders):
        return {folder: int(folder) for folder in folders}
    if labels is None:
        return {folder: index for index, folder in enumerate(folders)}
    strangers = ", ".join(sorted(set(folders) - set(labels))[:5])
    raise BadInput(
        f"{where}: sub-folders must be class names ({', '.join(labels)}) or numbers, got {strangers}"
    )
