"""A local Hugging Face folder: its model, with the head it was saved with, and its programs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnigraph.errors import UsageError
from omnigraph.frontends.module import program_from_module
from omnigraph.program import Dim, Program

#: Settings of a folder: the form of attention in the graph.
_SETTINGS = ("attn_implementation",)
_BATCH, _SEQUENCE, _DECODER, _PAST = 2, 7, 5, 3


def programs_from_folder(
    folder: Path, *, settings: Mapping[str, str] | None = None
) -> tuple[Program, ...]:
    """The programs of a folder that ``save_pretrained`` wrote; nothing is looked up elsewhere.

    ``forward`` is the whole model without a cache. A causal language model that keeps plain keys
    and values has ``decode``, too, which takes a past and gives the past of the next call.

    Args:
        settings: ``attn_implementation``, "eager" or "sdpa"; by default the model's own choice.

    Raises:
        UsageError: the folder, its architecture or its weights are not such as can be compiled.
    """
    for key in settings or {}:
        if key not in _SETTINGS:
            raise UsageError(
                f"A Hugging Face folder has no setting {key!r}",
                expected=" or ".join(_SETTINGS),
                hint="its configuration goes with its weights, and cannot be changed here",
            )
    model = _load(folder, dict(settings or {}))
    programs = [_forward(model, folder)]
    if (decode := _decode(model)) is not None:
        programs.append(decode)
    return tuple(programs)


def _load(folder: Path, settings: Mapping[str, str]) -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{folder} is a Hugging Face folder, and transformers is not installed",
            hint="pip install transformers",
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
    try:
        with _no_progress(transformers.utils.logging):
            model, found = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **settings,
            )
    except Exception as error:
        raise _unreadable(folder, "model.safetensors", error) from error
    if missing := sorted(found["missing_keys"]):
        raise UsageError(
            f"{folder} lacks weights of {name}",
            expected="all of them: others would be random",
            found=f"none for {', '.join(missing[:3])}" + (" and more" if missing[3:] else ""),
            hint="architectures in config.json names the class that the weights were saved from",
        )
    return model.eval()


@contextmanager
def _no_progress(logging: Any) -> Iterator[None]:
    """Switch the progress bars of transformers off, which would cross our own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


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

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.options = {"use_cache": False} if "use_cache" in _arguments(model) else {}

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.model(**inputs, **self.options, return_dict=True)
        return {
            name: value
            for name, value in outputs.items()
            if isinstance(value, torch.Tensor) and not name.startswith("encoder_")
        }


class _Decode(nn.Module):
    """One step of a causal language model: logits, and the past with what was just seen."""

    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        self.model, self.layers, self.cache = model, layers, _cache_argument(model)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **past: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(self.layers):
            key, value = (past[f"past_key_values.{layer}.{part}"] for part in ("key", "value"))
            cache.update(key, value, layer)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=True,
            return_dict=True,
            **{self.cache: cache},
        )
        present: list[Any] = list(cache.layers)
        return {"logits": outputs.logits} | {
            f"present_key_values.{layer}.{part}": tensor
            for layer in range(self.layers)
            for part, tensor in (("key", present[layer].keys), ("value", present[layer].values))
        }


def _forward(model: Any, folder: Path) -> Program:
    examples: dict[str, torch.Tensor] = {}
    axes: dict[str, dict[int, str]] = {}
    main = model.main_input_name
    if main == "pixel_values":
        examples[main] = torch.randn(_BATCH, model.config.num_channels, *_image_size(model))
        axes[main] = {0: "batch"}
    elif main == "input_ids":
        prefixes = [("", "sequence", _SEQUENCE)]
        if model.config.is_encoder_decoder:
            prefixes.append(("decoder_", "decoder_sequence", _DECODER))
        for prefix, dim, length in prefixes:
            for name, tensor in _tokens(model, length).items():
                if prefix + name in _arguments(model):
                    examples[prefix + name] = tensor
                    axes[prefix + name] = {0: "batch", 1: dim}
    else:
        raise UsageError(
            f"The model in {folder} takes {main!r}, for which no examples can be made",
            expected="a model of input_ids or pixel_values",
            found=f"{type(model).__name__}, of {main}",
            hint="write a factory that gives the model and example inputs: file.py:factory",
        )
    program = program_from_module(_Forward(model), examples, dynamic=axes)
    return _bounded(_defaulted(program), model)


def _decode(model: Any) -> Program | None:
    """The step with a past; None for a model without a past of plain keys and values."""
    if model.config.is_encoder_decoder or not model.can_generate():
        return None
    if not {_cache_argument(model), "attention_mask", "input_ids"} <= _arguments(model):
        return None
    layers = _past_layers(model)
    if not layers:
        return None
    examples = _tokens(model, _SEQUENCE)
    examples["attention_mask"] = torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.int64)
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
    return _bounded(replace(_defaulted(program), dims=dims, state=tuple(state)), model)


def _past_layers(model: Any) -> list[Any]:
    """The layers of the past after a few tokens, if each keeps its keys and values whole."""
    with torch.no_grad():
        outputs = model(**_tokens(model, _PAST), use_cache=True, return_dict=True)
    past = outputs.get(_cache_argument(model)) or outputs.get("past_key_values")
    layers = list(getattr(past, "layers", ()))
    return layers if all(type(layer).__name__ == "DynamicLayer" for layer in layers) else []


def _cache_argument(model: nn.Module) -> str:
    """The name of a model's argument for its past: ``cache`` in newer ones."""
    return "cache" if "cache" in _arguments(model) else "past_key_values"


def _tokens(model: Any, length: int) -> dict[str, torch.Tensor]:
    """Token ids that reach from the first to the last of the vocabulary, and a mask of ones."""
    rows = model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, rows, (_BATCH, length), generator=torch.Generator().manual_seed(0))
    ids[0, 0], ids[-1, -1] = 0, rows - 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _image_size(model: Any) -> tuple[int, int]:
    size = model.config.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _arguments(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _defaulted(program: Program) -> Program:
    """The program with inputs that may be left out: masks, which are ones then, and the past."""
    defaults = {"mask": 1, "past": 0}
    specs = (replace(spec, default=defaults.get(spec.role)) for spec in program.inputs)
    return replace(program, inputs=tuple(specs))


def _bounded(program: Program, model: nn.Module) -> Program:
    """The program with its lengths bounded by its tables of learned positions."""
    rows = [
        # Rows in front that stand for padding, or are left out, as the architectures have them.
        module.num_embeddings
        - (0 if module.padding_idx is None else module.padding_idx + 1)
        - int(getattr(module, "offset", 0))
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and path.endswith(("position_embeddings", "wpe", "embed_positions"))
    ]
    if not rows:
        return program
    longest = min(rows)
    dims = dict(program.dims)
    for name in ("sequence", "decoder_sequence"):
        if name in dims:
            dims[name] = Dim(dims[name].min, longest)
    if "past" in dims:
        dims["past"] = Dim(0, longest - 1)
        dims["past + sequence"] = Dim(1, longest)
    return replace(program, dims=dims)
