"""Hugging Face folders that GPTQ or AWQ quantized: their model, with the integers as they are.

transformers itself loads such folders with packages that unpack for a GPU. Here each packed linear
layer becomes a `GroupedLinear` instead, through the interface that transformers has for quantizers
of others (``HfQuantizer``), so that names and all other weights are read as in any folder.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnigraph.errors import UsageError, suggest
from omnigraph.frontends.grouped_linear import GroupedLinear
from omnigraph.frontends.json_fields import read_json
from omnigraph.frontends.packed_weights import WIDTHS, Packing, unpack

#: The last part of the names of packed tensors.
PARTS = ("qweight", "qzeros", "scales", "g_idx")
#: By method, the formats that are read, the one without a name first.
_FORMATS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
_WIDTHS = {"gptq": WIDTHS, "awq": (4,)}
_HINT = (
    "gptq (2, 4 or 8 bits; checkpoint_format gptq or gptq_v2) and awq (4 bits, version gemm) are "
    "read; otherwise export the folder that it was quantized from, with --precision int4-weights"
)
#: By their names in safetensors; all else is read as float32.
_INTEGERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
#: How transformers knows the quantizer below.
_NAME = "omnigraph"


def packing_of(folder: Path, config: Any) -> Packing | None:
    """How the weights of a folder are packed; None where they are floats.

    Args:
        config: as transformers reads it.

    Raises:
        UsageError: they are quantized by a method, or in a format, that is not read.
    """
    fields = next(filter(None, map(_quantization, (config, config.get_text_config()))), None)
    if fields is None:
        return None
    method = str(fields.get("quant_method") or _unnamed(fields)).lower()
    if method not in _FORMATS:
        raise UsageError(
            f"The weights of {folder} are quantized by a method that is not read",
            expected=f"quant_method {' or '.join(_FORMATS)} in its config.json",
            found=method,
            hint=suggest(method, _FORMATS, _HINT),
        )
    names, formats = ("version", "checkpoint_format", "format"), _FORMATS[method]
    form = next((str(fields[name]).lower() for name in names if fields.get(name)), formats[0])
    if fields.get("is_marlin_format"):
        form = "marlin"
    if "llm-awq" in str(fields.get("backend")).lower():
        form = "llm-awq"
    bits = fields.get("bits", fields.get("w_bit", 4))
    if form not in formats or bits not in _WIDTHS[method]:
        widths = ", ".join(map(str, _WIDTHS[method]))
        raise UsageError(
            f"The weights of {folder} are packed by {method} in a form that is not read",
            expected=f"format {' or '.join(formats)} with bits of {widths}",
            found=f"format {form} with {bits} bits",
            hint=_HINT,
        )
    return Packing(method, bits, form == "gptq", bool(fields.get("desc_act")) and method == "gptq")


def load_packed(kind: Any, folder: Path, config: Any, packing: Packing, **options: Any) -> Any:
    """What ``kind.from_pretrained`` gives, each packed linear layer a `GroupedLinear`.

    Args:
        config: of the folder; what it says of quantization is removed.
        options: of ``from_pretrained``.

    Raises:
        UsageError: a packed layer is damaged.
    """
    for part in (config, config.get_text_config()):
        if _quantization(part) is not None:
            del part.quantization_config
    quantization = _quantizer()(folder, packing)
    model, found = kind.from_pretrained(
        folder, config=config, quantization_config=quantization, **options
    )
    model.hf_quantizer.remove_quantization_config(model)
    return model, found


def check_all_taken(folder: Path, unexpected: set[str], name: str) -> None:
    """Refuse a folder with packed tensors that no layer took.

    Args:
        unexpected: tensors that the model has no place for.

    Raises:
        UsageError: there are such tensors.
    """
    left = sorted(key for key in unexpected if key.rpartition(".")[2] in PARTS)
    if left:
        raise UsageError(
            f"{folder} has packed weights that no linear layer of {name} takes",
            expected="each of them at the path of a linear layer",
            found=", ".join(left[:3]) + (" and more" if left[3:] else ""),
            hint="experts that transformers keeps in one tensor, and activations that AWQ scales, "
            "are not read; export the folder that it was quantized from",
        )


def _quantization(config: Any) -> Mapping[str, Any] | None:
    found = getattr(config, "quantization_config", None)
    return None if found is None else found if isinstance(found, Mapping) else found.to_dict()


def _unnamed(fields: Mapping[str, Any]) -> str:
    """The method of a configuration that does not name one, as bitsandbytes once wrote it."""
    old = fields.get("load_in_8bit") or fields.get("load_in_4bit")
    return "bitsandbytes" if old else "one without a quant_method"


# Loading ------------------------------------------------------------------------------------------


class _Packed(nn.Module):
    """The place of a packed layer's tensors, until they are loaded and unpacked.

    Args:
        tensors: shape and dtype of each, by the last part of its name.
        terms: K of the linear layer.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], terms: int) -> None:
        super().__init__()
        self.terms = terms
        # Some models initialize the weights of their layers by name, whatever these are.
        self.weight = torch.empty(0, device="cpu")
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def unpacked(self, path: str, packing: Packing) -> GroupedLinear:
        tensors = dict(self.named_buffers())
        bias = tensors.pop("bias", None)
        weight = unpack(path, tensors, packing, self.terms)
        # Old versions of AutoGPTQ write a bias of zeros for layers that have none.
        return GroupedLinear(weight, bias if bias is not None and bool(bias.any()) else None)


def _place_packed_layers(model: nn.Module, folder: Path) -> None:
    """Put a `_Packed` in the place of each linear layer that the folder has packed."""
    from transformers.pytorch_utils import Conv1D

    layers = _packed_layers(folder)
    for path, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        named = [layer for layer in layers if _same_layer(layer, path)]
        if named:
            terms = module.weight.shape[1 if isinstance(module, nn.Linear) else 0]
            tensors = layers[max(named, key=lambda layer: min(len(layer), len(path)))]
            model.set_submodule(path, _Packed(tensors, terms))


def _same_layer(one: str, other: str) -> bool:
    """Whether two paths are of one layer: below a head, a model has one more name before them."""
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def _packed_layers(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Empty tensors of the shapes of each packed layer's, by its path in the files."""
    from safetensors import safe_open

    index = read_json(folder / "model.safetensors.index.json")
    files = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
    found: dict[str, dict[str, torch.Tensor]] = {}
    for file in files:
        with safe_open(folder / file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - it is no mapping
                layer, _, part = key.rpartition(".")
                if part in (*PARTS, "bias"):
                    view = tensors.get_slice(key)
                    dtype = _INTEGERS.get(view.get_dtype(), torch.float32)
                    empty = torch.empty(view.get_shape(), dtype=dtype, device="meta")
                    found.setdefault(layer, {})[part] = empty
    return {layer: parts for layer, parts in found.items() if "qweight" in parts}


@functools.cache
def _quantizer() -> Any:
    """The configuration of our quantizer, which transformers then knows."""
    from transformers.quantizers import HfQuantizer
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config(_NAME)
    class Configuration(QuantizationConfigMixin):
        quant_method: Any = _NAME  # it is written for transformers' own methods

        def __init__(self, folder: Path, packing: Packing) -> None:
            self.folder, self.packing = folder, packing

    @register_quantizer(_NAME)
    class Quantizer(HfQuantizer):
        quantization_config: Any

        def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
            _place_packed_layers(model, self.quantization_config.folder)

        def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
            for path, module in list(model.named_modules()):
                if isinstance(module, _Packed):
                    unpacked = module.unpacked(path, self.quantization_config.packing)
                    model.set_submodule(path, unpacked)

        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return False

    return Configuration
