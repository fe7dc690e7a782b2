"""Example inputs of a Hugging Face model, from its signature, its configurations and trial.

A model is given its main input, and what goes with it. If it does not run, it is given other inputs
that its signature names, until it does. What must be known beside is data, in `LAYOUTS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnigraph.errors import UsageError
from omnigraph.frontends.json_fields import read_json
from omnigraph.program import Dim

BATCH, SEQUENCE, DECODER = 2, 7, 5
#: The axes of what is no text: a dynamic dimension, or fields of the configuration to multiply.
LAYOUTS: Mapping[str, Sequence[Sequence[str]]] = {
    "pixel_values": [["batch", "num_channels", "height", "width"]],
    "input_features": [
        ["batch", "num_mel_bins", "2 * max_source_positions"],  # Whisper: 30 seconds
        ["batch", "frames", "input_feat_per_channel * input_channels"],
        ["batch", "frames", "feature_projection_input_dim"],
        ["batch", "frames", "num_mel_bins"],
    ],
    "input_values": [
        ["batch", "max_length", "num_mel_bins"],  # a spectrogram
        ["batch", "samples"],
    ],
}
#: What goes with a text beside its mask: integers below a field of the configuration.
_BESIDE_TEXT = {"token_type_ids": "type_vocab_size"}
#: The batch of an input beside the main one, where they need not come in pairs.
_BATCHES = {
    "input_ids": "text_batch",
    "pixel_values": "image_batch",
    "input_features": "audio_batch",
    "input_values": "audio_batch",
}
#: Dimensions of any length; the least is found by trial.
_FREE = ("frames", "samples")
#: What `save_pretrained` of a preprocessor writes.
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
#: Pixels along both axes, of a model that says nothing of them: such models take any size.
_PIXELS = 224
#: The length of the wave or spectrogram that is tried first: an eighth of a second.
_EXAMPLE = 2048


@dataclass(frozen=True)
class Examples:
    """Example inputs by name, their named axes, and the ranges of dimensions as far as known.

    Args:
        unused: inputs that examples could be made of, and that the model runs without.
    """

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    axes: dict[str, dict[int, str]] = field(default_factory=dict)
    dims: dict[str, Dim] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def joined(self, other: Examples) -> Examples:
        """The inputs of both."""
        return Examples(
            self.inputs | other.inputs, self.axes | other.axes, self.dims | other.dims, self.unused
        )


def example_inputs(model: Any, folder: Path) -> Examples:
    """The inputs that a model runs on.

    Raises:
        UsageError: it runs on none that can be made.
    """
    main, accepted = model.main_input_name, arguments(model)
    known = [name for name in ("input_ids", *LAYOUTS) if name in accepted]
    if main not in known:
        raise _cannot(model, folder, f"its main input is {main!r}")
    others = [name for name in known if name != main]
    failed = ""
    for count in range(len(others) + 1):
        for found in _candidates(model, folder, [main, *others[:count]]):
            if error := _error(model, found.inputs):
                failed = failed or error
                continue
            examples = _with_least_lengths(model, found)
            return Examples(examples.inputs, examples.axes, examples.dims, tuple(others[count:]))
    raise _cannot(model, folder, failed or f"its configuration does not say the shape of {main!r}")


def arguments(model: nn.Module) -> set[str]:
    """The names of a model's arguments."""
    return set(inspect.signature(model.forward).parameters)


def token_ids(model: Any, length: int, *, decoder: bool = False) -> torch.Tensor:
    """Token ids [B, T] that reach from the first to the last of the vocabulary."""
    return _integers(_vocabulary(model, decoder), length)


def _integers(count: int, length: int) -> torch.Tensor:
    drawn = torch.randint(0, count, (BATCH, length), generator=torch.Generator().manual_seed(0))
    drawn[0, 0], drawn[-1, -1] = 0, count - 1
    return drawn


def run(model: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
    """What a model returns without a cache."""
    options = {"use_cache": False} if "use_cache" in arguments(model) else {}
    with torch.no_grad():
        return model(**inputs, **options, return_dict=True)


def _vocabulary(model: Any, decoder: bool) -> int:
    config = model.config
    if decoder and (rows := getattr(config, "decoder_vocab_size", None)):
        return rows
    try:
        return model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):  # a model of several kinds of inputs
        return config.get_text_config(decoder=decoder or None).vocab_size


def _error(model: Any, inputs: Mapping[str, torch.Tensor]) -> str:
    """Why a model does not run on inputs, or nothing."""
    try:
        run(model, inputs)
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        return text.splitlines()[0][:200]
    return ""


def _cannot(model: Any, folder: Path, why: str) -> UsageError:
    return UsageError(
        f"No example inputs can be made for the {type(model).__name__} in {folder}",
        expected=f"a model that runs on {', '.join(('input_ids', *LAYOUTS))}, or several of them",
        found=why,
        hint="write a factory that gives the model and example inputs: file.py:factory",
    )


# Candidates ---------------------------------------------------------------------------------------


def _candidates(model: Any, folder: Path, names: Sequence[str]) -> Iterator[Examples]:
    """Examples of these inputs, and of what goes with them: the likelier first."""
    fields = _Fields(model.config, folder)
    decoder = Examples()
    if model.config.is_encoder_decoder and "decoder_input_ids" in arguments(model):
        decoder = _text(model, "decoder_", DECODER)
    kinds = [list(_kind(model, fields, name)) for name in names]
    for chosen in product(*kinds):
        first, *rest = chosen
        if rest:  # inputs that need not come in pairs, as texts and images that are compared
            apart = [
                _other_batch(made, _BATCHES[name], BATCH + 1 + i)
                for i, (made, name) in enumerate(zip(rest, names[1:], strict=True))
            ]
            yield _join([first, *apart, decoder])
        yield _join([*chosen, decoder])


def _join(examples: Sequence[Examples]) -> Examples:
    joined = Examples()
    for made in examples:
        joined = joined.joined(made)
    return joined


def _other_batch(made: Examples, name: str, size: int) -> Examples:
    inputs = {
        key: tensor.repeat(size, *[1] * (tensor.ndim - 1))[:size]
        for key, tensor in made.inputs.items()
    }
    return Examples(inputs, {key: {**axes, 0: name} for key, axes in made.axes.items()}, made.dims)


def _kind(model: Any, fields: _Fields, name: str) -> Iterator[Examples]:
    if name == "input_ids":
        text = _text(model, "", SEQUENCE)
        beside = {
            key: _integers(count, SEQUENCE)
            for key, limit in _BESIDE_TEXT.items()
            if key in arguments(model) and (count := fields.number(limit) or 0) > 1
        }
        if beside:
            yield text.joined(Examples(beside, dict.fromkeys(beside, text.axes[name])))
        yield text
        return
    for layout in LAYOUTS[name]:
        for shape in fields.shapes(layout):
            yield _floats(model, fields, name, layout, shape)


def _text(model: Any, prefix: str, length: int) -> Examples:
    ids = token_ids(model, length, decoder=bool(prefix))
    made = {f"{prefix}input_ids": ids, f"{prefix}attention_mask": torch.ones_like(ids)}
    inputs = {name: tensor for name, tensor in made.items() if name in arguments(model)}
    return Examples(inputs, {key: {0: "batch", 1: f"{prefix}sequence"} for key in inputs})


def _floats(
    model: Any, fields: _Fields, name: str, layout: Sequence[str], shape: Sequence[int]
) -> Examples:
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(*shape, generator=generator)}
    named = {i: axis for i, axis in enumerate(layout) if axis in ("batch", *_FREE)}
    axes = {name: named}
    lengths = [i for i in named if named[i] in _FREE]
    if lengths and fields.masks and "attention_mask" in arguments(model):
        inputs["attention_mask"] = torch.ones(BATCH, shape[lengths[0]], dtype=torch.int64)
        axes["attention_mask"] = {0: "batch", 1: named[lengths[0]]}
    return Examples(inputs, axes)


@dataclass(frozen=True)
class _Fields:
    """The fields of a model's configuration, of those inside it, and of its preprocessor."""

    config: Any
    folder: Path

    @property
    def masks(self) -> bool:
        """Whether the preprocessor gives a mask of a wave or a spectrogram."""
        return any(found.get("return_attention_mask") is True for found in self._preprocessors())

    def shapes(self, layout: Sequence[str]) -> Iterator[tuple[int, ...]]:
        """The shapes that a layout may have; none where the configuration lacks a field."""
        for pixels in self._pixels() if "height" in layout else [(0, 0)]:
            known = {"batch": BATCH, "height": pixels[0], "width": pixels[1]}
            sizes = [self._size(axis, known) for axis in layout]
            if all(isinstance(size, int) and size > 0 for size in sizes):
                yield tuple(size for size in sizes if size is not None)

    def number(self, name: str) -> int | None:
        """An integer field, where it is first found."""
        values = [getattr(config, name, None) for config in self._configs()]
        return next((value for value in values if isinstance(value, int)), None)

    def _size(self, axis: str, known: Mapping[str, int]) -> int | None:
        if axis in _FREE:
            return _EXAMPLE
        size = 1
        for name in axis.split(" * "):
            value = int(name) if name.isdigit() else known.get(name) or self.number(name)
            if value is None:
                return None
            size *= value
        return size

    def _pixels(self) -> Iterator[tuple[int, int]]:
        """Heights and widths: the preprocessor's own, the configuration's, and the usual one."""
        sizes: list[Any] = []
        for found in self._preprocessors():
            crops = found.get("do_center_crop", True)
            sizes += [found.get("crop_size")] * bool(crops) + [found.get("size")]
        sizes += [getattr(config, "image_size", None) for config in self._configs()]
        made = [_height_and_width(size) for size in sizes]
        yield from dict.fromkeys(size for size in [*made, (_PIXELS, _PIXELS)] if size is not None)

    def _configs(self) -> Iterator[Any]:
        yield self.config
        for name in getattr(self.config, "sub_configs", {}):
            if (inside := getattr(self.config, name, None)) is not None:
                yield inside

    def _preprocessors(self) -> Iterator[Mapping[str, Any]]:
        for name in _PREPROCESSORS:
            found = read_json(self.folder / name)
            yield found
            yield from (inside for inside in found.values() if isinstance(inside, dict))


def _height_and_width(size: Any) -> tuple[int, int] | None:
    """The pixels of a size, in any of the forms that configurations have."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, dict):
        if {"height", "width"} <= size.keys():
            return size["height"], size["width"]
        if isinstance(edge := size.get("shortest_edge"), int):
            return edge, edge
    return None


# Lengths ------------------------------------------------------------------------------------------


def _with_least_lengths(model: Any, made: Examples) -> Examples:
    """Examples at twice the least length that the model takes, which its dimension then declares.

    Convolutions make one frame of the least length, and two of twice as much: a trace of one frame
    would hold for one frame only.
    """
    named = {axis for axes in made.axes.values() for axis in axes.values()}
    for dim in (dim for dim in _FREE if dim in named):
        least = _least(model, made, dim)
        cut = _cut(made, dim, max(2 * least, SEQUENCE))
        dims = {**cut.dims, dim: Dim(1 if least == 1 else 2 * least)}
        made = Examples(cut.inputs, cut.axes, dims)
    return made


def _cut(made: Examples, dim: str, size: int) -> Examples:
    inputs = dict(made.inputs)
    for name, axes in made.axes.items():
        for axis, named in axes.items():
            if named == dim:
                inputs[name] = inputs[name].narrow(axis, 0, size)
    return Examples(inputs, made.axes, made.dims)


def _least(model: Any, made: Examples, dim: str) -> int:
    """The least size of a dimension that the model runs at, of those up to the example's."""

    def runs(size: int) -> bool:
        return not _error(model, _cut(made, dim, size).inputs)

    fails, works = 0, 1
    while not runs(works):
        fails, works = works, min(2 * works, _EXAMPLE)
    while works - fails > 1:
        middle = (fails + works) // 2
        fails, works = (fails, middle) if runs(middle) else (middle, works)
    return works
