"""Elementwise operations as C expressions, which call functions of kernels.c."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Node

aten = torch.ops.aten
Say = Callable[[Any], str]


@dataclass(frozen=True)
class Rule:
    write: Callable[..., str]

    def text(self, say: Say, node: Node) -> str:
        return self.write(say, *node.args, **node.kwargs)


def literal(value: Any) -> str:
    """Write a number as a C constant: a bool as an int, all else as a float, infinities as the largest float.

    Raises:
        NotImplementedError: the value is NaN.
    """
    if isinstance(value, bool):
        return "1" if value else "0"
    value = float(np.float32(value))
    if math.isinf(value):
        value = math.copysign(float(np.finfo(np.float32).max), value)
    if math.isnan(value):
        raise NotImplementedError("with a constant that is no number")
    text = f"{np.float32(value)!s}"
    text = text if any(c in text for c in ".e") else f"{text}.0"
    return f"({text}f)" if text.startswith("-") else f"{text}f"


def _simple(template: str) -> Rule:
    """A rule from a template in which {0}, {1}, … are the arguments."""
    return Rule(lambda say, *args, **_: template.format(*(say(arg) for arg in args)))


def _sum(sign: str, *, turned: bool = False) -> Rule:
    def write(say: Say, a: Any, b: Any, alpha: Any = 1) -> str:
        a, b = (b, a) if turned else (a, b)
        if alpha == 1:
            return f"{say(a)} {sign} {say(b)}"
        return f"{say(a)} {sign} {literal(alpha)} * {say(b)}"

    return Rule(write)


def _divided(say: Say, a: Any, b: Any, rounding_mode: Any = None) -> str:
    if rounding_mode is not None:
        raise NotImplementedError("with a rounding mode")
    return f"to_float({say(a)}) / {say(b)}"  # conditions are int, whose quotient C would truncate


def _power(say: Say, a: Any, exponent: Any) -> str:
    x = say(a)
    if exponent in (1, 2, 3, 4):
        return " * ".join([x] * int(exponent))
    if exponent == -1:
        return f"1.0f / {x}"
    if exponent == 0.5:
        return f"root({x})"
    if exponent == -0.5:
        return f"1.0f / root({x})"
    if exponent == -2:
        return f"1.0f / ({x} * {x})"
    if exponent == int(exponent):  # has a value for negative numbers, which have no logarithm
        raise NotImplementedError(f"with exponent {exponent}")
    power = f"exponential({literal(exponent)} * logarithm({x}))"
    return f"choose({x} > 0.0f, {power}, 0.0f)" if exponent > 0 else power


def _clamp(say: Say, x: Any, low: Any = None, high: Any = None) -> str:
    text = say(x)
    if low is not None:
        text = f"larger({text}, {say(low)})"
    return f"smaller({text}, {say(high)})" if high is not None else text


def _gelu(say: Say, x: Any, approximate: str = "none") -> str:
    v = say(x)
    if approximate == "none":
        return f"0.5f * {v} * (1.0f + error_function({v} * 0.70710678f))"
    return f"0.5f * {v} * (1.0f + tanh_of(0.79788456f * ({v} + 0.044715f * {v} * {v} * {v})))"


def _elu(say: Say, x: Any, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> str:
    v = say(x)
    negative = f"{literal(alpha)} * expm1_of({v} * {literal(input_scale)})"
    return f"{literal(scale)} * choose({v} > 0.0f, {v}, {negative})"


def _leaky(say: Say, x: Any, slope: Any = 0.01) -> str:
    return f"choose({say(x)} > 0.0f, {say(x)}, {literal(slope)} * {say(x)})"


def _cast(say: Say, x: Any, dtype: Any = None, **_: Any) -> str:
    if dtype not in (None, torch.float32, torch.float64):
        raise NotImplementedError(f"to {dtype}")
    return f"to_float({say(x)})"


def _softplus(say: Say, x: Any, beta: Any = 1, threshold: Any = 20) -> str:
    v, b = say(x), literal(beta)
    return f"choose({v} * {b} > {literal(threshold)}, {v}, log1p_of(exponential({v} * {b})) / {b})"


POINTWISE: dict[Any, Rule] = {
    aten.add.Tensor: _sum("+"),
    aten.add.Scalar: _sum("+"),
    aten.sub.Tensor: _sum("-"),
    aten.sub.Scalar: _sum("-"),
    aten.rsub.Scalar: _sum("-", turned=True),
    aten.rsub.Tensor: _sum("-", turned=True),
    aten.mul.Tensor: _simple("{0} * {1}"),
    aten.mul.Scalar: _simple("{0} * {1}"),
    aten.div.Tensor: Rule(_divided),
    aten.div.Scalar: Rule(_divided),
    aten.neg.default: _simple("-{0}"),
    aten.abs.default: _simple("choose({0} < 0.0f, -{0}, {0})"),
    aten.reciprocal.default: _simple("1.0f / {0}"),
    aten.relu.default: _simple("choose({0} > 0.0f, {0}, 0.0f)"),
    aten.sigmoid.default: _simple("sigmoid({0})"),
    aten.silu.default: _simple("{0} * sigmoid({0})"),
    aten.silu_backward.default: _simple("{0} * swish_slope({1})"),
    aten.tanh.default: _simple("tanh_of({0})"),
    aten.exp.default: _simple("exponential({0})"),
    aten.expm1.default: _simple("expm1_of({0})"),
    aten.log.default: _simple("logarithm({0})"),
    aten.log1p.default: _simple("log1p_of({0})"),
    aten.sqrt.default: _simple("root({0})"),
    aten.rsqrt.default: _simple("1.0f / root({0})"),
    aten.erf.default: _simple("error_function({0})"),
    aten.gelu.default: Rule(_gelu),
    aten.elu.default: Rule(_elu),
    aten.leaky_relu.default: Rule(_leaky),
    aten.hardtanh.default: Rule(lambda say, x, a=-1.0, b=1.0: _clamp(say, x, a, b)),
    aten.clamp.default: Rule(_clamp),
    aten.clamp_min.default: Rule(lambda say, x, a: _clamp(say, x, a)),
    aten.clamp_max.default: Rule(lambda say, x, b: _clamp(say, x, None, b)),
    aten.maximum.default: _simple("larger({0}, {1})"),
    aten.minimum.default: _simple("smaller({0}, {1})"),
    aten.softplus.default: Rule(_softplus),
    aten.pow.Tensor_Scalar: Rule(_power),
    aten.square.default: _simple("{0} * {0}"),
    aten.sign.default: _simple("(choose({0} > 0.0f, 1.0f, 0.0f) - choose({0} < 0.0f, 1.0f, 0.0f))"),
    aten.sgn.default: _simple("(choose({0} > 0.0f, 1.0f, 0.0f) - choose({0} < 0.0f, 1.0f, 0.0f))"),
    aten.where.self: _simple("choose({0}, {1}, {2})"),
    aten.where.ScalarSelf: _simple("choose({0}, {1}, {2})"),
    aten.where.ScalarOther: _simple("choose({0}, {1}, {2})"),
    aten.eq.Scalar: _simple("({0} == {1})"),
    aten.ne.Scalar: _simple("({0} != {1})"),
    aten.gt.Scalar: _simple("({0} > {1})"),
    aten.ge.Scalar: _simple("({0} >= {1})"),
    aten.lt.Scalar: _simple("({0} < {1})"),
    aten.le.Scalar: _simple("({0} <= {1})"),
    aten.eq.Tensor: _simple("({0} == {1})"),
    aten.ne.Tensor: _simple("({0} != {1})"),
    aten.gt.Tensor: _simple("({0} > {1})"),
    aten.ge.Tensor: _simple("({0} >= {1})"),
    aten.lt.Tensor: _simple("({0} < {1})"),
    aten.le.Tensor: _simple("({0} <= {1})"),
    aten.bitwise_and.Tensor: _simple("(({0} != 0) & ({1} != 0))"),
    aten.bitwise_or.Tensor: _simple("(({0} != 0) | ({1} != 0))"),
    aten.logical_and.default: _simple("(({0} != 0) & ({1} != 0))"),
    aten.logical_or.default: _simple("(({0} != 0) | ({1} != 0))"),
    aten.logical_not.default: _simple("({0} == 0)"),
    aten.bitwise_not.default: _simple("({0} == 0)"),
    aten._to_copy.default: Rule(_cast),
}
"""By operation; arguments that are images or constants are said as x0, t1, 0.5f."""

OF_BOOLEANS = (aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_not.default)
OR = POINTWISE[aten.logical_or.default]
KINDS = (torch.bool, torch.int32, torch.int64, torch.float32, torch.float64)  # float in C; others are narrower


def rule_of(node: Node) -> Rule:
    """Return the rule for an operation, given the dtype of its result: in C, booleans are int and all numbers float.

    Raises:
        NotImplementedError: the C code would compute something else.
    """
    kind = node.meta["val"].dtype
    if kind not in KINDS:
        raise NotImplementedError(f"in {kind}")
    if kind is torch.bool and node.target in (aten.add.Tensor, aten.add.Scalar):
        return OR
    if kind is not torch.bool and node.target in OF_BOOLEANS:
        raise NotImplementedError("of integers")
    return POINTWISE[node.target]
