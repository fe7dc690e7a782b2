"""Small Hugging Face folders that are packed by GPTQ's and AWQ's formats, and what they stand for.

The packing is written down from the formats, one integer at a time, and shares no code with what
unpacks it. The dense twin of a folder holds the same weights in float32, for transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from torch import nn

from omnigraph.input_sets import contract_cases

_TEXT = {
    "vocab_size": 61,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {
    **_TEXT,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
GPT2 = {**_TEXT, "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 48}
MODELS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
}


@dataclass(frozen=True, eq=False)
class Packed:
    """A layer's integers: codes [K, N], zero points and scales [G, N], and the group of each K."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    groups: np.ndarray
    bits: int

    @property
    def dense(self) -> np.ndarray:
        """float32 [K, N]."""
        zeros = self.zeros[self.groups].astype(np.float32)
        return (self.codes - zeros) * self.scales.astype(np.float32)[self.groups]


def draw(
    rng: np.random.Generator, shape: tuple[int, int], bits: int, block: int, **form: bool
) -> Packed:
    """Random integers of a layer [K, N].

    Args:
        block: terms of a group; -1 is all.
        form: ``symmetric``, all zero points in the middle; ``act_order``, groups of any terms.
    """
    terms, channels = shape
    block = terms if block == -1 else block
    groups = np.arange(terms) // block
    count = int(groups.max()) + 1
    most = 2**bits - 1
    zeros = rng.integers(0, most + 1, (count, channels))
    if form.get("symmetric"):
        zeros[:] = 2 ** (bits - 1)
    if form.get("act_order"):
        groups = rng.permutation(groups)
    scales = rng.uniform(0.5, 1.5, (count, channels)) / (most * np.sqrt(terms))
    codes = rng.integers(0, most + 1, shape)
    return Packed(codes, zeros, scales.astype(np.float16), groups, bits)


def gptq(layer: Packed, version: int = 1) -> dict[str, np.ndarray]:
    """The tensors of GPTQ: terms, or the channels of zero points, from the lowest bits on."""
    zeros = layer.zeros if version == 2 else (layer.zeros - 1) % 2**layer.bits
    each = 32 // layer.bits
    terms, channels = layer.codes.shape
    words = np.zeros((-(-terms // each), channels), np.uint32)
    for term in range(terms):
        shifted = layer.codes[term].astype(np.uint32) << np.uint32(term % each * layer.bits)
        words[term // each] |= shifted
    zero_words = np.zeros((len(zeros), -(-channels // each)), np.uint32)
    for channel in range(channels):
        shifted = zeros[:, channel].astype(np.uint32) << np.uint32(channel % each * layer.bits)
        zero_words[:, channel // each] |= shifted
    return {
        "qweight": words.view(np.int32),
        "qzeros": zero_words.view(np.int32),
        "scales": layer.scales,
        "g_idx": layer.groups.astype(np.int32),
    }


def awq(layer: Packed) -> dict[str, np.ndarray]:
    """The tensors of AWQ: of eight channels, a word has 7 5 3 1 6 4 2 0 in hexadecimal."""

    def words(rows: np.ndarray) -> np.ndarray:
        found = []
        for row in rows:
            octets = [row[start : start + 8] for start in range(0, len(row), 8)]
            digits = ["".join(f"{o[i]:x}" for i in (7, 5, 3, 1, 6, 4, 2, 0)) for o in octets]
            found.append([int(text, 16) for text in digits])
        return np.array(found, np.uint32).view(np.int32)

    return {"qweight": words(layer.codes), "qzeros": words(layer.zeros), "scales": layer.scales}


def write(
    folder: Path,
    model: str,
    pack: Callable[[Packed], dict[str, np.ndarray]],
    fields: Mapping[str, Any],
    **form: bool,
) -> dict[str, Packed]:
    """Write a packed folder, and its twin in float32 beside it; the layers by path.

    Args:
        pack: `gptq` or `awq`.
        fields: of its quantization_config, ``bits`` and ``group_size`` among them.
        form: see `draw`.
    """
    kind, config, sizes = MODELS[model]
    torch.manual_seed(0)
    made = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for path, parameter in made.named_parameters():
            around = 1.0 if parameter.ndim < 2 and path.endswith("weight") else 0.0
            parameter.copy_(around + 0.1 * torch.randn(parameter.shape))
    layers = {}
    for path, module in made.named_modules():
        linear = isinstance(module, nn.Linear)
        if path == "lm_head" or not (linear or type(module).__name__ == "Conv1D"):
            continue
        size = tuple(module.weight.shape)
        terms_first = size[::-1] if linear else size
        layer = draw(rng, terms_first, fields["bits"], fields["group_size"], **form)
        layers[path] = layer
        dense = layer.dense.T if linear else layer.dense
        module.weight.data = torch.from_numpy(np.ascontiguousarray(dense))
    made.save_pretrained(twin(folder))
    made.save_pretrained(folder)
    edit_tensors(folder, lambda tensors: _packed(tensors, layers, pack))
    path = folder / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "quantization_config": dict(fields)})
    )
    return layers


def _packed(
    tensors: dict[str, np.ndarray],
    layers: Mapping[str, Packed],
    pack: Callable[[Packed], dict[str, np.ndarray]],
) -> None:
    for path, layer in layers.items():
        key = next(k for k in tensors if k.endswith(".weight") and path.endswith(k[:-7]))
        del tensors[key]
        tensors |= {f"{key[:-7]}.{part}": array for part, array in pack(layer).items()}


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Rewrite ``model.safetensors`` of a folder."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})


def twin(folder: Path) -> Path:
    """The same model in float32."""
    return folder.with_name(f"{folder.name}-dense")


def worst_error(session: Any, folder: Path, program: Any) -> float:
    """The largest error of ``logits`` against the dense twin, relative to their size."""
    dense = transformers.AutoModelForCausalLM.from_pretrained(twin(folder)).eval()
    worst = 0.0
    for case in contract_cases(program):
        inputs = program.make_inputs(case)
        found = session.run({k: v.numpy() for k, v in inputs.items()}, program="forward")
        with torch.no_grad():
            wanted = dense(**inputs, use_cache=False).logits.numpy()
        shown = inputs["attention_mask"].numpy().astype(bool)
        error = np.abs(found["logits"][shown] - wanted[shown])
        worst = max(worst, float(error.max(initial=0) / np.sqrt(np.mean(wanted**2))))
    return worst
