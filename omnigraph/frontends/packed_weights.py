"""Weights that others quantized, as GPTQ and AWQ pack them in safetensors.

Both keep integers ``q`` in words of int32, with scales ``s`` and zero points ``z`` for each group
of terms: a weight is ``(q - z) * s``. They differ in the order of the integers in a word.

- GPTQ (GPTQModel, ``PackableQuantLinear``): ``qweight`` packs terms and ``qzeros`` packs channels,
  the first in the lowest bits. ``g_idx`` names the group of each term. Format ``gptq`` stores zero
  points less 1, modulo the number of codes; ``gptq_v2`` stores them as they are.
- AWQ, version GEMM (AutoAWQ, ``WQLinear_GEMM``): both pack channels, of four bits, and a word has
  the channels 0, 2, 4, 6, 1, 3, 5, 7 from its lowest bits on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from omnigraph.errors import UsageError

#: The channel of a word of AWQ that each four bits hold, from the lowest on.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_WORD = 32
#: Widths that fill a word.
WIDTHS = (2, 4, 8)


@dataclass(frozen=True, eq=False)
class Packing:
    """How a folder packs its weights.

    Args:
        method: "gptq" or "awq".
        bits: of most layers; a layer of GPTQ may have its own.
        less_one: zero points are stored less 1.
        act_order: whether a group may hold any terms, so that ``g_idx`` is needed.
    """

    method: str
    bits: int
    less_one: bool = False
    act_order: bool = False


@dataclass(frozen=True, eq=False)
class GroupedWeight:
    """The integers of one linear layer with K terms and N channels, in G groups of terms.

    Args:
        quantized: uint8 [K, N], terms of a group side by side.
        scales: float32 [G, N].
        zero_points: uint8 [G, N].
        block: terms in a group; the last group may have fewer.
        order: int64 [K], the term of the activation that each row multiplies; None where that is
            the row's own index.
    """

    quantized: Tensor
    scales: Tensor
    zero_points: Tensor
    block: int
    order: Tensor | None = None


def unpack(path: str, packed: Mapping[str, Tensor], packing: Packing, terms: int) -> GroupedWeight:
    """The integers of one layer.

    Args:
        path: of the layer, for errors.
        packed: ``qweight`` int32, ``qzeros`` int32, ``scales`` float, and with GPTQ ``g_idx``.
        terms: K, as the model has it.

    Raises:
        UsageError: a tensor is missing, or not of the shape that its format says.
    """
    _check_present(path, packed, packing)
    scales = packed["scales"]
    if scales.ndim != 2 or 0 in scales.shape:
        raise _damaged(path, "scales", "two axes, [groups, channels]", list(scales.shape))
    groups, channels = scales.shape
    if packing.method == "awq":
        bits, order = packing.bits, _AWQ_ORDER
        _check(path, "qweight", packed["qweight"], (terms, _words(channels, bits)))
        quantized = _along_channels(packed["qweight"], bits, order)[:, :channels]
        group_of = torch.arange(terms) // -(-terms // groups)
    else:
        bits, order = _width(path, packed["qweight"], packing, terms, channels), None
        rows = _along_channels(packed["qweight"].T, bits, None)
        quantized = rows.T[:terms]
        group_of = _groups_of_terms(path, packed.get("g_idx"), terms, groups)
    _check(path, "qzeros", packed["qzeros"], (groups, _words(channels, bits)))
    zeros = _along_channels(packed["qzeros"], bits, order)[:, :channels]
    if packing.less_one:
        zeros = (zeros.to(torch.int16) + 1).remainder(1 << bits).to(torch.uint8)
    block, sorted_terms = _blocks(path, group_of, groups)
    if sorted_terms is not None:
        quantized = quantized[sorted_terms]
    parts = quantized.contiguous(), scales.float(), zeros.contiguous()
    return GroupedWeight(*parts, block, sorted_terms)


def _words(count: int, bits: int) -> int:
    """The words of int32 that so many integers fill."""
    return -(-count * bits // _WORD)


def _along_channels(words: Tensor, bits: int, order: tuple[int, ...] | None) -> Tensor:
    """int32 [R, W] to uint8 [R, W * 32 / bits], each word's integers side by side.

    Args:
        order: the place of each of them, from the lowest bits on; None is in order.
    """
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    found = torch.empty(*words.shape, len(shifts), dtype=torch.uint8)
    for index, shift in enumerate(shifts):
        place = order[index] if order is not None else index
        found[:, :, place] = ((words >> shift) & ((1 << bits) - 1)).to(torch.uint8)
    return found.flatten(1)


def _width(path: str, qweight: Tensor, packing: Packing, terms: int, channels: int) -> int:
    """The bits of a layer of GPTQ, which its number of words says."""
    for bits in dict.fromkeys((packing.bits, *WIDTHS)):
        if tuple(qweight.shape) == (_words(terms, bits), channels):
            return bits
    expected = f"int32 [{_words(terms, packing.bits)}, {channels}], {terms} terms of "
    raise _damaged(path, "qweight", f"{expected}{packing.bits} bits", list(qweight.shape))


def _groups_of_terms(path: str, g_idx: Tensor | None, terms: int, groups: int) -> Tensor:
    """int64 [K], the group of each term."""
    if g_idx is None:
        return torch.arange(terms) // -(-terms // groups)
    found = g_idx.long()
    if tuple(found.shape) != (terms,):
        raise _damaged(path, "g_idx", f"[{terms}], a group for each term", list(found.shape))
    if int(found.min()) < 0 or int(found.max()) >= groups:
        span = f"{int(found.min())} to {int(found.max())}"
        raise _damaged(path, "g_idx", f"groups from 0 to {groups - 1}, as scales has", span)
    return found


def _blocks(path: str, group_of: Tensor, groups: int) -> tuple[int, Tensor | None]:
    """Terms in a group, and the order of terms in which groups follow each other."""
    sizes = torch.bincount(group_of, minlength=groups).tolist()
    block = sizes[0]
    if any(size != block for size in sizes[:-1]) or not 0 < sizes[-1] <= block:
        raise UsageError(
            f"The groups of {path!r} are not of one size",
            expected=f"{block} terms in each of its {groups} groups, as in the first one",
            found=f"{min(sizes)} to {max(sizes)} terms",
            hint="g_idx or scales are damaged, or belong to another group_size",
        )
    if bool((group_of[1:] >= group_of[:-1]).all()):
        return block, None
    return block, torch.argsort(group_of, stable=True)


def _check_present(path: str, packed: Mapping[str, Tensor], packing: Packing) -> None:
    needed = ["qweight", "qzeros", "scales"] + ["g_idx"] * packing.act_order
    if missing := [name for name in needed if name not in packed]:
        why = "act-order needs g_idx, " if missing == ["g_idx"] else ""
        raise _damaged(path, missing[0], f"{why}one of {', '.join(needed)}", "no such tensor")
    for name in ("qweight", "qzeros"):
        if packed[name].dtype != torch.int32 or packed[name].ndim != 2:
            found = f"{str(packed[name].dtype).removeprefix('torch.')} {list(packed[name].shape)}"
            raise _damaged(path, name, "int32 of two axes", found)


def _check(path: str, name: str, tensor: Tensor, shape: tuple[int, int]) -> None:
    if tuple(tensor.shape) != shape:
        raise _damaged(path, name, f"int32 {list(shape)}", list(tensor.shape))


def _damaged(path: str, name: str, expected: str, found: object) -> UsageError:
    return UsageError(
        f"The packed weight of {path!r} cannot be read: its {name}",
        expected=expected,
        found=found,
        hint="copy the folder again; its quantization_config must be the one it was packed with",
    )
