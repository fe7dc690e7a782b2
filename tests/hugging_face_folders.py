"""Small folders of Hugging Face models with random weights, and what transformers computes of them.

The models are those of `hugging_face_models`, and those below, which are here for their inputs or
for what their forward does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from hugging_face_models import _GROUPED, _SMALL, _SPECIAL, MODELS
from hugging_face_programs import _draw_weights

from omnigraph.contract.tolerance import deviation
from omnigraph.frontends.hugging_face_inputs import arguments
from omnigraph.program import Case, Program, fit_sizes

_WAVES = {
    **_SMALL,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
}
_PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
}
_TWO_TOWERS = {
    "text_config": {**_SMALL, **_SPECIAL, "max_position_embeddings": 40},
    "vision_config": _PATCHES,
    "projection_dim": 24,
}
_EXPERTS = {
    **_GROUPED,
    **_SPECIAL,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": 16,
    "factor": 4.0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}
_STATES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}

#: The class in transformers, the class of its configuration, and the fields of that.
Architecture = tuple[str, str, Mapping[str, Any]]
FOLDERS: dict[str, Architecture] = {
    **{name: (model.kind, model.config, model.fields) for name, model in MODELS.items()},
    "llama-dynamic": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_GROUPED, **_SPECIAL, "max_position_embeddings": 16, "rope_parameters": _DYNAMIC},
    ),
    "llama3": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_GROUPED, **_SPECIAL, "rope_parameters": _LLAMA3},
    ),
    "phi3-longrope": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {
            **_GROUPED,
            **_SPECIAL,
            "original_max_position_embeddings": 16,
            "rope_parameters": _LONGROPE,
        },
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_GROUPED, **_SPECIAL, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {**_EXPERTS, "shared_expert_intermediate_size": 40},
    ),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**_EXPERTS, "head_dim": 8}),
    "mamba": ("MambaForCausalLM", "MambaConfig", _STATES),
    "clip": ("CLIPModel", "CLIPConfig", _TWO_TOWERS),
    "clip-vision": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", _PATCHES),
    "siglip": ("SiglipModel", "SiglipConfig", _TWO_TOWERS),
    "dinov2": ("Dinov2Model", "Dinov2Config", _PATCHES),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    ),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", {**_WAVES, **_SPECIAL}),
    "hubert": ("HubertModel", "HubertConfig", _WAVES),
    "audio-spectrogram": (
        "ASTForAudioClassification",
        "ASTConfig",
        {**_PATCHES, "patch_size": 4, "num_mel_bins": 16, "max_length": 24},
    ),
}


def save(name: str, folder: Path) -> None:
    """Write a folder of an architecture, its weights drawn from a fixed seed."""
    kind, config, fields = FOLDERS[name]
    model = getattr(transformers, kind)(getattr(transformers, config)(**fields))
    _draw_weights(model)
    model.eval().save_pretrained(folder)


def cases(program: Program) -> Iterator[Case]:
    """Batches of 1 and 3, lengths of 1, odd ones, and ones beyond the example, padded and not."""
    longest = max((d.min for d in program.dims.values()), default=1)
    for seed, (batch, length, padding) in enumerate(
        [(1, 1, "none"), (3, 9, "right"), (2, 33, "left"), (1, 40, "none"), (3, 19, "right")]
    ):
        sizes = dict.fromkeys(program.dim_names(), longest + length)
        sizes |= {"batch": batch, "image_batch": 4 - batch, "sequence": length}
        sizes |= {"decoder_sequence": max(1, length // 2)}
        yield Case(f"{batch} x {length} {padding}", fit_sizes(program, sizes), padding, seed)


def expected(folder: Path, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
    """What transformers computes: a model that was loaded anew."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    options = {"use_cache": False} if "use_cache" in arguments(model) else {}
    with torch.no_grad():
        return model(**inputs, **options, return_dict=True)


def worst_error(session: Any, folder: Path, program: Program) -> float:
    """The largest error of ``forward`` against transformers, relative to each output's size."""
    worst = 0.0
    for case in cases(program):
        inputs = program.make_inputs(case)
        wanted = expected(folder, inputs)
        found = session.run({k: v.numpy() for k, v in inputs.items()}, program="forward")
        for name, array in found.items():
            want = wanted[name].numpy()
            shown = _shown(array, inputs)
            worst = max(worst, deviation(array[shown], want[shown]).rms)
    return worst


#: Rows, and how many tokens each step takes.
_STEPS = ((1, (1, 1, 6)), (3, (5, 1, 1, 9, 2)), (2, (14, 3, 8)))


def worst_step_error(session: Any, folder: Path, programs: Sequence[Program]) -> float:
    """The largest error of ``decode``, step by step, against the same steps in transformers.

    Of an encoder-decoder, against all tokens at once, without a cache.
    """
    by_name = {program.name: program for program in programs}
    if "encode" in by_name:
        return _worst_error_behind_encoder(session, folder, by_name["encode"])
    worst = 0.0
    for seed, (batch, steps) in enumerate(_STEPS):
        ids = np.random.default_rng(seed).integers(3, 61, (batch, sum(steps)))
        mask = np.ones_like(ids)
        mask[-1, : steps[0] // 2] = 0
        past: dict[str, np.ndarray] = {}
        cache, start = None, 0
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        for step in steps:
            stop = start + step
            now = {"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop]}
            found = session.run({**now, **past}, program="decode")
            past = {k.replace("present", "past"): v for k, v in found.items() if k != "logits"}
            with torch.no_grad():
                out = model(
                    **{k: torch.tensor(v) for k, v in now.items()},
                    past_key_values=cache,
                    use_cache=True,
                )
            cache = out.past_key_values
            shown = mask[:, start:stop].astype(bool)
            worst = max(worst, deviation(found["logits"][shown], out.logits.numpy()[shown]).rms)
            start = stop
    return worst


def _worst_error_behind_encoder(session: Any, folder: Path, encode: Program) -> float:
    worst = 0.0
    for seed, (batch, steps) in enumerate(_STEPS):
        sizes = fit_sizes(encode, {"batch": batch, "sequence": 9 + 8 * seed})
        source = encode.make_inputs(Case("source", sizes, ("none", "right", "left")[seed], seed))
        given = {name: tensor.numpy() for name, tensor in source.items()}
        encoded = session.run(given, program="encode")
        given = {n: a for n, a in {**given, **encoded}.items() if n.startswith(("att", "cross_"))}
        ids = np.random.default_rng(seed).integers(3, 61, (batch, sum(steps)))
        mask = np.ones_like(ids)
        mask[-1, : steps[0] // 2] = 0
        logits, past, start = [], dict[str, np.ndarray](), 0
        for step in steps:
            stop = start + step
            now = {
                "decoder_input_ids": ids[:, start:stop],
                "decoder_attention_mask": mask[:, :stop],
            }
            found = session.run({**now, **given, **past}, program="decode")
            logits.append(found.pop("logits"))
            past = {name.replace("present", "past"): array for name, array in found.items()}
            start = stop
        tokens = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        whole = expected(folder, {**source, **{k: torch.tensor(v) for k, v in tokens.items()}})
        shown = mask.astype(bool)
        wanted = whole.logits.numpy()[shown]
        worst = max(worst, deviation(np.concatenate(logits, 1)[shown], wanted).rms)
    return worst


def _shown(array: np.ndarray, inputs: Mapping[str, torch.Tensor]) -> Any:
    """The rows of an output [B, T, …] that no mask hides; all of other outputs."""
    for name, mask in inputs.items():
        if name.endswith("attention_mask") and array.shape[:2] == tuple(mask.shape):
            return mask.numpy().astype(bool)
    return ...
