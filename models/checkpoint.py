"""An OmniNet as a folder: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .config import OmniNetConfig

Model = TypeVar("Model", bound=nn.Module)

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class CheckpointError(ValueError):
    """A folder that holds no readable OmniNet."""


def save(model: nn.Module, config: OmniNetConfig, folder: Path) -> None:
    """Write ``model`` and its ``config`` into ``folder``, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict()
    if config.tie_embeddings:
        del tensors["output.weight"]  # the same memory as token_embedding.weight
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # Moved into place when whole: a model that was loaded from here still maps the old file.
    save_file(contiguous, folder / f"{WEIGHTS_FILE}.new", metadata={"format": "pt"})
    (folder / f"{CONFIG_FILE}.new").write_text(text, encoding="utf-8")
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        (folder / f"{name}.new").replace(folder / name)


def load(folder: Path, make: Callable[[OmniNetConfig], Model]) -> Model:
    """Read ``folder``; the weights stay in the mapped file until they are touched.

    Args:
        folder: what `save` wrote.
        make: gives a model of a configuration, whose weights are then replaced.

    Raises:
        CheckpointError: a file lacks, or its tensors are not those of the configuration.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: expected a file {name}, found none\n"
                "hint: give the folder that OmniNet.save wrote"
            )
    config = _read_config(folder / CONFIG_FILE)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: expected a safetensors file, found one that cannot be read "
            f"({error})\nhint: it may be cut short; save the model again"
        ) from error
    model = make(config)
    if config.tie_embeddings and "token_embedding.weight" in tensors:
        tensors["output.weight"] = tensors["token_embedding.weight"]
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: expected the tensors of {CONFIG_FILE}, found others "
            f"({error})\nhint: the two files are not of one model"
        ) from error
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def _read_config(path: Path) -> OmniNetConfig:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}: expected JSON, found text that is not ({error})\nhint: save the model again"
        ) from error
    return OmniNetConfig.from_dict(data)


__all__ = ["CheckpointError", "load", "save"]
