"""Nodes of a Graph computed by torch, so that gradients reach the weights that they read.

Each follows the definition of its op in the ONNX standard (opset 24).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional

from omnigraph.passes.matching import standard

Tensor = torch.Tensor
#: Computes the outputs of a node from its inputs, None where one is left out.
Compute = Callable[[ir.Node, Sequence[Any]], Sequence[Tensor | None]]


def can_compute(node: ir.Node) -> bool:
    """Whether a node is of an op, and has a form, that `compute` knows."""
    if not standard(node, node.op_type) or node.op_type not in _OPS:
        return False
    if node.op_type == "Attention":
        attributes, inputs = node.attributes, [v is not None for v in node.inputs]
        others = any(inputs[6:]) or any(v.uses() for v in node.outputs[3:])
        return not others and attributes.get_float("softcap", 0.0) == 0.0
    return True


def compute(node: ir.Node, inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The outputs of a node, in the types and shapes that onnxruntime gives."""
    return _OPS[node.op_type](node, inputs)


def _one(function: Callable[..., Tensor]) -> Compute:
    return lambda _, inputs: [function(*inputs)]


def _ints(tensor: Tensor) -> list[int]:
    return [int(number) for number in tensor.reshape(-1).tolist()]


def _gemm(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    a, b = inputs[:2]
    a = a.T if node.attributes.get_int("transA", 0) else a
    b = b.T if node.attributes.get_int("transB", 0) else b
    product = (a @ b) * node.attributes.get_float("alpha", 1.0)
    if len(inputs) > 2 and inputs[2] is not None:
        product = product + inputs[2] * node.attributes.get_float("beta", 1.0)
    return [product]


def _gelu(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    kind = node.attributes.get_string("approximate", "none")
    return [functional.gelu(inputs[0], approximate=kind)]


def _swish(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    x = inputs[0]
    return [x * torch.sigmoid(x * node.attributes.get_float("alpha", 1.0))]


def _layer_norm(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    x, scale = inputs[:2]
    axes = _from(node.attributes.get_int("axis", -1), x.ndim)
    centred = x - x.mean(axes, keepdim=True)
    return [_scaled(node, centred, axes) * scale + (inputs[2] if len(inputs) > 2 else 0)]


def _rms_norm(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    x, scale = inputs[:2]
    return [_scaled(node, x, _from(node.attributes.get_int("axis", -1), x.ndim)) * scale]


def _from(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(range(axis % rank, rank))


def _scaled(node: ir.Node, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon)


def _reshape(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    x, shape = inputs[0], _ints(inputs[1])
    if not node.attributes.get_int("allowzero", 0):
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return [x.reshape(shape)]


def _transpose(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    x = inputs[0]
    return [x.permute(*node.attributes.get_ints("perm", tuple(reversed(range(x.ndim)))))]


def _unsqueeze(_: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    x, axes = inputs[0], _ints(inputs[1])
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return [x]


def _squeeze(_: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    x = inputs[0]
    if len(inputs) < 2 or inputs[1] is None:
        return [x.squeeze()]
    return [x.squeeze(tuple(a % x.ndim for a in _ints(inputs[1])))]


def _concat(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    return [torch.cat(list(inputs), node.attributes.get_int("axis", 0))]


def _split(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    x, axis = inputs[0], node.attributes.get_int("axis", 0)
    if len(inputs) > 1 and inputs[1] is not None:
        return x.split(_ints(inputs[1]), axis)
    parts = len(node.outputs)
    return x.split(math.ceil(x.shape[axis] / parts), axis)


def _slice(_: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    x, starts, ends = inputs[0], _ints(inputs[1]), _ints(inputs[2])
    axes_, steps_ = (*inputs[3:], None, None)[:2]
    axes = list(range(len(starts))) if axes_ is None else _ints(axes_)
    steps = [1] * len(starts) if steps_ is None else _ints(steps_)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        kept = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(kept), dtype=torch.int64))
    return [x]


def _gather(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    x, indices = inputs[0], inputs[1]
    axis = node.attributes.get_int("axis", 0) % x.ndim
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    found = x.index_select(axis, indices.reshape(-1))
    return [found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])]


def _expand(_: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    shape = torch.broadcast_shapes(inputs[0].shape, _ints(inputs[1]))
    return [inputs[0].expand(shape)]


def _softmax(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    return [inputs[0].softmax(node.attributes.get_int("axis", -1))]


def _attention(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor | None]:
    """Attention over [batch, heads, sequence, size], or [batch, sequence, heads · size]."""
    query, key, value, mask, past_key, past_value = (*inputs, *[None] * (6 - len(inputs)))[:6]
    attributes, folded = node.attributes, query.ndim == 3
    if folded:
        query = _heads(query, attributes.get_int("q_num_heads", 1))
        key, value = (_heads(x, attributes.get_int("kv_num_heads", 1)) for x in (key, value))
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    groups = query.shape[1] // key.shape[1]
    wide_key, wide_value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scale = attributes.get_float("scale", 1 / math.sqrt(query.shape[-1]))
    scores = query @ wide_key.transpose(-1, -2) * scale
    hidden = torch.zeros(scores.shape[-2:], dtype=torch.bool)
    if attributes.get_int("is_causal", 0):
        hidden = torch.ones_like(hidden).triu(past + 1)
    if mask is not None and mask.dtype == torch.bool:
        hidden = hidden | ~mask
    elif mask is not None:
        hidden = hidden | (mask == -math.inf)
        scores = scores + mask.masked_fill(mask == -math.inf, 0)
    # A query that sees nothing has no weights: it gets 0, and no gradient that is not a number.
    weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1)
    result = weights.masked_fill(hidden, 0) @ wide_value
    if folded:
        result = result.transpose(1, 2).flatten(2)
    return [result, key, value]


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _rotary(node: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    """RotaryEmbedding of [batch, heads, sequence, size], or [batch, sequence, heads · size]."""
    x, cosine, sine, positions = (*inputs, None)[:4]
    attributes, folded = node.attributes, x.ndim == 3
    if folded:
        x = _heads(x, attributes.get_int("num_heads", 1))
    if positions is not None:
        cosine, sine = cosine[positions], sine[positions]
    turned = attributes.get_int("rotary_embedding_dim", 0) or x.shape[-1]
    cosine, sine = (t[..., : turned // 2].unsqueeze(1) for t in (cosine, sine))
    moved, rest = x[..., :turned], x[..., turned:]
    if attributes.get_int("interleaved", 0):
        first, second = moved[..., 0::2], moved[..., 1::2]
    else:
        first, second = moved.chunk(2, -1)
    real, imaginary = first * cosine - second * sine, first * sine + second * cosine
    if attributes.get_int("interleaved", 0):
        moved = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        moved = torch.cat([real, imaginary], -1)
    x = torch.cat([moved, rest], -1)
    return [x.transpose(1, 2).flatten(2) if folded else x]


def _clip(_: ir.Node, inputs: Sequence[Any]) -> Sequence[Tensor]:
    low, high = (*inputs[1:], None, None)[:2]
    return [inputs[0].clamp(low, high)]


_OPS: Mapping[str, Compute] = {
    "Add": _one(torch.add),
    "Sub": _one(torch.sub),
    "Mul": _one(torch.mul),
    "Div": _one(torch.div),
    "MatMul": _one(torch.matmul),
    "Neg": _one(torch.neg),
    "Sqrt": _one(torch.sqrt),
    "Tanh": _one(torch.tanh),
    "Sigmoid": _one(torch.sigmoid),
    "Relu": _one(torch.relu),
    "Erf": _one(torch.erf),
    "Where": _one(torch.where),
    "Identity": _one(lambda x: x),
    "Gemm": _gemm,
    "Gelu": _gelu,
    "Swish": _swish,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Softmax": _softmax,
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "Clip": _clip,
}
