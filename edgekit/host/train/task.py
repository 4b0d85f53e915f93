"""What is trained on what: data with its input, a network by name or an ONNX model. Reads files; trains nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Input, Preprocess, Tensor
from edgekit.host.graph import Graph
from edgekit.host.load import load
from edgekit.host.train.imported import Imported
from edgekit.host.train.networks import BINARY_NETWORKS, NETWORKS, build
from edgekit.host.train.samples import Augment
from edgekit.host.train.supervised import Labelled, labelled
from edgekit.runtime.data import IMAGE_SUFFIXES, load_data, read_idx

SCALE = 1.0 / 255.0
_MEASURED = 2000  # images that mean and deviation are taken of
_HELD_OUT = 0.1


@dataclass(frozen=True)
class Task:
    """samples: to train on; held_out: to judge by. graph: of a model that was given, None: a network by name."""

    image: Input
    labels: tuple[str, ...] | None
    samples: Labelled
    held_out: Labelled
    make: Callable[[], nn.Module]
    graph: Graph | None


def read_task(
    model: str,
    data: Path,
    evaluation: Path | None,
    augment: Augment,
    *,
    like: Graph | None = None,
    limit: int | None = None,
    seed: int = 0,
    reads: str = "standard",
    batch_norm: bool = True,
) -> Task:
    """The task for a network's name or an ONNX file.

    A network by name reads images as the data has them, or as `like` (a teacher) does. Without evaluation data a seeded
    tenth of the data is held out. limit: so many samples, the first ones, are trained on. reads: how a network by name
    reads pixels, as in recipes; batch_norm: whether it has them. Raises BadInput.
    """
    graph = load(Path(model)).graph if is_file(model) else None
    seen_by = graph or like
    if seen_by is not None:
        image, labels = _only_input(seen_by), seen_by.labels
    else:
        image, labels = image_input(data, reads), None
    everything = load_data(data, (image,), labels)
    if everything.labels is None:
        raise BadInput(f"{data}: training needs labels, and there are none")
    if limit is not None:
        everything = everything.subset(range(min(limit, everything.count)))
    if evaluation is None:
        train, judged = everything.split(_HELD_OUT, seed)
    else:
        train, judged = everything, load_data(evaluation, (image,), labels)
    samples, held_out = labelled(train, image, augment), labelled(judged, image)
    if labels is None and data.is_dir():
        labels = tuple(sorted(each.name for each in data.iterdir() if each.is_dir()))
    classes = len(labels) if labels else max(samples.classes, held_out.classes)
    make = (
        (lambda: build_for(model, image, classes, batch_norm=batch_norm))
        if graph is None
        else (lambda: Imported(graph))
    )
    return Task(image, labels, samples, held_out, make, graph)


def is_file(model: str) -> bool:
    """Whether this is a model's file and not a network's name. Raises BadInput where it is neither."""
    if model in NETWORKS or model in BINARY_NETWORKS:
        return False
    if model.endswith(".onnx") or Path(model).exists():
        return True
    known = ", ".join((*NETWORKS, *BINARY_NETWORKS))
    raise BadInput(f"--model must be an ONNX file or one of {known}, got {model!r}")


def build_for(name: str, image: Input, classes: int, *, batch_norm: bool = True) -> nn.Module:
    """A network of ours for images of this input. Raises BadInput where it does not take such."""
    kind = {**NETWORKS, **BINARY_NETWORKS}[name]
    _, channels, height, width = image.tensor.shape
    config = kind.config()
    fields = {entry.name for entry in dataclasses.fields(config)}
    wanted: dict[str, Any] = {"channels": channels, "classes": classes}
    if "side" in fields and height != width:
        raise BadInput(f"network {name} wants square images, got {height}x{width}")
    wanted["side"] = height
    if not batch_norm:
        if "batch_norm" not in fields:
            raise BadInput(f"network {name} has batch norms, and the recipe wants none: take small")
        wanted["batch_norm"] = False
    return build(name, replace(config, **{key: value for key, value in wanted.items() if key in fields}))


def _only_input(graph: Graph) -> Input:
    if len(graph.inputs) != 1:
        raise BadInput(f"training wants a model with one input, got {len(graph.inputs)}")
    return graph.inputs[0]


def image_input(data: Path, reads: str = "standard") -> Input:
    """NCHW, one image as the data has them: its size and channels; reads: what becomes of pixels, as in recipes."""
    pixels = _some_pixels(data)
    channels = pixels.shape[3]
    shape, colours = (1, channels, pixels.shape[1], pixels.shape[2]), "L" if channels == 1 else "RGB"
    if reads == "pixels":
        return Input(Tensor("image", "uint8", shape), "NCHW", Preprocess(colours))
    if reads == "centred":
        how = Preprocess(colours, "stretch", "bilinear", 1 / 127.5, (1.0,), (1.0,))
        return Input(Tensor("image", "float32", shape), "NCHW", how)
    mean, std = (
        tuple(round(float(each) * SCALE, 6) for each in of(pixels.reshape(-1, channels), 0))
        for of in (np.mean, np.std)
    )
    how = Preprocess(
        colours,
        "stretch",
        "bilinear",
        SCALE,
        mean,
        tuple(max(each, SCALE) for each in std),
    )
    return Input(Tensor("image", "float32", shape), "NCHW", how)


def _some_pixels(data: Path) -> NDArray[np.uint8]:
    """uint8 [N, H, W, C] of the first images, grey or RGB. Raises BadInput where the data has none."""
    if data.is_dir():
        files = sorted(path for path in data.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise BadInput(f"{data}: holds no images")
        return _opened(files[:: max(1, len(files) // _MEASURED)])
    if data.suffix == ".npz":
        try:
            with np.load(data, allow_pickle=False) as held:
                pixels = held["x"]
        except (OSError, ValueError, KeyError, EOFError) as err:
            raise BadInput(f"{data}: must be an .npz with images x and labels y") from err
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
            raise BadInput(
                f"{data}: a network by name wants uint8 images [N, H, W] or [N, H, W, 3], got {pixels.dtype} "
                f"{list(pixels.shape)}: give a model with --model"
            )
    else:
        pixels = read_idx(data, 3)
    pixels = pixels[:: max(1, len(pixels) // _MEASURED)]
    return pixels[..., None] if pixels.ndim == 3 else pixels


def _opened(files: list[Path]) -> NDArray[np.uint8]:
    """Images of one size: the first one's."""
    with Image.open(files[0]) as first:
        size, mode = first.size, "L" if first.mode in ("1", "L", "I;16") else "RGB"
    found = []
    for path in files:
        try:
            with Image.open(path) as image:
                found.append(np.asarray(image.convert(mode).resize(size)))
        except OSError as err:
            raise BadInput(f"{path}: is no image that can be read") from err
    pixels = np.stack(found)
    return pixels[..., None] if pixels.ndim == 3 else pixels
