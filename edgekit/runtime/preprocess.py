"""Turn an image into a model's input tensor: the one function that host and board both run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgekit.core.errors import BadInput, one_line
from edgekit.core.manifest import Input, Preprocess

_RESAMPLERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
MAX_PIXELS = 25_000_000  # of an image that somebody sent
SENT_FORMATS = ("PNG", "JPEG")  # by Pillow's names
# what Pillow raises for one that is none
_NO_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def open_image(path: Path) -> Image.Image:
    """Decode an image file. Raises BadInput for anything that is not one; the caller says which file it was."""
    try:
        image = Image.open(path)
        image.load()
    except _NO_IMAGE as err:
        raise BadInput(f"not an image that can be read: {one_line(err)}") from err
    return image


def sent_image(data: bytes) -> Image.Image:
    """Decode an image that came from somewhere else: PNG or JPEG, of at most MAX_PIXELS. Raises BadInput.

    No other decoder of Pillow's is tried, and a larger image is refused before it is decoded.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=SENT_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadInput(f"an image may have {MAX_PIXELS} pixels, got {image.width}x{image.height}")
        image.load()
    except UnidentifiedImageError as err:  # its text shows where the bytes lie in memory
        raise BadInput(f"not an image that can be read: no {' or '.join(SENT_FORMATS)}") from err
    except _NO_IMAGE as err:
        raise BadInput(f"not an image that can be read: {one_line(err)}") from err
    return image


def image_size(spec: Input) -> tuple[int, int]:
    """(width, height) in pixels that an image input wants. Raises BadInput where it is no image input."""
    shape = spec.tensor.shape
    if spec.preprocess is None or len(shape) != 4 or spec.layout not in ("NCHW", "NHWC"):
        raise BadInput(
            f"input {spec.tensor.name!r} takes tensors of shape {list(shape)}, not images: give an .npz"
        )
    height, width = (shape[2], shape[3]) if spec.layout == "NCHW" else (shape[1], shape[2])
    return width, height


def preprocess(image: Image.Image | NDArray[np.uint8], spec: Input) -> NDArray[Any]:
    """Image -> tensor of `spec.tensor.shape` (batch 1) and dtype: channels, resize, (pixel * scale - mean) / std.

    image: a decoded image, or uint8 pixels of shape (height, width) or (height, width, channels in RGB order).
    Raises BadInput where the sizes cannot be reconciled.
    """
    size = image_size(spec)
    how = spec.preprocess or Preprocess()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image = image.convert("L" if how.channels == "L" else "RGB")
    image = _resize(image, size, how)
    pixels = np.asarray(image)
    if how.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    dtype = np.dtype(spec.tensor.dtype)
    if dtype != np.uint8:
        mean, std = np.asarray(how.mean, np.float32), np.asarray(how.std, np.float32)
        pixels = (pixels.astype(np.float32) * np.float32(how.scale) - mean) / std
    if dtype.kind == "i":  # codes: to the nearest, never beyond the type
        pixels = np.clip(np.rint(pixels), np.iinfo(dtype).min, np.iinfo(dtype).max)
    array = pixels.transpose(2, 0, 1) if spec.layout == "NCHW" else pixels
    if array[None].shape != spec.tensor.shape:
        raise BadInput(
            f"input {spec.tensor.name!r} must be {list(spec.tensor.shape)}, "
            f"but its preprocessing ({how.channels}) gives {list(array[None].shape)}"
        )
    return np.ascontiguousarray(array[None], dtype)


def _resize(image: Image.Image, size: tuple[int, int], how: Preprocess) -> Image.Image:
    if image.size == size:
        return image
    if how.resize == "none":
        raise BadInput(f"an image must be {size[0]}x{size[1]} pixels, got {image.size[0]}x{image.size[1]}")
    resampler = _RESAMPLERS[how.resampler]
    if how.resize == "stretch":
        return image.resize(size, resampler)
    ratios = (size[0] / image.size[0], size[1] / image.size[1])
    ratio = max(ratios) if how.resize == "crop" else min(ratios)
    scaled = image.resize(
        (max(1, round(image.size[0] * ratio)), max(1, round(image.size[1] * ratio))), resampler
    )
    left, top = (size[0] - scaled.size[0]) // 2, (size[1] - scaled.size[1]) // 2
    result = Image.new(image.mode, size)
    result.paste(scaled, (left, top))
    return result
