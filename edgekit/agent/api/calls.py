"""Inference requests of the Open Inference Protocol: parsed once, fitted to the bundle that serves, and answered.

No I/O. Extensions: binary tensor data, classification; parameters `policy`, `deadline_ms`, `budget` and `max_drop`; an
image input also takes one encoded image (PNG or JPEG) as BYTES. Unknown keys and parameters are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.agent.api import tensors
from edgekit.core import checks
from edgekit.core.errors import BadInput
from edgekit.core.manifest import MAX_RANK, Input, Manifest, Tensor
from edgekit.core.policy import KINDS, PolicySpec, parse_budget, policy_told
from edgekit.runtime.backends import Array
from edgekit.runtime.preprocess import preprocess, sent_image
from edgekit.runtime.session import Answer

_MAX_SIZE = 2**31
_MAX_ENTRIES = 64  # inputs or outputs in one request
_MAX_ID = 1000
_TEXT_BYTES = 2**16  # of a request besides its tensors
_JSON_BYTES = 32  # of one value as JSON at most, with room around it
IMAGE_BYTES = 2**23
_SHARED = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


@dataclass(frozen=True)
class Signature:
    """What a bundle takes and gives. outputs: the last exit's; those of earlier exits go out under the same names."""

    manifest: Manifest
    inputs: Mapping[str, Input]
    outputs: tuple[Tensor, ...]
    max_body: int


def signature_of(manifest: Manifest) -> Signature:
    """Read the signature out of a manifest."""
    made = {entry.tensor.name: entry.tensor for entry in manifest.inputs}
    for stage in manifest.stages:
        made.update({tensor.name: tensor for part in stage.parts for tensor in part.outputs})
    values = sum(math.prod(entry.tensor.shape) for entry in manifest.inputs)
    images = sum(entry.preprocess is not None for entry in manifest.inputs)
    return Signature(
        manifest,
        {entry.tensor.name: entry for entry in manifest.inputs},
        tuple(made[name] for name in manifest.exits[-1].outputs),
        _TEXT_BYTES + values * _JSON_BYTES + images * IMAGE_BYTES,
    )


@dataclass(frozen=True)
class Given:
    """One input as it came: a tensor, or the bytes of an encoded image."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: Array | bytes


@dataclass(frozen=True)
class Wanted:
    """One output as it is asked for. binary None: as the request says for all. classes 0: the tensor itself."""

    name: str
    binary: bool | None = None
    classes: int = 0


@dataclass(frozen=True)
class Call:
    """One inference request. outputs None: all. policy None: the board's."""

    id: str | None
    inputs: tuple[Given, ...]
    outputs: tuple[Wanted, ...] | None
    binary: bool
    policy: PolicySpec | None


def parse_call(body: bytes, header_length: int | None) -> Call:
    """Read the body of an inference request. header_length: of the JSON, where tensors follow it. Raises BadInput."""
    length = len(body) if header_length is None else header_length
    if not 0 <= length <= len(body):
        raise BadInput(
            f"Inference-Header-Content-Length must be at most the body's {len(body)} bytes, got {length}"
        )
    data = checks.table(checks.parse_json(body[:length], "the request"), "the request")
    name = data.get("id", "")
    if not isinstance(name, str) or len(name) > _MAX_ID:
        raise checks.wrong("id", f"a text of at most {_MAX_ID} characters", name)
    parameters = _parameters(data, "the request")
    reader = _Binary(memoryview(body)[length:])
    inputs = checks.rows(_listed(data.get("inputs"), "inputs"), "inputs", reader.given)
    reader.close()
    outputs = checks.optional(
        data.get("outputs"), "outputs", lambda v, w: checks.rows(_listed(v, w), w, _wanted)
    )
    for what, names in (("inputs", [i.name for i in inputs]), ("outputs", [o.name for o in outputs or ()])):
        if len(set(names)) != len(names):
            raise BadInput(f"{what}: each name may stand there once, got {', '.join(names)}")
    binary = checks.flag(parameters.get("binary_data_output", False), "parameters.binary_data_output")
    return Call(name or None, inputs, outputs or None, binary, _policy(parameters))


def _listed(value: object, where: str) -> object:
    if isinstance(value, list) and len(value) > _MAX_ENTRIES:
        raise BadInput(f"{where} must be at most {_MAX_ENTRIES}, got {len(value)}")
    return value


def _parameters(data: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = checks.table(data.get("parameters") or {}, f"{where}: parameters")
    if any(key in found for key in _SHARED):
        raise BadInput(f"{where}: shared memory is not offered here: send and take the tensor itself")
    return found


class _Binary:
    """The tensors behind the JSON, handed out in the order of the inputs."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._offset = 0

    def given(self, value: object, where: str) -> Given:
        """Read one input."""
        data = checks.table(value, where)
        name = checks.text(data.get("name"), f"{where}.name")
        where = f"input {name!r}"
        datatype = checks.choice(data.get("datatype"), f"{where}: datatype", tensors.KNOWN)
        shape = checks.rows(
            data.get("shape"), f"{where}: shape", lambda v, w: checks.integer(v, w, 0, _MAX_SIZE)
        )
        if len(shape) > MAX_RANK:
            raise BadInput(f"{where}: shape must be of rank {MAX_RANK} at most, got {len(shape)}")
        size = _parameters(data, where).get("binary_data_size")
        if size is None:
            if datatype == tensors.BYTES:
                raise BadInput(f"{where}: BYTES must come as binary data")
            return Given(name, datatype, shape, tensors.from_json(data.get("data"), datatype, shape, where))
        if "data" in data:
            raise BadInput(f"{where}: needs data or binary_data_size, got both")
        binary = self._take(checks.integer(size, f"{where}: binary_data_size"), where)
        if datatype == tensors.BYTES:
            return Given(name, datatype, shape, tensors.one_text(binary, shape, where))
        return Given(name, datatype, shape, tensors.from_bytes(binary, datatype, shape, where))

    def _take(self, size: int, where: str) -> memoryview:
        found = self._data[self._offset : self._offset + size]
        if len(found) != size:
            raise BadInput(
                f"{where}: binary_data_size says {size} bytes, {len(found)} are left behind the JSON"
            )
        self._offset += size
        return found

    def close(self) -> None:
        """Raises BadInput where bytes are left that no input names."""
        left = len(self._data) - self._offset
        if left:
            raise BadInput(f"{left} bytes behind the JSON belong to no input's binary_data_size")


def _wanted(value: object, where: str) -> Wanted:
    data = checks.table(value, where)
    name = checks.text(data.get("name"), f"{where}.name")
    where = f"output {name!r}"
    parameters = _parameters(data, where)
    return Wanted(
        name,
        checks.optional(parameters.get("binary_data"), f"{where}: binary_data", checks.flag),
        checks.integer(parameters.get("classification", 0), f"{where}: classification", 0, _MAX_SIZE),
    )


def _policy(parameters: Mapping[str, Any]) -> PolicySpec | None:
    """The request's own policy: named, or told by its budget, deadline or limit on the loss; None: the board's."""
    read: Mapping[str, Callable[[object, str], Any]] = {
        "policy": lambda v, w: checks.choice(v, w, KINDS),
        "budget": parse_budget,
        "deadline_ms": lambda v, w: checks.number(v, w, 1e-6),
        "max_drop": lambda v, w: checks.number(v, w, 0.0, 100.0),
    }
    given = {
        key: parse(parameters[key], f"parameters.{key}") for key, parse in read.items() if key in parameters
    }
    if not given:
        return None
    return policy_told(
        given.get("policy"), given.get("budget"), given.get("deadline_ms"), given.get("max_drop")
    )


def check(call: Call, signature: Signature) -> None:
    """Raises BadInput where the request does not fit the bundle; an encoded image is not looked into."""
    given = {entry.name: entry for entry in call.inputs}
    for name, entry in signature.inputs.items():
        wanted, came = entry.tensor, given.pop(name, None)
        if came is not None and came.datatype == tensors.BYTES and entry.preprocess is not None:
            continue
        datatype = tensors.DATATYPES[wanted.dtype]
        if came is None or (came.datatype, came.shape) != (datatype, wanted.shape):
            got = "nothing" if came is None else f"{came.datatype} {list(came.shape)}"
            raise BadInput(
                f"input {name!r} must be {datatype} {list(wanted.shape)} (one sample a request), got {got}"
            )
    if given:
        raise BadInput(f"unknown input {min(given)!r}; the bundle takes {', '.join(signature.inputs)}")
    made = {tensor.name: tensor for tensor in signature.outputs}
    for output in call.outputs or ():
        if output.name not in made:
            raise BadInput(f"unknown output {output.name!r}; the bundle gives {', '.join(made)}")
        if output.classes and sum(size > 1 for size in made[output.name].shape) != 1:
            raise BadInput(f"output {output.name!r} is no vector of classes: {list(made[output.name].shape)}")


def inputs_of(call: Call, signature: Signature) -> dict[str, Array]:
    """The bundle's inputs; an encoded image is decoded and preprocessed. The request has been checked before."""
    return {entry.name: _tensor(entry, signature.inputs[entry.name]) for entry in call.inputs}


def _tensor(given: Given, entry: Input) -> Array:
    if not isinstance(given.content, bytes):
        return given.content
    try:
        image = sent_image(given.content)
    except BadInput as err:
        raise BadInput(f"input {given.name!r}: {err}") from err
    return preprocess(image, entry)


def write_answer(call: Call, signature: Signature, answer: Answer, policy: str) -> tuple[bytes, int | None]:
    """The body of the response, and the length of its JSON where tensors follow it.

    An early exit's outputs go out under the last exit's names, in order; an output that only the last exit has is
    left out. A confidence the exit does not have, or that is NaN, is left out.
    """
    manifest = signature.manifest
    given = dict(zip((tensor.name for tensor in signature.outputs), answer.outputs.values(), strict=False))
    asked = call.outputs or tuple(Wanted(name) for name in given)
    outputs, binary = [], []
    for wanted in asked:
        array = given.get(wanted.name)
        if array is None:
            continue
        as_binary = call.binary if wanted.binary is None else wanted.binary
        output, data = _output(wanted, array, manifest.labels, as_binary=as_binary)
        outputs.append(output)
        binary.append(data)
    parameters: dict[str, Any] = {
        "exit": answer.exit,
        "exit_index": answer.exit_index,
        "latency_ms": round(answer.latency_ms, 4),
        "deadline_missed": bool(answer.deadline_missed),
        "policy": policy,
        "bundle": f"{manifest.name}/{manifest.version}",
    }
    if answer.confidence is not None and math.isfinite(answer.confidence):
        parameters["confidence"] = answer.confidence
    response: dict[str, Any] = {"model_name": manifest.name, "model_version": str(manifest.version)}
    if call.id is not None:
        response["id"] = call.id
    head = json.dumps(
        {**response, "parameters": parameters, "outputs": outputs}, separators=(",", ":")
    ).encode()
    sent = [data for data in binary if data is not None]
    return (b"".join((head, *sent)), len(head)) if sent else (head, None)


def _output(
    wanted: Wanted, array: Array, labels: tuple[str, ...] | None, *, as_binary: bool
) -> tuple[dict[str, Any], bytes | None]:
    """One output as JSON, and its bytes where it goes out in binary."""
    if wanted.classes:
        texts = tensors.classes(array, wanted.classes, labels)
        output = {"name": wanted.name, "datatype": tensors.BYTES, "shape": [len(texts)]}
        data, values = tensors.texts_to_bytes(texts) if as_binary else b"", texts
    else:
        datatype = tensors.DATATYPES[array.dtype.name]
        output = {"name": wanted.name, "datatype": datatype, "shape": list(array.shape)}
        data, values = (tensors.to_bytes(array), []) if as_binary else (b"", tensors.to_json(array))
    if as_binary:
        return {**output, "parameters": {"binary_data_size": len(data)}}, data
    return {**output, "data": values}, None
