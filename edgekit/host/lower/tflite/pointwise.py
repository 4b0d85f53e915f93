"""Operators on single numbers: sums and products with broadcasting, activations, comparisons."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgekit.host.lower.tflite.movement import made_by, result_shape
from edgekit.host.lower.tflite.translate import NONE, RELU6, Translation
from edgekit.host.lower.tflite.values import (
    Order,
    Rule,
    Unsupported,
    attributes,
    names,
    type_of,
)
from edgekit.host.lower.tflite.writer import Quant, options

_FUSES = ("ADD", "SUB", "MUL", "DIV")
_INT8_BINARY = ("ADD", "SUB", "MUL")
_SIGMOID, _TANH = (
    Quant((1 / 256,), (-128,)),
    Quant((1 / 128,), (0,)),
)  # the only codes their int8 kernels give


class Floats:
    """Float operators chained on one tensor; each method gives the next tensor."""

    def __init__(self, t: Translation, tensor: int) -> None:
        self.t, self.tensor = t, tensor

    def _next(self, made: int | None) -> int:
        file = self.t.values.file
        return file.tensor("", file.shape(self.tensor), "float32") if made is None else made

    def apply(self, code: str, made: int | None = None, kind: str | None = None, **fields: object) -> Floats:
        """An operator of one tensor."""
        filled = self._next(made)
        self.t.values.emit(code, [self.tensor], filled, kind, **fields)
        return Floats(self.t, filled)

    def with_(self, code: str, other: float | Floats, made: int | None = None, act: int = NONE) -> Floats:
        """An operator of this tensor and a number or another tensor."""
        right = other.tensor if isinstance(other, Floats) else self.t.values.float_constant(other)
        filled = self._next(made)
        fields = {"fusedActivationFunction": act} if code in _FUSES else {}
        kind = "MaximumMinimumOptions" if code in ("MAXIMUM", "MINIMUM") else None
        self.t.values.emit(code, [self.tensor, right], filled, kind, **fields)
        return Floats(self.t, filled)


def floats(t: Translation, name: str) -> tuple[Floats, Order]:
    """A value as a float tensor to compute on, and its order of axes."""
    order = t.values.preferred([name])
    return Floats(t, t.values.at(name, order)), order


# --- two operands


def binary(code: str, t: Translation, node: ir.Node) -> None:
    """Add, Sub, Mul, Div and others, with broadcasting as ONNX has it."""
    target = t.target(node, fuse=code in _FUSES)
    rank = len(target.shape)
    given = [t.values.padded_rank(name, rank) for name in names(node)]
    if code == "POW" and t.values.is_constant(given[1]):  # its exponent may be of another type
        exponent = t.constant(given[1]).astype(t.values[given[0]].dtype)
        given[1] = t.values.add_constant(t.values.fresh("exponent"), exponent)
    order = t.values.preferred([name for name in given if t.values.shape(name) == target.shape] or given)
    codes = code in _INT8_BINARY and t.int8(target, given)
    tensors = [t.operand(name, order, codes=codes) for name in given]
    if code in _FUSES:
        made = t.output(target, order, codes=codes)
        t.values.emit(code, tensors, made, fusedActivationFunction=target.activation)
    else:
        kind = {"MAXIMUM": "MaximumMinimumOptions", "MINIMUM": "MaximumMinimumOptions"}.get(code)
        t.values.emit(code, tensors, t.result(node, order), kind)


def variadic(code: str, t: Translation, node: ir.Node) -> None:
    """Sum, Max, Min, Mean of any number of values."""
    target, given = t.target(node), names(node)
    rank = len(target.shape)
    wide = [t.values.padded_rank(name, rank) for name in given]
    order = t.values.preferred(wide)
    chain = Floats(t, t.values.at(wide[0], order))
    shape = [target.shape[axis] for axis in order]
    for name in wide[1:]:
        chain = chain.with_(
            code, Floats(t, t.values.at(name, order)), t.values.file.tensor("", shape, type_of(target.value))
        )
    made = t.result(node, order)
    if node.op_type == "Mean":
        chain.with_("MUL", 1 / len(given), made)
    else:
        t.values.reshape_into(chain.tensor, made)


def where(t: Translation, node: ir.Node) -> None:
    """Where."""
    rank = len(result_shape(node))
    given = [t.values.padded_rank(name, rank) for name in names(node)]
    order = t.values.preferred(given)
    made = t.result(node, order)
    tensors = [t.values.at(name, order) for name in given]
    t.values.file.operator("SELECT_V2", 1, tensors, [made], options("SelectV2Options"))


# --- one operand


def unary(code: str, kind: str | None, t: Translation, node: ir.Node) -> None:
    """An operator that TFLite has under another name, in float."""
    chain, order = floats(t, names(node)[0])
    t.values.emit(code, [chain.tensor], t.result(node, order), kind)


def activation(code: str, t: Translation, node: ir.Node) -> None:
    """Relu, HardSwish: in int8 with any scales."""
    source, target = names(node)[0], t.target(node)
    order = t.values.preferred([source])
    codes = t.int8(target, [source])
    x = t.operand(source, order, codes=codes)
    made = t.output(target, order, codes=codes)
    version = 2 if codes and code != "HARD_SWISH" else 1
    settings = options("HardSwishOptions") if code == "HARD_SWISH" else None
    t.values.file.operator(code, version, [x], [made], settings)


def squashing(code: str, scale: Quant, t: Translation, node: ir.Node) -> None:
    """Sigmoid, Tanh: their int8 kernels give one scale only, another is made of it."""
    source, target = names(node)[0], t.target(node)
    order = t.values.preferred([source])
    codes = t.int8(target, [source])
    if codes and target.quant is not None and not near(scale, target.quant):
        codes = False  # codes of another scale would be rounded twice
    x = t.operand(source, order, codes=codes)
    made = t.output(target, order, codes=codes)
    if codes:
        t.values.file.requantify(made, scale)
    t.values.file.operator(code, 2 if codes else 1, [x], [made])


def near(want: Quant, quant: Quant) -> bool:
    """Whether a scale is another but for rounding."""
    return want.zero == quant.zero and math.isclose(want.scale[0], quant.scale[0], rel_tol=1e-6)


def leaky_relu(t: Translation, node: ir.Node) -> None:
    """LeakyRelu."""
    source, target = names(node)[0], t.target(node)
    order = t.values.preferred([source])
    codes = t.int8(target, [source])
    x = t.operand(source, order, codes=codes)
    alpha = float(attributes(node).get("alpha", 0.01))
    t.values.emit("LEAKY_RELU", [x], t.output(target, order, codes=codes), "LeakyReluOptions", alpha=alpha)


def prelu(t: Translation, node: ir.Node) -> None:
    """PRelu, its slope a weight."""
    source, slope = names(node)[:2]
    target, rank = t.target(node), t.values.rank(source)
    slope = t.values.padded_rank(slope, rank)
    order = t.values.preferred([source])
    codes = t.int8(target, [source, slope])
    x, a = (t.operand(name, order, codes=codes) for name in (source, slope))
    file = t.values.file
    if file.shape(a)[:1] == (1,):
        a = t.values.reshaped(a, file.shape(a)[1:])  # the kernels want it without the batch
    file.operator("PRELU", 1, [x, a], [t.output(target, order, codes=codes)])


def clip(t: Translation, node: ir.Node) -> None:
    """Clip: a RELU where it is one, nothing where the codes cannot go further, else MAXIMUM and MINIMUM."""
    source, target = names(node)[0], t.target(node)
    low, high = t.clip_limits(node)
    quant, mine = t.values.quant_of(source), target.quant
    if mine is not None and quant is not None and mine.same(quant) and _reaches(mine, low, high):
        t.values.alias(made_by(node), source)
        return
    order = t.values.preferred([source])
    code = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}.get((low, high))
    if code is not None:
        codes = t.int8(target, [source])
        x = t.operand(source, order, codes=codes)
        t.values.file.operator(code, 2 if codes else 1, [x], [t.output(target, order, codes=codes)])
        return
    dtype = t.values[source].dtype
    if dtype not in ("float32", "float16"):
        raise Unsupported(f"of {dtype}")
    chain, order = floats(t, source)
    made = t.result(node, order)
    limits = [(c, v) for c, v in (("MAXIMUM", low), ("MINIMUM", high)) if math.isfinite(v)]
    for index, (operator, limit) in enumerate(limits, start=1):
        chain = chain.with_(operator, float(limit), made if index == len(limits) else None)
    if not limits:
        t.values.reshape_into(chain.tensor, made)


def _reaches(quant: Quant, low: float, high: float) -> bool:
    """Whether no code stands for a number outside the limits."""
    scale, zero = quant.scale[0], quant.zero[0]
    return low <= scale * (-128 - zero) + 1e-6 and scale * (127 - zero) - 1e-6 <= high


def hard_sigmoid(t: Translation, node: ir.Node) -> None:
    """HardSigmoid: relu6(6 (alpha x + beta)) / 6."""
    told = attributes(node)
    alpha, beta = 6 * float(told.get("alpha", 0.2)), 6 * float(told.get("beta", 0.5))
    chain, order = floats(t, names(node)[0])
    if abs(alpha - 1.0) > 1e-6:
        chain = chain.with_("MUL", alpha)
    chain.with_("ADD", beta, act=RELU6).with_("MUL", 1 / 6, t.result(node, order))


def elu(t: Translation, node: ir.Node) -> None:
    """Elu: TFLite's has alpha 1; another is relu(x) + alpha (exp(min(x, 0)) - 1)."""
    alpha = float(attributes(node).get("alpha", 1.0))
    chain, order = floats(t, names(node)[0])
    made = t.result(node, order)
    if alpha == 1.0:
        chain.apply("ELU", made, "")
    else:
        _scaled_elu(chain, alpha, 1.0, made)


def selu(t: Translation, node: ir.Node) -> None:
    """Selu."""
    told = attributes(node)
    chain, order = floats(t, names(node)[0])
    alpha, gamma = float(told.get("alpha", 1.6732632)), float(told.get("gamma", 1.0507010))
    _scaled_elu(chain, alpha, gamma, t.result(node, order))


def _scaled_elu(chain: Floats, alpha: float, gamma: float, made: int) -> None:
    below = (
        chain.with_("MINIMUM", 0.0)
        .apply("EXP", kind="ExpOptions")
        .with_("SUB", 1.0)
        .with_("MUL", alpha * gamma)
    )
    above = chain.apply("RELU", kind="")
    above = above if gamma == 1.0 else above.with_("MUL", gamma)
    above.with_("ADD", below, made)


def gelu(t: Translation, node: ir.Node) -> None:
    """Gelu, exact or by tanh."""
    chain, order = floats(t, names(node)[0])
    tanh = attributes(node).get("approximate", "none") == "tanh"
    chain.apply("GELU", t.result(node, order), approximate=tanh)


def erf(t: Translation, node: ir.Node) -> None:
    """Erf: TFLite has none; Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most."""
    chain, order = floats(t, names(node)[0])
    size = chain.apply("ABS", kind="AbsOptions")
    t_ = size.with_("MUL", 0.3275911).with_("ADD", 1.0)
    one = Floats(t, t.values.float_constant(1.0))
    file = t.values.file
    u = one.with_("DIV", t_, file.tensor("", file.shape(chain.tensor), "float32"))
    series = u.with_("MUL", 1.061405429)
    for term in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series.with_("ADD", term).with_("MUL", u)
    bell = size.with_("MUL", size).with_("MUL", -1.0).apply("EXP", kind="ExpOptions")
    tail = series.with_("MUL", bell)
    away = tail.with_("MUL", -1.0).with_("ADD", 1.0)
    chain.apply("SIGN", kind="SignOptions").with_("MUL", away, t.result(node, order))


def softplus(t: Translation, node: ir.Node) -> None:
    """Softplus: relu(x) + log(1 + exp(-|x|))."""
    chain, order = floats(t, names(node)[0])
    _softplus(chain, t.result(node, order))


def _softplus(chain: Floats, made: int | None = None) -> Floats:
    tail = chain.apply("ABS", kind="AbsOptions").with_("MUL", -1.0).apply("EXP", kind="ExpOptions")
    tail = tail.with_("ADD", 1.0).apply("LOG", kind="")
    return chain.apply("RELU", kind="").with_("ADD", tail, made)


def mish(t: Translation, node: ir.Node) -> None:
    """Mish: x tanh(softplus(x))."""
    chain, order = floats(t, names(node)[0])
    _softplus(chain).apply("TANH", kind="").with_("MUL", chain, t.result(node, order))


def softsign(t: Translation, node: ir.Node) -> None:
    """Softsign: x / (1 + |x|)."""
    chain, order = floats(t, names(node)[0])
    below = chain.apply("ABS", kind="AbsOptions").with_("ADD", 1.0)
    chain.with_("DIV", below, t.result(node, order))


def reciprocal(t: Translation, node: ir.Node) -> None:
    """Reciprocal."""
    chain, order = floats(t, names(node)[0])
    one = Floats(t, t.values.float_constant(1.0))
    one.with_("DIV", chain, t.result(node, order))


def not_(t: Translation, node: ir.Node) -> None:
    """Not."""
    order = t.values.preferred(names(node))
    x = t.values.at(names(node)[0], order)
    t.values.file.operator("LOGICAL_NOT", 1, [x], [t.result(node, order)], options("LogicalNotOptions"))


_UNARY = {
    "Abs": ("ABS", "AbsOptions"),
    "Ceil": ("CEIL", ""),
    "Cos": ("COS", "CosOptions"),
    "Exp": ("EXP", "ExpOptions"),
    "Floor": ("FLOOR", ""),
    "Log": ("LOG", ""),
    "Neg": ("NEG", "NegOptions"),
    "Round": ("ROUND", ""),
    "Sin": ("SIN", ""),
    "Sign": ("SIGN", "SignOptions"),
    "Sqrt": ("SQRT", ""),
}
_BINARY = {
    "Add": "ADD",
    "Sub": "SUB",
    "Mul": "MUL",
    "Div": "DIV",
    "Pow": "POW",
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "And": "LOGICAL_AND",
    "Or": "LOGICAL_OR",
}
RULES: Mapping[str, Rule] = {
    **{op: functools.partial(unary, *row) for op, row in _UNARY.items()},
    **{op: functools.partial(binary, code) for op, code in _BINARY.items()},
    "Sum": functools.partial(variadic, "ADD"),
    "Mean": functools.partial(variadic, "ADD"),
    "Max": functools.partial(variadic, "MAXIMUM"),
    "Min": functools.partial(variadic, "MINIMUM"),
    "Where": where,
    "Not": not_,
    "Relu": functools.partial(activation, "RELU"),
    "HardSwish": functools.partial(activation, "HARD_SWISH"),
    "Sigmoid": functools.partial(squashing, "LOGISTIC", _SIGMOID),
    "Tanh": functools.partial(squashing, "TANH", _TANH),
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
    "Clip": clip,
    "HardSigmoid": hard_sigmoid,
    "Elu": elu,
    "Selu": selu,
    "Gelu": gelu,
    "Erf": erf,
    "Softplus": softplus,
    "Mish": mish,
    "Softsign": softsign,
    "Reciprocal": reciprocal,
}
