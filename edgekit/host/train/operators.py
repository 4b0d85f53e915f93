"""ONNX's operators as small PyTorch functions, one per operator, for computing and for gradients. Knows no graph.

A function gets its node (`At`) and its input tensors, None where an optional one is left out. Shapes, axes and sizes
must be constants of the graph: a batch of samples shares them. What each does is said in ONNX's docs/Operators.md;
where onnxruntime differs (align_corners with broken scales), as onnxruntime does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

Result: TypeAlias = "Tensor | tuple[Tensor, ...]"
Operator: TypeAlias = "Callable[..., Result]"


@dataclass(frozen=True)
class At:
    """A node as its operator sees it. outputs: how many of its outputs are named."""

    op: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: int = 1

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the operator's default."""
        return self.attributes.get(name, default)


def _ints(value: Tensor | Sequence[int]) -> list[int]:
    """Sizes or axes. Raises RuntimeError where they depend on the data."""
    listed = value.reshape(-1).tolist() if isinstance(value, Tensor) else value
    return [int(entry) for entry in listed]


def _axes(at: At, given: Tensor | None, rank: int) -> list[int] | None:
    """Axes of an input (newer opsets) or of the attribute, counted from the front; None where none are told."""
    axes = _ints(given) if given is not None else at.get("axes")
    return None if axes is None else [int(axis) % rank for axis in axes]


def _along(x: Tensor, axis: int, values: Tensor) -> Tensor:
    """One number per channel of `axis`, in a shape that broadcasts over x."""
    return values.reshape([-1 if place == axis else 1 for place in range(x.ndim)])


# --- windows: convolution and pooling -----------------------------------------------------------------------

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass(frozen=True)
class _Window:
    """What slides, per image axis: size, stride, dilation, and padding before and after."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    before: list[int]
    after: list[int]

    @property
    def symmetric(self) -> bool:
        return self.before == self.after

    @property
    def reach(self) -> list[int]:
        return [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilation, strict=True)]

    def torch_pads(self, extra: Sequence[int] | None = None) -> list[int]:
        """Padding as functional.pad takes it: the last axis first."""
        after = [a + e for a, e in zip(self.after, extra or [0] * len(self.after), strict=True)]
        pairs = list(zip(self.before, after, strict=True))
        return [size for pair in reversed(pairs) for size in pair]


def _window(at: At, sizes: Sequence[int], kernel: Sequence[int]) -> _Window:
    rank = len(kernel)
    stride, dilation = list(at.get("strides", [1] * rank)), list(at.get("dilations", [1] * rank))
    pads, auto = list(at.get("pads", [0] * 2 * rank)), at.get("auto_pad", "NOTSET")
    before, after = pads[:rank], pads[rank:]
    if auto == "VALID":
        before, after = [0] * rank, [0] * rank
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        for place, size in enumerate(sizes):
            reach = (kernel[place] - 1) * dilation[place] + 1
            outputs = math.ceil(size / stride[place])
            total = max(0, (outputs - 1) * stride[place] + reach - size)
            less = total // 2
            before[place], after[place] = (
                (less, total - less) if auto == "SAME_UPPER" else (total - less, less)
            )
    return _Window(list(kernel), stride, dilation, before, after)


def conv(at: At, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, C, *image], weight [M, C / group, *kernel], bias [M]."""
    window = _window(at, x.shape[2:], weight.shape[2:])
    padding = window.before
    if not window.symmetric:
        x, padding = functional.pad(x, window.torch_pads()), [0] * len(padding)
    run = _CONV[len(padding)]
    return run(x, weight, bias, window.stride, padding, window.dilation, int(at.get("group", 1)))


def conv_transpose(at: At, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, C, *image], weight [C, M / group, *kernel]: the whole product, then cropped or extended to size."""
    rank = weight.ndim - 2
    window = _window(
        At(at.op, at.opset, {**at.attributes, "auto_pad": "NOTSET"}), x.shape[2:], weight.shape[2:]
    )
    further = list(at.get("output_padding", [0] * rank))
    before, after = window.before, window.after
    auto = at.get("auto_pad", "NOTSET")
    wanted = at.get("output_shape")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * step for size, step in zip(x.shape[2:], window.stride, strict=True)]
    if wanted is not None:
        lengths = zip(x.shape[2:], window.stride, window.reach, further, list(wanted)[-rank:], strict=True)
        total = [step * (size - 1) + more + reach - out for size, step, reach, more, out in lengths]
        half = [size // 2 for size in total]
        rest = [size - less for size, less in zip(total, half, strict=True)]
        before, after = (half, rest) if auto == "SAME_UPPER" else (rest, half)
    run = _CONV_TRANSPOSE[rank]
    whole = run(x, weight, None, window.stride, 0, 0, int(at.get("group", 1)), window.dilation)
    ends = [more - crop for more, crop in zip(further, after, strict=True)]
    pads = [size for pair in reversed(list(zip([-b for b in before], ends, strict=True))) for size in pair]
    whole = functional.pad(whole, pads) if any(pads) else whole
    return whole if bias is None else whole + _along(whole, 1, bias)


def _beyond(at: At, window: _Window, sizes: Sequence[int]) -> list[int]:
    """How much further than its padding ceil_mode looks, per axis. A window must start inside image or padding."""
    if not at.get("ceil_mode", 0):
        return [0] * len(sizes)
    found = []
    for place, size in enumerate(sizes):
        padded, step = size + window.before[place] + window.after[place], window.stride[place]
        last = math.ceil((padded - window.reach[place]) / step)  # index of the last window
        if last * step >= size + window.before[place]:
            last -= 1
        found.append(max(0, last * step + window.reach[place] - padded))
    return found


def max_pool(at: At, x: Tensor) -> Tensor:
    """x [N, C, *image]; what lies outside the image never wins."""
    window = _window(at, x.shape[2:], at.get("kernel_shape"))
    beyond = _beyond(at, window, x.shape[2:])
    padding = window.before
    fits = all(2 * pad <= size for pad, size in zip(padding, window.kernel, strict=True))
    if not (window.symmetric and fits) or any(beyond):
        lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, padding = functional.pad(x, window.torch_pads(beyond), value=lowest), [0] * len(padding)
    return _MAX_POOL[len(padding)](x, window.kernel, window.stride, padding, window.dilation)


def average_pool(at: At, x: Tensor) -> Tensor:
    """x [N, C, *image]; padding counts where count_include_pad says so, what ceil_mode adds never does."""
    window = _window(at, x.shape[2:], at.get("kernel_shape"))
    beyond = _beyond(at, window, x.shape[2:])
    pool = _AVERAGE_POOL[len(window.kernel)]
    if not any((*window.before, *window.after, *beyond)):
        return pool(x, window.kernel, window.stride)
    counted = functional.pad(
        x.new_ones(1, 1, *x.shape[2:]), window.torch_pads(), value=float(at.get("count_include_pad", 0))
    )
    only_beyond = [size for extra in reversed(beyond) for size in (0, extra)]
    share = pool(functional.pad(counted, only_beyond), window.kernel, window.stride)
    return pool(functional.pad(x, window.torch_pads(beyond)), window.kernel, window.stride) / share


def _global(reduce: Callable[..., Tensor]) -> Operator:
    def run(at: At, x: Tensor) -> Tensor:
        return reduce(x, tuple(range(2, x.ndim)), keepdim=True)

    return run


# --- products and norms -------------------------------------------------------------------------------------


def gemm(at: At, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha A B + beta C."""
    a = a.T if at.get("transA", 0) else a
    b = b.T if at.get("transB", 0) else b
    alpha, beta = at.get("alpha", 1.0), at.get("beta", 1.0)
    product = a @ b if alpha == 1.0 else alpha * (a @ b)
    return product if c is None else product + (c if beta == 1.0 else beta * c)


def batch_normalization(at: At, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """x [N, C, ...] with the statistics the graph holds: nothing is learned about them."""
    factor = scale / torch.sqrt(var + at.get("epsilon", 1e-5))
    return x * _along(x, 1, factor) + _along(x, 1, bias - mean * factor)


def _standardized(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred / torch.sqrt(centred.square().mean(tuple(axes), keepdim=True) + epsilon)


def instance_normalization(at: At, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """x [N, C, *image], each channel of each sample by itself."""
    plain = _standardized(x, range(2, x.ndim), at.get("epsilon", 1e-5))
    return plain * _along(x, 1, scale) + _along(x, 1, bias)


def layer_normalization(at: At, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Result:
    """All axes from `axis` on together; gives their mean and inverse deviation as well where those are read."""
    axes = tuple(range(at.get("axis", -1) % x.ndim, x.ndim))
    centre = x.mean(axes, keepdim=True)
    inverse = 1 / torch.sqrt((x - centre).square().mean(axes, keepdim=True) + at.get("epsilon", 1e-5))
    made = (x - centre) * inverse * scale
    made = made if bias is None else made + bias
    return made if at.outputs == 1 else (made, centre, inverse)


def rms_normalization(at: At, x: Tensor, scale: Tensor) -> Tensor:
    """As layer_normalization, without a mean."""
    axes = tuple(range(at.get("axis", -1) % x.ndim, x.ndim))
    return x / torch.sqrt(x.square().mean(axes, keepdim=True) + at.get("epsilon", 1e-5)) * scale


def group_normalization(at: At, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """x [N, C, *image] in num_groups; scale and bias per group before opset 21, per channel since."""
    groups = int(at.get("num_groups"))
    split = x.reshape(x.shape[0], groups, -1)
    plain = _standardized(split, (2,), at.get("epsilon", 1e-5)).reshape(x.shape)
    each = x.shape[1] // len(scale)
    scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return plain * _along(x, 1, scale) + _along(x, 1, bias)


def lp_normalization(at: At, x: Tensor) -> Tensor:
    """Divided by the norm along one axis; zeros stay zeros."""
    axis = at.get("axis", -1)
    norm = x.abs().sum(axis, keepdim=True) if at.get("p", 2) == 1 else _length(x, (axis,))
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def lrn(at: At, x: Tensor) -> Tensor:
    """Local response normalization across channels."""
    size = int(at.get("size"))
    squares = functional.pad(x.square().movedim(1, -1), ((size - 1) // 2, size - 1 - (size - 1) // 2))
    sums = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (at.get("bias", 1.0) + at.get("alpha", 1e-4) / size * sums) ** at.get("beta", 0.75)


# --- element by element -------------------------------------------------------------------------------------


def _each(run: Callable[..., Tensor]) -> Operator:
    """An operator without attributes."""
    return lambda at, *inputs: run(*inputs)


def _fold(run: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of inputs."""

    def over(at: At, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = run(first, other)
        return first

    return over


def mean(at: At, *inputs: Tensor) -> Tensor:
    """The inputs' mean, element by element."""
    total = _fold(torch.add)(at, *inputs)
    assert isinstance(total, Tensor)  # noqa: S101  (for the type checker)
    return total / len(inputs)


def divide(at: At, a: Tensor, b: Tensor) -> Tensor:
    """Integers are cut towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def power(at: At, base: Tensor, exponent: Tensor) -> Tensor:
    """In the type of the base; squares without a power function, whose slope at 0 is no number."""
    if exponent.numel() == 1 and not _is_batched(exponent):
        known = exponent.item()
        return base.square() if known == 2 else torch.pow(base, known).to(base.dtype)
    return torch.pow(base, exponent).to(base.dtype)


def _is_batched(value: Tensor) -> bool:
    """Whether the tensor differs from sample to sample inside a vmap."""
    return bool(torch._C._functorch.is_batchedtensor(value))  # noqa: SLF001  (there is no public question)


def modulo(at: At, a: Tensor, b: Tensor) -> Tensor:
    """The sign is the divisor's, with fmod the dividend's."""
    return torch.fmod(a, b) if at.get("fmod", 0) else torch.remainder(a, b)


def clip(at: At, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Limits are attributes before opset 11 and inputs since."""
    low = at.get("min") if low is None else low
    high = at.get("max") if high is None else high
    if low is None and high is None:
        return x
    if isinstance(low, Tensor) != isinstance(high, Tensor):  # torch wants two of a kind
        low, high = (None if edge is None else torch.as_tensor(edge, dtype=x.dtype) for edge in (low, high))
    return torch.clamp(x, low, high)


def p_relu(at: At, x: Tensor, slope: Tensor) -> Tensor:
    """slope broadcasts to x."""
    return torch.where(x < 0, x * slope, x)


def hard_sigmoid(at: At, x: Tensor) -> Tensor:
    """max(0, min(1, alpha x + beta))."""
    return torch.clamp(at.get("alpha", 0.2) * x + at.get("beta", 0.5), 0, 1)


def hard_swish(at: At, x: Tensor) -> Tensor:
    """x max(0, min(1, x / 6 + 1 / 2))."""
    return functional.hardswish(x)


def gelu(at: At, x: Tensor) -> Tensor:
    """x Phi(x), or the formula with tanh."""
    return functional.gelu(x, approximate=at.get("approximate", "none"))


def selu(at: At, x: Tensor) -> Tensor:
    """gamma x above 0, gamma alpha (exp(x) - 1) below."""
    alpha, gamma = at.get("alpha", 1.67326319217681884765625), at.get("gamma", 1.05070102214813232421875)
    return gamma * functional.elu(x, alpha)


def dropout(at: At, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Tensor:
    """What the deployed network does: nothing. Raises RuntimeError where the graph itself asks for training."""
    if training is not None and training.item():
        raise RuntimeError("it is in training mode")
    return x


def _softmax(run: Callable[..., Tensor]) -> Operator:
    """Before opset 13 all axes from `axis` on count as one."""

    def over(at: At, x: Tensor) -> Tensor:
        if at.opset >= 13:
            return run(x, at.get("axis", -1))
        axis = at.get("axis", 1) % max(1, x.ndim)
        return run(x.flatten(axis), -1).reshape(x.shape)

    return over


def where(at: At, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition holds, else b."""
    return torch.where(condition, a, b)


def cast(at: At, x: Tensor, like: Tensor | None = None) -> Tensor:
    """To another number format (CastLike: to that of the second input)."""
    return x.to(like.dtype if like is not None else torch_dtype(int(at.get("to"))))


def torch_dtype(onnx_type: int) -> torch.dtype:
    """PyTorch's type for ONNX's number of a type. Raises TypeError where there is none."""
    numbers = torch.from_numpy(np.empty(0, ir.DataType(onnx_type).numpy()))
    return numbers.dtype


# --- reductions ---------------------------------------------------------------------------------------------


def _length(x: Tensor, axes: Sequence[int], keepdim: bool = True) -> Tensor:
    """Euclidean norm whose slope at 0 is 0."""
    squares = x.square().sum(tuple(axes), keepdim=keepdim)
    return torch.where(squares > 0, torch.sqrt(torch.where(squares > 0, squares, 1.0)), 0.0)


def _product(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def _reduce(run: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Operator:
    def over(at: At, x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = _axes(at, given, max(1, x.ndim))
        if not axes:
            if at.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return run(x, tuple(axes), bool(at.get("keepdims", 1))) if x.ndim else x

    return over


def _arg(run: Callable[..., Tensor]) -> Operator:
    def over(at: At, x: Tensor) -> Tensor:
        axis, keep = int(at.get("axis", 0)), bool(at.get("keepdims", 1))
        if at.get("select_last_index", 0):
            return x.shape[axis] - 1 - run(x.flip(axis), axis, keepdim=keep)
        return run(x, axis, keepdim=keep)

    return over


def cumulative_sum(at: At, x: Tensor, axis: Tensor) -> Tensor:
    """Running sums along an axis, from either end, with or without the element itself."""
    along = _ints(axis)[0]
    x = x.flip(along) if at.get("reverse", 0) else x
    sums = x.cumsum(along).to(x.dtype)
    sums = sums - x if at.get("exclusive", 0) else sums
    return sums.flip(along) if at.get("reverse", 0) else sums


def top_k(at: At, x: Tensor, k: Tensor | None = None) -> Result:
    """The k largest or smallest along an axis, and where they are."""
    count = int(at.get("k")) if k is None else _ints(k)[0]
    axis = int(at.get("axis", -1)) % x.ndim
    found, places = torch.sort(
        x, dim=axis, descending=bool(at.get("largest", 1)), stable=True
    )  # ties: the first wins
    return (found.narrow(axis, 0, count), places.narrow(axis, 0, count))


# --- shapes -------------------------------------------------------------------------------------------------


def reshape(at: At, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """0 keeps a size, -1 is what is left."""
    sizes = _ints(shape) if shape is not None else list(at.get("shape"))
    if not at.get("allowzero", 0):
        sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(at: At, x: Tensor) -> Tensor:
    """Two axes: what is before `axis`, and what is from there on."""
    axis = int(at.get("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(at: At, x: Tensor) -> Tensor:
    """Axes in another order, reversed where none is told."""
    return x.permute(at.get("perm", tuple(reversed(range(x.ndim)))))


def squeeze(at: At, x: Tensor, given: Tensor | None = None) -> Tensor:
    """Without these axes of size 1, or without all of them."""
    axes = _axes(at, given, max(1, x.ndim))
    gone = [place for place, size in enumerate(x.shape) if size == 1] if axes is None else axes
    return x.reshape([size for place, size in enumerate(x.shape) if place not in gone])


def unsqueeze(at: At, x: Tensor, given: Tensor | None = None) -> Tensor:
    """With new axes of size 1 at these places of the result."""
    count = len(_ints(given) if given is not None else at.get("axes"))
    for axis in sorted(_axes(at, given, x.ndim + count) or ()):
        x = x.unsqueeze(axis)
    return x


def expand(at: At, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast in both directions."""
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(_ints(shape))))


def tile(at: At, x: Tensor, repeats: Tensor) -> Tensor:
    """Each axis this many times."""
    return x.repeat(_ints(repeats))


def concat(at: At, *inputs: Tensor) -> Tensor:
    """Side by side along `axis`."""
    return torch.cat(inputs, int(at.get("axis", 1)))


def split(at: At, x: Tensor, sizes: Tensor | None = None) -> Result:
    """Parts along `axis`: of these sizes, or equal ones, the last of them smaller where it must be."""
    axis = int(at.get("axis", 0))
    lengths = _ints(sizes) if sizes is not None else at.get("split")
    if lengths is None:
        count = int(at.get("num_outputs", at.outputs))
        each = -(-x.shape[axis] // count)
        lengths = [min(each, x.shape[axis] - place * each) for place in range(count)]
    return torch.split(x, list(lengths), axis)


def slice_(
    at: At,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Python's slices along some axes; attributes before opset 10, inputs since."""
    first = _ints(starts if starts is not None else at.get("starts"))
    last = _ints(ends if ends is not None else at.get("ends"))
    along = _axes(at, axes, x.ndim) or list(range(len(first)))
    stride = _ints(steps) if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(along, first, last, stride, strict=True):
        places = range(x.shape[axis])[_edge(start, step) : _edge(end, step) : step]
        if step > 0:
            x = x[(slice(None),) * axis + (slice(places.start, max(places.start, places.stop), step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def _edge(place: int, step: int) -> int | None:
    """ONNX writes "to the very beginning" of a backward slice as the smallest number."""
    return None if step < 0 and place < -(2**30) else place


def pad(
    at: At, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Constant, edge, reflect or wrap, axis by axis; negative pads cut."""
    sizes = _ints(pads if pads is not None else at.get("pads"))
    along = _axes(at, axes, x.ndim) or list(range(x.ndim))
    before, after = sizes[: len(along)], sizes[len(along) :]
    filling = at.get("value", 0.0) if value is None else value.item()
    mode = at.get("mode", "constant")
    if mode == "constant":
        flat = [0] * (2 * x.ndim)
        for axis, low, high in zip(along, before, after, strict=True):
            flat[2 * (x.ndim - 1 - axis) : 2 * (x.ndim - axis)] = [low, high]
        return functional.pad(x, flat, value=filling)
    for axis, low, high in zip(along, before, after, strict=True):
        if low or high:
            places = _padded_places(mode, x.shape[axis], low, high)
            x = x.index_select(axis, torch.from_numpy(places))
    return x


def _padded_places(mode: str, size: int, low: int, high: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each element of a padded axis comes from."""
    places = np.arange(-low, size + high, dtype=np.int64)
    if mode == "edge":
        return np.clip(places, 0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(1, 2 * (size - 1))  # reflect
    places = np.abs(places) % period
    return np.where(places >= size, period - places, places)


def gather(at: At, x: Tensor, indices: Tensor) -> Tensor:
    """Entries of one axis, in the shape of the indices."""
    axis = int(at.get("axis", 0)) % x.ndim
    places = torch.where(indices < 0, indices + x.shape[axis], indices)
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_elements(at: At, x: Tensor, indices: Tensor) -> Tensor:
    """One entry per index, along one axis."""
    axis = int(at.get("axis", 0)) % x.ndim
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def shape(at: At, x: Tensor) -> Tensor:
    """The sizes, from axis `start` to `end`."""
    return torch.tensor(list(x.shape)[at.get("start", 0) : at.get("end")], dtype=torch.int64)


def size(at: At, x: Tensor) -> Tensor:
    """How many elements."""
    return torch.tensor(math.prod(x.shape), dtype=torch.int64)


def constant_of_shape(at: At, sizes: Tensor) -> Tensor:
    """The value everywhere, 0.0 where none is told."""
    value = at.get("value")
    filling = torch.zeros(1) if value is None else torch.from_numpy(np.array(value.numpy()))
    return filling.reshape(-1)[:1].expand(math.prod(_ints(sizes))).reshape(_ints(sizes))


def range_(at: At, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """From start up to, not with, limit."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def trilu(at: At, x: Tensor, k: Tensor | None = None) -> Tensor:
    """One triangle of each matrix."""
    diagonal = 0 if k is None else _ints(k)[0]
    return torch.triu(x, diagonal) if at.get("upper", 1) else torch.tril(x, diagonal)


def depth_to_space(at: At, x: Tensor) -> Tensor:
    """Channels become pixels of blocks."""
    n, c, h, w = x.shape
    b = int(at.get("blocksize"))
    if at.get("mode", "DCR") == "DCR":
        cut = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        cut = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return cut.reshape(n, c // b**2, h * b, w * b)


def space_to_depth(at: At, x: Tensor) -> Tensor:
    """Pixels of blocks become channels."""
    n, c, h, w = x.shape
    b = int(at.get("blocksize"))
    order = (0, 3, 5, 1, 2, 4) if at.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return x.reshape(n, c, h // b, b, w // b, b).permute(order).reshape(n, c * b**2, h // b, w // b)


# --- resizing -----------------------------------------------------------------------------------------------

_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)
_Floats = np.ndarray[Any, np.dtype[np.float32]]


def resize(
    at: At,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Nearest or linear, axis by axis. Resize-10 and Upsample have their scales in place of roi, and are asymmetric."""
    old = at.op == "Upsample" or at.opset < 11
    if old:
        scales = roi if roi is not None else torch.tensor(at.get("scales"))
    along = _axes(at, None, x.ndim) or list(range(x.ndim))
    factors = [] if scales is None else [float(value) for value in scales.reshape(-1).tolist()]
    wanted = None if factors or sizes is None else _ints(sizes)
    coordinates = "asymmetric" if old else at.get("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else at.get("nearest_mode", "round_prefer_floor")
    for place, axis in enumerate(along):
        length = x.shape[axis]
        out = math.floor(length * factors[place]) if wanted is None else wanted[place]
        factor = factors[place] if wanted is None else out / length
        if out == length and factor == 1:
            continue
        at_input = _coordinates(coordinates, length, out, np.float32(factor))
        if at.get("mode", "nearest") == "nearest":
            x = x.index_select(axis, torch.from_numpy(_nearest(rounding, at_input, length)))
        else:
            x = _linear(x, axis, np.clip(at_input, 0, length - 1))
    return x


def _coordinates(mode: str, length: int, out: int, factor: np.float32) -> _Floats:
    """Where each output lies on the input's axis."""
    place = np.arange(out, dtype=np.float32)
    if mode == "align_corners":
        return np.asarray(place * np.float32(length - 1) / np.float32(max(1, out - 1)), np.float32)
    if mode == "asymmetric":
        return np.asarray(place / factor, np.float32)
    if mode == "pytorch_half_pixel" and out == 1:
        return np.zeros(1, np.float32)
    half = np.asarray((place + np.float32(0.5)) / factor - np.float32(0.5), np.float32)
    if mode == "half_pixel_symmetric":
        adjusted = np.float32(out) / (factor * np.float32(length))
        half += np.float32(length / 2) * (1 - adjusted)
    return half


def _nearest(mode: str, at_input: _Floats, length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    rules: Mapping[str, Callable[[_Floats], _Floats]] = {
        "round_prefer_floor": lambda place: np.ceil(place - np.float32(0.5)),
        "round_prefer_ceil": lambda place: np.floor(place + np.float32(0.5)),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return np.clip(rules[mode](at_input), 0, length - 1).astype(np.int64)


def _linear(x: Tensor, axis: int, at_input: _Floats) -> Tensor:
    low = np.floor(at_input).astype(np.int64)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    share = _along(x, axis, torch.from_numpy(at_input - low.astype(np.float32)).to(x.dtype))
    left, right = (x.index_select(axis, torch.from_numpy(places)) for places in (low, high))
    return left + (right - left) * share


# --- recurrent ----------------------------------------------------------------------------------------------

_States: TypeAlias = "tuple[Tensor, ...]"
_Cell: TypeAlias = "Callable[[Tensor, _States, Tensor, Tensor], _States]"  # pushed, state, R, bias -> state


def _recurrent(
    at: At, gates: int, cell: _Cell, x: Tensor, inputs: Sequence[Tensor | None], states: int
) -> Result:
    """Step by step. x [T, B, I], W [D, gates H, I], R [D, gates H, H]; gives Y [T, D, B, H] and the last states."""
    padded = [*inputs, *[None] * (4 + states - len(inputs))]
    weights, recurrence, bias, given = padded[0], padded[1], padded[2], padded[4:]
    assert weights is not None and recurrence is not None  # noqa: S101, PT018  (ONNX requires them)
    wide = recurrence.shape[-1]
    made, ends = [], []
    for way in range(weights.shape[0]):
        backwards = at.get("direction", "forward") == "reverse" or way == 1
        both = x.new_zeros(2 * gates * wide) if bias is None else bias[way]
        state = tuple(
            x.new_zeros(x.shape[1], wide) if start is None else start[way] for start in given[:states]
        )
        pushed = x @ weights[way].T + both[: gates * wide]
        steps = range(x.shape[0] - 1, -1, -1) if backwards else range(x.shape[0])
        outputs: list[Tensor] = []
        for step in steps:
            state = cell(pushed[step], state, recurrence[way], both[gates * wide :])
            outputs.append(state[0])
        made.append(torch.stack(outputs[::-1] if backwards else outputs))
        ends.append(state)
    lasts = [torch.stack([state[place] for state in ends]) for place in range(states)]
    return (torch.stack(made, 1), *lasts)


def lstm(at: At, x: Tensor, *inputs: Tensor | None) -> Result:
    """Gates in the order input, output, forget, cell."""

    def cell(pushed: Tensor, state: _States, recurrence: Tensor, bias: Tensor) -> _States:
        hidden, memory = state
        i, o, f, c = (pushed + hidden @ recurrence.T + bias).chunk(4, -1)
        memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(c)
        return torch.sigmoid(o) * torch.tanh(memory), memory

    return _recurrent(at, 4, cell, x, inputs, 2)


def gru(at: At, x: Tensor, *inputs: Tensor | None) -> Result:
    """Gates in the order update, reset, hidden."""
    late = bool(at.get("linear_before_reset", 0))

    def cell(pushed: Tensor, state: _States, recurrence: Tensor, bias: Tensor) -> _States:
        hidden = state[0]
        wide = hidden.shape[-1]
        z, r = torch.sigmoid(
            pushed[..., : 2 * wide] + hidden @ recurrence[: 2 * wide].T + bias[: 2 * wide]
        ).chunk(2, -1)
        own, shift = recurrence[2 * wide :].T, bias[2 * wide :]
        again = r * (hidden @ own + shift) if late else (r * hidden) @ own + shift
        return ((1 - z) * torch.tanh(pushed[..., 2 * wide :] + again) + z * hidden,)

    return _recurrent(at, 3, cell, x, inputs, 1)


def rnn(at: At, x: Tensor, *inputs: Tensor | None) -> Result:
    """One gate, tanh or relu."""
    names = {str(name).lower() for name in at.get("activations", ["tanh"])}
    squash = torch.relu if names == {"relu"} else torch.tanh

    def cell(pushed: Tensor, state: _States, recurrence: Tensor, bias: Tensor) -> _States:
        return (squash(pushed + state[0] @ recurrence.T + bias),)

    return _recurrent(at, 1, cell, x, inputs, 1)


# --- the table, and what of an operator is left out ---------------------------------------------------------

OPERATORS: Mapping[str, Operator] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "Gemm": gemm,
    "MatMul": _each(torch.matmul),
    "Einsum": lambda at, *inputs: torch.einsum(at.get("equation"), *inputs),
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
    "GroupNormalization": group_normalization,
    "LpNormalization": lp_normalization,
    "LRN": lrn,
    "MeanVarianceNormalization": lambda at, x: _standardized(x, at.get("axes", (0, 2, 3)), 1e-9),
    "LSTM": lstm,
    "GRU": gru,
    "RNN": rnn,
    "Add": _each(torch.add),
    "Sub": _each(torch.sub),
    "Mul": _each(torch.mul),
    "Div": divide,
    "Pow": power,
    "Mod": modulo,
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Sum": _fold(torch.add),
    "Mean": mean,
    "Abs": _each(torch.abs),
    "Neg": _each(torch.neg),
    "Sqrt": _each(torch.sqrt),
    "Exp": _each(torch.exp),
    "Log": _each(torch.log),
    "Reciprocal": _each(torch.reciprocal),
    "Floor": _each(torch.floor),
    "Ceil": _each(torch.ceil),
    "Round": _each(torch.round),
    "Sign": _each(torch.sign),
    "Sin": _each(torch.sin),
    "Cos": _each(torch.cos),
    "Tan": _each(torch.tan),
    "Atan": _each(torch.atan),
    "Erf": _each(torch.erf),
    "Relu": _each(torch.relu),
    "Clip": clip,
    "LeakyRelu": lambda at, x: functional.leaky_relu(x, at.get("alpha", 0.01)),
    "PRelu": p_relu,
    "Elu": lambda at, x: functional.elu(x, at.get("alpha", 1.0)),
    "Celu": lambda at, x: functional.celu(x, at.get("alpha", 1.0)),
    "Selu": selu,
    "ThresholdedRelu": lambda at, x: torch.where(x > at.get("alpha", 1.0), x, 0.0),
    "Sigmoid": _each(torch.sigmoid),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Swish": lambda at, x: x * torch.sigmoid(at.get("alpha", 1.0) * x),
    "Mish": _each(functional.mish),
    "Tanh": _each(torch.tanh),
    "Softplus": _each(functional.softplus),
    "Softsign": _each(functional.softsign),
    "Gelu": gelu,
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Where": where,
    "Equal": _each(torch.eq),
    "Less": _each(torch.lt),
    "Greater": _each(torch.gt),
    "LessOrEqual": _each(torch.le),
    "GreaterOrEqual": _each(torch.ge),
    "Not": _each(torch.logical_not),
    "And": _each(torch.logical_and),
    "Or": _each(torch.logical_or),
    "Xor": _each(torch.logical_xor),
    "Cast": cast,
    "CastLike": cast,
    "Identity": lambda at, x: x,
    "Dropout": dropout,
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduce(_product),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduce(_length),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": _reduce(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "CumSum": cumulative_sum,
    "TopK": top_k,
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Expand": expand,
    "Tile": tile,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Pad": pad,
    "Gather": gather,
    "GatherElements": gather_elements,
    "Shape": shape,
    "Size": size,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
    "Trilu": trilu,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Resize": resize,
    "Upsample": resize,
}

_SEVERAL_OUTPUTS = ("Split", "TopK", "LSTM", "GRU", "RNN", "LayerNormalization")


def why_not(at: At, given: Sequence[bool]) -> str | None:
    """What of the node is out of scope, None where all is in. given: which of its inputs are there."""
    if at.op not in OPERATORS:
        return f"the operator {at.op}"
    if at.outputs > 1 and at.op not in _SEVERAL_OUTPUTS:
        return f"{at.op} with {at.outputs} outputs"
    check = _LIMITS.get(at.op)
    return None if check is None else check(at, given)


def _no_windows(at: At, given: Sequence[bool]) -> str | None:
    if at.op == "AveragePool" and any(step != 1 for step in at.get("dilations", ())):
        return "AveragePool with dilations"
    return f"{at.op} with storage_order 1" if at.get("storage_order", 0) else None


def _no_resize(at: At, given: Sequence[bool]) -> str | None:
    if at.get("mode", "nearest") not in ("nearest", "linear", "bilinear"):
        return f"{at.op} with mode {at.get('mode')}"
    if at.get("coordinate_transformation_mode", "half_pixel") not in _COORDINATES:
        return f"{at.op} with coordinate_transformation_mode {at.get('coordinate_transformation_mode')}"
    if at.get("antialias", 0) or at.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return f"{at.op} with antialias or keep_aspect_ratio_policy"
    return None


def _no_cell(at: At, given: Sequence[bool]) -> str | None:
    given = [*given, *[False] * (8 - len(given))]
    ways = 2 if at.get("direction", "forward") == "bidirectional" else 1
    told = tuple(str(name).lower() for name in at.get("activations", ()))
    usual: tuple[tuple[str, ...], ...] = {
        "LSTM": (("sigmoid", "tanh", "tanh"),),
        "GRU": (("sigmoid", "tanh"),),
        "RNN": (("tanh",), ("relu",)),
    }[at.op]
    if told and told not in tuple(names * ways for names in usual):
        return f"{at.op} with the activations {', '.join(told)}"
    if at.get("layout", 0) or at.get("clip") or at.get("input_forget", 0):
        return f"{at.op} with layout, clip or input_forget"
    return f"{at.op} with sequence_lens or peepholes" if given[4] or given[7] else None


def _no_training(at: At, given: Sequence[bool]) -> str | None:
    return f"{at.op} in training mode" if at.get("training_mode", 0) else None


_LIMITS: Mapping[str, Callable[[At, Sequence[bool]], str | None]] = {
    "MaxPool": _no_windows,
    "AveragePool": _no_windows,
    "Resize": _no_resize,
    "Upsample": _no_resize,
    "LSTM": _no_cell,
    "GRU": _no_cell,
    "RNN": _no_cell,
    "BatchNormalization": _no_training,
}
