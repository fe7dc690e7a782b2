"""A local Hugging Face folder: its model, with the head it was saved with, and its programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnigraph.errors import UsageError, suggest
from omnigraph.frontends.encoder_decoder import NoSteps, encoder_decoder_programs
from omnigraph.frontends.hidden_bars import hidden_bars
from omnigraph.frontends.hugging_face_cache import (
    cache_argument,
    cache_of,
    filled,
    named,
    whole_layers,
    with_defaults,
    with_longest,
)
from omnigraph.frontends.hugging_face_inputs import (
    BATCH,
    DECODER,
    SEQUENCE,
    Examples,
    arguments,
    example_inputs,
    run,
    token_ids,
)
from omnigraph.frontends.module import program_from_module
from omnigraph.frontends.packed_folder import check_all_taken, load_packed, packing_of
from omnigraph.frontends.position_tables import longest_lengths
from omnigraph.frontends.sentence_embedding import (
    SentenceEmbedding,
    UnknownStage,
    sentence_embedding,
)
from omnigraph.program import Dim, Program
from omnigraph.tracing.transformers_forms import forgotten_lengths

#: Settings of a folder, and their values: the forms of attention and of experts that the model is
#: compared in, and the type that its weights are rounded to before they are widened to float32.
SETTINGS: Mapping[str, Sequence[str]] = {
    "attn_implementation": ("eager", "sdpa"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
    "dtype": ("float32", "bfloat16", "float16"),
}
_PAST = 3


@dataclass(frozen=True)
class FolderModel:
    """What a folder gives.

    Args:
        config: the architecture's name.
        not_made: programs that one would expect and that are not made: why, by name.
    """

    programs: tuple[Program, ...]
    config: Mapping[str, Any]
    not_made: Mapping[str, str]


def model_from_folder(folder: Path, *, settings: Mapping[str, str] | None = None) -> FolderModel:
    """The programs of a folder that ``save_pretrained`` wrote; nothing is looked up elsewhere.

    ``forward`` is the whole model without a cache. A causal language model that keeps keys and
    values has ``decode``, too, which takes a past and gives the past of the next call.

    Args:
        settings: of `SETTINGS`; by default the model's own choice, in float32.

    Raises:
        UsageError: the folder, its architecture or its weights are not such as can be compiled.
    """
    chosen = dict(settings or {})
    _check_settings(chosen)
    pooling, not_made = _pooling(folder)
    model = _load(folder, chosen, headless=pooling is not None)
    examples = example_inputs(model, folder)
    longest = _longest(model, examples)
    programs = [_forward(_Forward(model, pooling), examples, longest)]
    for name in examples.unused:
        not_made[f"forward with {name}"] = "the model runs without, and so does its program"
    made, why = _steps(model, examples, longest)
    programs += made
    not_made |= why
    config = model.config
    described = {"model_type": config.model_type, "architectures": list(config.architectures)}
    return FolderModel(tuple(programs), described, not_made)


def _pooling(folder: Path) -> tuple[SentenceEmbedding | None, dict[str, str]]:
    """What a folder of sentence-transformers adds to its model, or why it is left out."""
    try:
        return sentence_embedding(folder), {}
    except UnknownStage as error:
        why = str(error)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        why = f"its modules.json or its stages are damaged: {type(error).__name__}: {error}"
    return None, {"forward with sentence_embedding": why.splitlines()[0]}


def _check_settings(settings: Mapping[str, str]) -> None:
    for key, value in settings.items():
        known = SETTINGS.get(key)
        if known is not None and value in known:
            continue
        what = f"no setting {key!r}" if known is None else f"no {key}={value}"
        raise UsageError(
            f"A Hugging Face folder has {what}",
            expected="; ".join(f"{name}={'|'.join(forms)}" for name, forms in SETTINGS.items()),
            found=f"{key}={value}",
            hint=suggest(key, SETTINGS, "the other fields of its configuration go with its weights")
            if known is None
            else suggest(str(value), known, "pick one of those"),
        )


def _load(folder: Path, settings: Mapping[str, str], *, headless: bool) -> Any:
    """The model of a folder, in float32; ``headless`` leaves out the head it was trained with."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{folder} is a Hugging Face folder, and transformers is not installed",
            hint="pip install 'omnigraph[hugging-face]'",
        ) from error
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise _unreadable(folder, "config.json", error) from error
    name = (config.architectures or ["none"])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise UsageError(
            f"The architecture of {folder} is not one that transformers has",
            expected="a class of transformers under architectures in config.json",
            found=name,
            hint="code that lies beside a model is not run: write a factory, file.py:factory",
        )
    if headless:
        kind, name = transformers.AutoModel, f"the model in {name}"
    packing = packing_of(folder, config)
    options = {
        "local_files_only": True,
        "use_safetensors": True,
        "output_loading_info": True,
        **settings,
        "dtype": getattr(torch, settings.get("dtype", "float32")),
    }
    try:
        with hidden_bars():
            if packing is None:
                model, found = kind.from_pretrained(folder, **options)
            else:
                model, found = load_packed(kind, folder, config, packing, **options)
    except UsageError:
        raise
    except Exception as error:
        raise _unreadable(folder, "model.safetensors", error) from error
    if packing is not None and not headless:
        check_all_taken(folder, set(found["unexpected_keys"]), name)
    if missing := sorted(found["missing_keys"]):
        raise UsageError(
            f"{folder} lacks weights of {name}",
            expected="all of them: others would be random",
            found=f"none for {', '.join(missing[:3])}" + (" and more" if missing[3:] else ""),
            hint="architectures in config.json names the class that the weights were saved from",
        )
    return model.float().eval()  # what is computed in float32 is compared


def _unreadable(folder: Path, file: str, error: Exception) -> UsageError:
    text = str(error).strip() or type(error).__name__
    return UsageError(
        f"The model in {folder} cannot be loaded from its {file}",
        expected="a folder that save_pretrained wrote: config.json and model.safetensors",
        found=text.splitlines()[0][:300],
        hint="nothing is downloaded: all files of the model must be in the folder",
    )


class _Forward(nn.Module):
    """The outputs of a model without a cache, by Hugging Face's names."""

    def __init__(self, model: nn.Module, pooling: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling
        self.options = {"use_cache": False} if "use_cache" in arguments(model) else {}

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.model(**inputs, **self.options, return_dict=True)
        named = {
            name: value
            for name, value in outputs.items()
            if isinstance(value, torch.Tensor) and not name.startswith("encoder_")
        }
        if self.pooling is not None:
            vectors = named["last_hidden_state"]
            named["sentence_embedding"] = self.pooling(vectors, inputs["attention_mask"])
        return named


class _Decode(nn.Module):
    """One step of a causal language model: logits, and the past with what was just seen."""

    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        self.model, self.layers, self.cache = model, layers, cache_argument(model)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **past: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        cache = filled(past, "past_key_values", self.layers)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=True,
            return_dict=True,
            **{self.cache: cache},
        )
        present = named(cache.layers, "present_key_values")
        return {"logits": outputs.logits} | present


def _forward(module: _Forward, examples: Examples, longest: Mapping[str, int]) -> Program:
    program = program_from_module(module, examples.inputs, dynamic=examples.axes)
    dims = {**program.dims, **examples.dims}
    return with_longest(replace(with_defaults(program), dims=dims), longest)


def _steps(
    model: Any, examples: Examples, longest: Mapping[str, int]
) -> tuple[Sequence[Program], dict[str, str]]:
    """The programs of a model that generates text; and those that are not made: why, by name."""
    if not model.can_generate():
        return [], {}
    if model.config.is_encoder_decoder:
        try:
            return encoder_decoder_programs(model, examples, longest), {}
        except NoSteps as none:
            return [], {
                "encode": "what it makes is for decode, which is not made",
                "decode": str(none),
            }
    layers, why = _past(model)
    return ([_decode(model, layers, longest)], {}) if layers else ([], {"decode": why})


def _decode(model: Any, layers: Sequence[Any], longest: Mapping[str, int]) -> Program:
    """The step with a past of these layers."""
    ids = token_ids(model, SEQUENCE)
    seen = torch.ones(BATCH, _PAST + SEQUENCE, dtype=torch.int64)
    examples = {"input_ids": ids, "attention_mask": seen}
    axes = {
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "past + sequence"},
    }
    state = []
    for index, layer in enumerate(layers):
        for part, tensor in (("key", layer.keys), ("value", layer.values)):
            name = f"past_key_values.{index}.{part}"
            examples[name] = tensor
            axes[name] = {0: "batch", 2: "past"}
            state.append((name, name.replace("past", "present")))
    program = program_from_module(
        _Decode(model, len(layers)), examples, name="decode", dynamic=axes
    )
    dims = {**program.dims, "past": Dim(0)}
    program = replace(with_defaults(program), dims=dims, state=tuple(state), expendable=True)
    return with_longest(program, longest)


def _past(model: Any) -> tuple[list[Any], str]:
    """The layers of the past after a few tokens; or none, and why a step with them is not made."""
    needed = {cache_argument(model), "attention_mask", "input_ids"}
    if missing := sorted(needed - arguments(model)):
        return [], f"the model takes no {' and no '.join(missing)}"
    ids = token_ids(model, _PAST)
    try:
        with forgotten_lengths(model), torch.no_grad():
            outputs = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                use_cache=True,
                return_dict=True,
            )
    except Exception as error:
        return [], f"the model does not run on tokens alone: {str(error).splitlines()[0][:200]}"
    return whole_layers(cache_of(model, outputs))


def _longest(model: Any, examples: Examples) -> dict[str, int]:
    """The lengths to which tables of learned positions bound the inputs."""
    lengths = {"sequence": SEQUENCE, "decoder_sequence": DECODER}
    named = {dim for axes in examples.axes.values() for dim in axes.values()}
    return longest_lengths(
        model,
        lambda: run(model, examples.inputs),
        {dim: length for dim, length in lengths.items() if dim in named},
    )
