"""Read an ONNX file as a Graph. Whatever cannot be converted is named here, before any long work starts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import external_data_helper
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
)

from edgekit.core import checks
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed, one_line
from edgekit.core.manifest import DTYPES, Input, Tensor
from edgekit.core.toml import read_toml
from edgekit.host import qonnx
from edgekit.host.graph import (
    Graph,
    GraphExit,
    dtype_name,
    infer_shapes,
    initializers,
    model_bytes,
    static_shape,
)
from edgekit.host.ort import open_model

EXITS, LABELS, INPUT = "edgekit.exits", "edgekit.labels", "edgekit.input"  # keys of the model's metadata
MAX_BYTES = 2**31 - 1  # a protobuf, and so an ONNX part, cannot be larger
_ONNXRUNTIME = (
    "com.microsoft"  # its operators are known to onnxruntime alone: opening a session says the rest
)
_IMAGE_CHANNELS = (1, 3)
_IMAGE_RANK = 4
_SIZED_BY_DATA = ("NonZero", "NonMaxSuppression", "Compress", "Unique")  # as many results as the data has
_SUCH_AS = {
    (4, 1): 3,
    (4, 2): 224,
    (4, 3): 224,
    (3, 1): 128,
    (3, 2): 64,
    (2, 1): 128,
}  # (rank, axis): an example

Shapes = Mapping[str, tuple[int, ...]]  # input name ("" = the only one) -> its whole shape


@dataclass(frozen=True)
class InputSpec:
    """What `--input-spec FILE` says; it wins over the model's metadata. inputs: raw tables by input name."""

    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    exits: tuple[GraphExit, ...] | None = None
    labels: tuple[str, ...] | None = None


_SPEC_KEYS = {"input", "labels", "exits"}


@dataclass(frozen=True)
class Loaded:
    """A Graph, the bytes it took on disk with its external data, and the outputs that no exit names."""

    graph: Graph
    size_bytes: int
    left_out: tuple[str, ...]


def load(path: Path, shapes: Shapes | None = None, spec: InputSpec | None = None) -> Loaded:
    """The Graph in an ONNX file: weights in memory, functions inlined, every node named, every input shape fixed.

    shapes: input name -> whole shape, "" for the only input. A symbolic batch before known dimensions becomes 1.
    Raises BadInput: no ONNX model, custom operators, missing external data, above 2 GB, unknown shapes, wrong
    metadata; WorldFailed when the disk does not give it.
    """
    proto, size = _read(path)
    try:
        graph, left_out = _graph(proto, shapes or {}, spec or InputSpec(), path)
    except EdgekitError:
        raise
    except Exception as err:  # a damaged model makes onnx and onnx-ir stumble anywhere
        raise BadInput(f"{path}: the ONNX model is damaged: {one_line(err)[:200]}") from err
    return Loaded(graph, size, left_out)


def _graph(
    proto: onnx.ModelProto, shapes: Shapes, spec: InputSpec, path: Path
) -> tuple[Graph, tuple[str, ...]]:
    """The Graph, and the outputs that no exit names."""
    told = _metadata(proto, path)
    del proto.metadata_props[:]
    model = _tidy(qonnx.raised(proto, path))
    _check_values(model, path)
    inputs = _fix_inputs(model, {**told.inputs, **spec.inputs}, shapes, path)
    qonnx.expand(model, path)
    _check_operators(model, path)
    infer_shapes(model)
    exits = _exits(model, spec.exits or told.exits, path)
    outputs = {value.name or "": value for value in model.graph.outputs}
    kept = [name for entry in exits for name in entry.tensors]
    model.graph.outputs[:] = [outputs[name] for name in kept]
    RemoveUnusedNodesPass()(model)
    _find_missing_shapes(model, inputs, path)
    _check_confidences(exits, outputs, path)
    graph = Graph(model, exits, inputs, spec.labels or told.labels)
    _check_labels(graph, path)
    return graph, tuple(name for name in outputs if name not in kept)


def read_input_spec(path: Path) -> InputSpec:
    """Parse `--input-spec`: `labels`, one `[[input]]` per input (name, layout, shape, preprocess), `[[exits]]`.

    Raises BadInput, WorldFailed.
    """
    data = read_toml(path)
    unknown = sorted(set(data) - _SPEC_KEYS)
    if unknown:
        known = ", ".join(sorted(_SPEC_KEYS))
        raise BadInput(f"{path}: must be an input spec ({known}), got {', '.join(unknown)}")
    tables = data.get("input", [])
    tables = [tables] if isinstance(tables, Mapping) else tables
    rows = checks.rows(tables, f"{path}: input", checks.table)
    inputs = {checks.text(row.get("name"), f"{path}: input.name"): row for row in rows}
    return InputSpec(
        inputs, _parse_exits(data.get("exits"), f"{path}: exits"), _parse_labels(data, str(path))
    )


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read `--shape` options: `1,3,224,224`, or `NAME=1,3,224,224` where there are several inputs. Raises BadInput."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1 or name in found:
            raise checks.wrong("--shape", "1,3,224,224 or NAME=1,3,224,224, each input once", text)
        found[name] = shape
    return found


# --- the file -----------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[onnx.ModelProto, int]:
    """The protobuf with external data taken in, and all its bytes on disk."""
    if path.suffix == ".tflite":
        raise BadInput(f"{path}: must be an ONNX model here, got a .tflite file")
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise BadInput(f"{path}: must be an ONNX file, got a folder")
        if size > MAX_BYTES:
            raise BadInput(f"{path}: must be at most 2 GB, got {size} bytes")
        content = path.read_bytes()
    except FileNotFoundError as err:
        raise BadInput(f"{path}: no such file") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err
    try:
        proto = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as err:
        raise BadInput(f"{path}: must be an ONNX model, got {_looks_like(content)}") from err
    if not proto.graph.node or not proto.opset_import:
        raise BadInput(f"{path}: must be an ONNX model, got {_looks_like(content)}")
    return proto, size + _take_in_external_data(proto, path)


def _looks_like(content: bytes) -> str:
    """What a file that is no model seems to be."""
    if not content:
        return "an empty file"
    head = content[:512]
    if all(byte in b"\t\n\r\f" or byte >= 32 for byte in head):
        first = head.decode("utf-8", "replace").splitlines()[0][:40]
        return f"a text file that begins with {checks.shown(first)}"
    return "a file of another format" if len(content) > 16 else "a file with no graph in it"


def _take_in_external_data(proto: onnx.ModelProto, path: Path) -> int:
    """Load weights that lie beside the model; their bytes."""
    total = 0
    for tensor in external_data_helper._get_all_tensors(proto):  # noqa: SLF001  (onnx has no public walk)
        if not external_data_helper.uses_external_data(tensor):
            continue
        info = external_data_helper.ExternalDataInfo(tensor)
        where = f"{path}: weight {tensor.name!r}"
        folder = path.parent.resolve()
        file = (folder / info.location).resolve()
        if not file.is_relative_to(folder):
            raise BadInput(f"{where} must lie in the model's folder, got {checks.shown(info.location)}")
        if not file.is_file():
            raise BadInput(
                f"{where} is in the external file {checks.shown(info.location)}, which does not exist"
            )
        total += info.length or file.stat().st_size
        if total > MAX_BYTES:
            raise BadInput(f"{path}: must be at most 2 GB with its external data")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except OSError as err:
            raise WorldFailed(f"{file}: could not be read: {err.strerror or err}") from err
        except Exception as err:  # onnx raises its own ValidationError, ValueError and others here
            raise BadInput(
                f"{where} could not be read from {checks.shown(info.location)}: {one_line(err)}"
            ) from err
        wanted = math.ceil(math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize)
        if len(tensor.raw_data) < wanted:
            came = f"{wanted} bytes are needed, {len(tensor.raw_data)} are there"
            raise BadInput(f"{where} could not be read from {checks.shown(info.location)}: {came}")
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return total


def _tidy(proto: onnx.ModelProto) -> ir.Model:
    """onnx-ir's model in one shape whoever exported it: no functions, weights in initializers, names everywhere."""
    model = ir.from_proto(proto)
    for tidy in (
        InlinePass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveInitializersFromInputsPass(),
        NameFixPass(),
    ):
        model = tidy(model).model
    return model


def _check_values(model: ir.Model, path: Path) -> None:
    """Whatever a node reads, something must make."""
    known = {id(value) for value in (*model.graph.inputs, *initializers(model))}
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.producer() is None and id(value) not in known:
                raise BadInput(f"{path}: node {node.name!r} reads {value.name!r}, which nothing makes")
    for value in model.graph.outputs:
        if value.producer() is None and id(value) not in known:
            raise BadInput(f"{path}: nothing makes the output {value.name!r}")


def _check_operators(model: ir.Model, path: Path) -> None:
    """Every operator must be ONNX's in the model's opset, or onnxruntime's own."""
    first = _first_versions()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        opset = model.opset_imports.get(domain, 0)
        if domain != _ONNXRUNTIME and opset < first.get((domain, node.op_type), MAX_BYTES):
            operator = f"{domain}.{node.op_type}" if domain else node.op_type
            raise BadInput(
                f"{path}: node {node.name!r} uses the operator {operator}, which ONNX's opset {opset} does not have: "
                "custom operators cannot be converted"
            )


@functools.cache
def _first_versions() -> Mapping[tuple[str, str], int]:
    """(domain, operator) -> the opset that brought it."""
    found: dict[tuple[str, str], int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        key = (schema.domain, schema.name)
        found[key] = min(schema.since_version, found.get(key, schema.since_version))
    return found


# --- what is known of the model -----------------------------------------------------------------------------


def _metadata(proto: onnx.ModelProto, path: Path) -> InputSpec:
    """The three edgekit keys of the model's metadata."""
    found = {
        entry.key: str(entry.value) for entry in proto.metadata_props if entry.key in (EXITS, LABELS, INPUT)
    }
    data = {key: checks.parse_json(text.encode(), f"{path}: metadata {key}") for key, text in found.items()}
    tables = data.get(INPUT, [])
    tables = [tables] if isinstance(tables, Mapping) else tables
    rows = checks.rows(tables, f"{path}: metadata {INPUT}", checks.table)
    inputs = {checks.text(row.get("name"), f"{path}: metadata {INPUT}.name"): row for row in rows}
    exits = _parse_exits(data.get(EXITS), f"{path}: metadata {EXITS}")
    return InputSpec(inputs, exits, _parse_labels({"labels": data.get(LABELS)}, f"{path}: metadata"))


def _parse_exits(value: object, where: str) -> tuple[GraphExit, ...] | None:
    if value is None:
        return None

    def one(entry: object, at: str) -> GraphExit:
        row = checks.table(entry, at)
        return GraphExit(
            checks.name(row.get("name"), f"{at}.name"),
            checks.text(row.get("output"), f"{at}.output"),
            checks.optional(row.get("confidence"), f"{at}.confidence", checks.text),
            also=checks.rows(row.get("also", []), f"{at}.also", checks.text),
        )

    found = checks.rows(value, where, one)
    if not found or len({entry.name for entry in found}) != len(found):
        raise checks.wrong(where, "a list of exits, each with its own name", value)
    return found


def _parse_labels(data: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    return checks.optional(
        data.get("labels"), f"{where}: labels", lambda v, w: checks.rows(v, w, checks.text)
    )


def _fix_inputs(
    model: ir.Model, tables: Mapping[str, Mapping[str, Any]], shapes: Shapes, path: Path
) -> tuple[Input, ...]:
    """Give every input its fixed shape and describe it."""
    names = [value.name or "" for value in model.graph.inputs]
    if not names:
        raise BadInput(f"{path}: the network has no inputs: there is nothing to convert")
    for name in (*tables, *(name for name in shapes if name)):
        if name not in names:
            raise BadInput(f"{path}: no input is called {name!r}; the inputs are {', '.join(names)}")
    if "" in shapes and len(names) != 1:
        raise BadInput(
            f"{path}: has {len(names)} inputs: give each as --shape NAME=..., for {', '.join(names)}"
        )
    return tuple(
        _fix_input(
            value, tables.get(value.name or "", {}), shapes.get(value.name or "", shapes.get("")), path
        )
        for value in model.graph.inputs
    )


def _fix_input(value: ir.Value, table: Mapping[str, Any], shape: tuple[int, ...] | None, path: Path) -> Input:
    where = f"{path}: input {value.name!r}"
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise BadInput(f"{where} must be a tensor, got {value.type}")
    if shape is None and "shape" in table:
        shape = checks.rows(table["shape"], f"{where}: shape", lambda v, w: checks.integer(v, w, 1, 2**31))
    if value.shape is None and shape is None:
        raise BadInput(f"{where} has no shape: give --shape")
    told = () if value.shape is None else tuple(value.shape)
    sizes = [size if isinstance(size, int) and size > 0 else None for size in told]  # None: symbolic, or -1
    if shape is None:
        if len(sizes) > 1 and None not in sizes[1:]:
            sizes[0] = sizes[0] or 1  # a symbolic batch: a board answers one request at a time
        if None in sizes:
            named = ",".join(map(str, told))
            such = ",".join(
                str(size or _SUCH_AS.get((len(sizes), axis), 1)) for axis, size in enumerate(sizes)
            )
            raise BadInput(
                f"{where} has the symbolic shape {named}: fix it with --shape, such as --shape {such}"
            )
        shape = tuple(size for size in sizes if size is not None)
    fits = not sizes or (
        len(sizes) == len(shape) and all(size in (None, new) for size, new in zip(sizes, shape, strict=True))
    )
    if not fits:
        raise BadInput(
            f"{where} must have the shape {','.join(map(str, told))} of the model, got {','.join(map(str, shape))}"
        )
    value.shape = ir.Shape(shape)
    dtype = dtype_name(value)
    if dtype is None:
        raise BadInput(f"{where} must be one of {', '.join(DTYPES)}, got {value.dtype}")
    tensor = Tensor(value.name or "", dtype, shape)
    described = {"layout": usual_layout(shape), **table, **tensor.to_json()}
    return Input.parse(described, where)


def usual_layout(shape: tuple[int, ...]) -> str:
    """The layout of an input that nobody described."""
    if len(shape) == _IMAGE_RANK and shape[1] in _IMAGE_CHANNELS:
        return "NCHW"
    return "NHWC" if len(shape) == _IMAGE_RANK and shape[3] in _IMAGE_CHANNELS else "flat"


def _exits(model: ir.Model, named: tuple[GraphExit, ...] | None, path: Path) -> tuple[GraphExit, ...]:
    """The exits somebody named, or all outputs of the model together as its only exit. An input is no answer."""
    outputs = {value.name or "": value for value in model.graph.outputs if not value.is_graph_input()}
    if not outputs:
        raise BadInput(f"{path}: the network's outputs are its inputs: there is nothing to convert")
    if named is None:
        first, *others = outputs
        return (GraphExit("final", first, also=tuple(others)),)
    wanted = [(entry, name) for entry in named for name in entry.tensors]
    for entry, name in wanted:
        if name not in outputs:
            raise BadInput(
                f"{path}: exit {entry.name!r} wants the output {name!r}; the outputs are {', '.join(outputs)}"
            )
    if len({name for _, name in wanted}) != len(wanted):
        raise BadInput(f"{path}: two exits have the same output")
    return named


def _check_confidences(exits: Sequence[GraphExit], outputs: Mapping[str, ir.Value], path: Path) -> None:
    """What decides at an exit is one float32. Raises BadInput."""
    for entry in exits:
        if entry.confidence is not None:
            value = outputs[entry.confidence]
            shape = static_shape(value)
            if value.dtype != ir.DataType.FLOAT or shape is None or math.prod(shape) != 1:
                raise BadInput(
                    f"{path}: the confidence of exit {entry.name!r} must be one float32, "
                    f"got {value.dtype} {list(shape or ())}"
                )


def _find_missing_shapes(model: ir.Model, inputs: tuple[Input, ...], path: Path) -> None:
    """Where inference on paper cannot tell an exit's shape, runs on zeros and on ones do. Raises BadInput.

    Boards hold every tensor in a buffer of one size: an exit whose size the data decides is refused.
    """
    for value in model.graph.outputs:
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise BadInput(f"{path}: output {value.name!r} must be a tensor, got {value.type}")
    unknown = [value for value in model.graph.outputs if static_shape(value) is None]
    for value in unknown:
        node = _decides_sizes(value)
        if node is not None:
            raise _varies(path, value, f": node {node.name!r} ({node.op_type}) decides it")
    if unknown:
        names = [value.name or "" for value in unknown]
        shapes = [_shapes_of(model, names, inputs, fill, path) for fill in (np.zeros, np.ones)]
        for value, shape, other in zip(unknown, *shapes, strict=True):
            if shape != other:
                raise _varies(path, value, f": {list(shape)} for zeros, {list(other)} for ones")
            value.shape = ir.Shape(shape)
    for value in model.graph.outputs:
        if 0 in (static_shape(value) or ()):
            raise BadInput(
                f"{path}: output {value.name!r} is empty, its shape is {list(static_shape(value) or ())}"
            )


def _shapes_of(
    model: ir.Model, names: Sequence[str], inputs: tuple[Input, ...], fill: Callable[..., Any], path: Path
) -> list[tuple[int, ...]]:
    """The shapes of these outputs where all inputs are filled so."""
    filled = {entry.tensor.name: fill(entry.tensor.shape, entry.tensor.dtype) for entry in inputs}
    try:
        return [np.shape(array) for array in open_model(model_bytes(model)).run(names, filled)]
    except Exception as err:  # onnxruntime's errors share no root but Exception
        raise BadInput(f"{path}: onnxruntime cannot run the model: {one_line(err)[:200]}") from err


def _varies(path: Path, value: ir.Value, why: str) -> BadInput:
    return BadInput(
        f"{path}: the size of the output {value.name!r} depends on the data{why}; boards need fixed sizes: "
        "export the network without it"
    )


def _decides_sizes(value: ir.Value) -> ir.Node | None:
    """The node that makes as many results as the data has, behind tensors of unknown shape. None: there is none."""
    seen: set[ir.Node] = set()
    stack = [value]
    while stack:
        node = stack.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in _SIZED_BY_DATA:
            return node
        stack += [entry for entry in node.inputs if entry is not None and static_shape(entry) is None]
    return None


def _check_labels(graph: Graph, path: Path) -> None:
    """Class names, where there are some, must be as many as the outputs have values."""
    if graph.labels is None:
        return
    deciding = {entry.output for entry in graph.exits if not entry.also}
    for value in (value for value in graph.model.graph.outputs if value.name in deciding):
        shape = static_shape(value) or ()
        count = max(shape, default=0)
        if count != len(graph.labels):
            raise BadInput(
                f"{path}: output {value.name!r} has shape {list(shape)}, which does not fit {len(graph.labels)} labels"
            )
