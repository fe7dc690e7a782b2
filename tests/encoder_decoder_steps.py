"""Greedy decoding of encoder-decoder folders by hand, over `encode` and `decode`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from omnigraph.program import Program, evaluate_dim

Arrays = Mapping[str, np.ndarray]
#: Runs a program: its name, and its inputs by name, to its outputs by name.
Run = Callable[[str, Arrays], Arrays]
_START, _PADDING, _VOCABULARY = 5, 0, 61


def in_torch(programs: Sequence[Program]) -> Run:
    """Runs the modules of programs; inputs that are left out have their defaults."""
    by_name = {program.name: program for program in programs}

    def run(name: str, given: Arrays) -> Arrays:
        specs = by_name[name].inputs
        sizes = {"past": 0}
        for spec in specs:
            if spec.name in given:
                sizes |= dict(zip(map(str, spec.shape), given[spec.name].shape, strict=True))
        inputs = {
            spec.name: torch.tensor(given[spec.name])
            if spec.name in given
            else torch.full(
                [evaluate_dim(d, sizes) for d in spec.shape],
                spec.default,
                dtype=getattr(torch, spec.dtype),
            )
            for spec in specs
        }
        with torch.no_grad():
            return {k: v.numpy() for k, v in by_name[name].module(**inputs).items()}

    return run


def sources(model: Any, rows: int = 3) -> dict[str, np.ndarray]:
    """What an encoder is given: texts of unequal lengths, padded on the right, or spectrograms."""
    draw = np.random.default_rng(1)
    if model.main_input_name == "input_features":
        length = 2 * model.config.max_source_positions
        shape = (rows, model.config.num_mel_bins, length)
        return {"input_features": draw.standard_normal(shape).astype(np.float32)}
    mask = np.ones((rows, 11), np.int64)
    for row in range(1, rows):
        mask[row, 11 - 3 * row :] = 0
    ids = draw.integers(3, _VOCABULARY, mask.shape)
    return {"input_ids": np.where(mask, ids, _PADDING), "attention_mask": mask}


def greedy(run: Run, source: Arrays, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, 1 + steps] with the first one, and the logits [B, steps, V] that chose them."""
    encoded = run("encode", source)
    given = {name: array for name, array in encoded.items() if name.startswith("cross_key_values")}
    given |= {name: array for name, array in source.items() if name == "attention_mask"}
    tokens = np.full((len(encoded["last_hidden_state"]), 1), _START, np.int64)
    past: dict[str, np.ndarray] = {}
    logits = []
    for _ in range(steps):
        found = run("decode", {"decoder_input_ids": tokens[:, -1:], **given, **past})
        past = {n.replace("present", "past"): a for n, a in found.items() if n != "logits"}
        logits.append(found["logits"])
        tokens = np.concatenate([tokens, found["logits"].argmax(-1)], 1)
    return tokens, np.concatenate(logits, 1)


def generated(model: Any, source: Arrays, steps: int) -> np.ndarray:
    """The tokens [B, 1 + steps] of transformers' own greedy `generate`, none of which ends it."""
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=_START, pad_token_id=_PADDING
    )
    tensors = {name: torch.tensor(array) for name, array in source.items()}
    options = {"num_beams": 1, "do_sample": False, "max_new_tokens": steps}
    # Not Whisper's own `generate`, which knows of languages and of time stamps.
    return transformers.GenerationMixin.generate(model, **tensors, **options).numpy()


def uncached(model: Any, source: Arrays, tokens: np.ndarray) -> np.ndarray:
    """The logits [B, T, V] of the whole model for these tokens [B, T], without a cache."""
    tensors = {name: torch.tensor(array) for name, array in source.items()}
    with torch.no_grad():
        out = model(**tensors, decoder_input_ids=torch.tensor(tokens), use_cache=False)
    return out.logits.numpy()
