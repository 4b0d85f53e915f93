"""One input as somebody else describes it: a JSON object, or the bytes of an image. Limits come before any decoding.

    {"v": 1, "id": "a1", "image": BASE64}                       a PNG or JPEG file
    {"v": 1, "id": "a1", "shape": [28, 28], "dtype": "uint8", "data": BASE64}
                                                                a tensor, or a uint8 image (height, width[, 3])
    {"v": 1, "id": "a1", "tensors": {NAME: {"shape", "dtype", "data"}, ...}}
                                                                for a model with several inputs
    {"id": "a1", "file": "PATH"}                                standard input only

`data` is the elements' bytes in C order, little-endian. A shape may leave out a first axis of 1, the batch; a dtype
that is left out is the model's own. Any of them may say `deadline_ms` or `policy` (as in `desired`) for this input
alone, and `label` (a class's name or number), which is counted in telemetry and reaches no decision. Without `id` the
source gives one.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.agent.runner import Sample
from edgekit.agent.sources.base import MAX_ID, Input, broken, read_file
from edgekit.core import checks
from edgekit.core.errors import BadInput, one_line
from edgekit.core.manifest import DTYPES, MAX_RANK, Manifest
from edgekit.core.policy import PolicySpec
from edgekit.runtime.data import image_sample, sample_of
from edgekit.runtime.preprocess import sent_image

_WAYS = ("image", "data", "tensors", "file")

Array = NDArray[Any]


def input_from_image(data: bytes, name: str) -> Input:
    """The input that the bytes of a PNG or JPEG file are."""
    return Input(lambda: name, lambda manifest: (_image(data, name, manifest), None))


def input_from_json(payload: Mapping[str, Any], fallback_id: str, *, files: bool) -> Input:
    """The input an object describes; a broken one, with its id where that can be told, if it describes none.

    files: whether it may name a file of this machine.
    """
    name = fallback_id
    try:
        name = checks.optional(payload.get("id"), "id", _id) or fallback_id
        read, label, policy = _parse(payload, name, files=files), payload.get("label"), _policy(payload)
    except BadInput as err:
        return broken(name, one_line(err))
    return Input(lambda: name, lambda manifest: _labelled(read(manifest), label, manifest), policy=policy)


def is_id(text: str) -> bool:
    """Whether a text can be an id."""
    return 0 < len(text) <= MAX_ID and text.isprintable()


def _id(value: object, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return str(value)
    if not isinstance(value, str) or not is_id(value):
        raise checks.wrong(where, f"a text of at most {MAX_ID} printable characters", value)
    return value


def _parse(payload: Mapping[str, Any], name: str, *, files: bool) -> Callable[[Manifest], Sample]:
    ways = [way for way in _WAYS if way in payload and (files or way != "file")]
    if len(ways) != 1:
        wanted = ", ".join(way for way in _WAYS if files or way != "file")
        raise checks.wrong("input", f"an object with one of {wanted}", ways or sorted(payload))
    if ways == ["file"]:
        path = Path(checks.text(payload["file"], "file"))
        return lambda manifest: read_file(path, manifest)
    if ways == ["image"]:
        image = _bytes(payload["image"], "image")
        return lambda manifest: (_image(image, name, manifest), None)
    if ways == ["data"]:
        single = _tensor(payload, "input")
        return lambda manifest: (sample_of(_named({"x": single}, manifest), manifest.inputs, name), None)
    tensors = {
        key: _tensor(checks.table(value, f"tensors.{key}"), f"tensors.{key}")
        for key, value in checks.table(payload["tensors"], "tensors").items()
    }
    return lambda manifest: (sample_of(_named(tensors, manifest), manifest.inputs, name), None)


def _image(data: bytes, name: str, manifest: Manifest) -> Mapping[str, Array]:
    return image_sample(sent_image(data), manifest.inputs, name)


def _bytes(value: object, where: str) -> bytes:
    if not isinstance(value, str):
        raise checks.wrong(where, "a base64 text", value)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as err:
        raise BadInput(f"{where} must be a base64 text: {one_line(err)}") from err


def _tensor(value: Mapping[str, Any], where: str) -> Callable[[str], Array]:
    """Made once its model's dtype is known: gives the array for that dtype."""
    data = _bytes(value.get("data"), f"{where}.data")
    shape = checks.rows(value.get("shape"), f"{where}.shape", lambda v, w: checks.integer(v, w, 1, 2**31))
    dtype = checks.optional(value.get("dtype"), f"{where}.dtype", lambda v, w: checks.choice(v, w, DTYPES))
    if len(shape) > MAX_RANK:
        raise checks.wrong(f"{where}.shape", f"of at most {MAX_RANK} axes", len(shape))

    def make(own: str) -> Array:
        kind = np.dtype(dtype or own).newbyteorder("<")
        if math.prod(shape) * kind.itemsize != len(data):
            raise BadInput(
                f"{where}.data must hold {math.prod(shape) * kind.itemsize} bytes for {dtype or own} "
                f"{list(shape)}, got {len(data)}"
            )
        return np.frombuffer(data, kind).reshape(shape).astype(kind.newbyteorder("="), copy=False)

    return make


def _named(tensors: Mapping[str, Callable[[str], Array]], manifest: Manifest) -> dict[str, Array]:
    own = {entry.tensor.name: entry.tensor.dtype for entry in manifest.inputs}
    return {key: make(own.get(key, manifest.inputs[0].tensor.dtype)) for key, make in tensors.items()}


def _labelled(sample: Sample, label: object, manifest: Manifest) -> Sample:
    """The sample with the label that came with it, where one did."""
    if label is None:
        return sample
    if isinstance(label, str) and manifest.labels is not None and label in manifest.labels:
        return sample[0], manifest.labels.index(label)
    high = 2**31 if manifest.labels is None else len(manifest.labels) - 1
    return sample[0], checks.integer(label, "label", 0, high)


def _policy(payload: Mapping[str, Any]) -> PolicySpec | None:
    policy = checks.optional(payload.get("policy"), "policy", PolicySpec.parse)
    deadline = checks.optional(
        payload.get("deadline_ms"), "deadline_ms", lambda v, w: checks.number(v, w, 1e-6, 1e9)
    )
    if deadline is None:
        return policy
    if policy is not None:
        raise BadInput("an input takes a policy or a deadline_ms, not both")
    return PolicySpec("anytime", deadline_ms=deadline)
