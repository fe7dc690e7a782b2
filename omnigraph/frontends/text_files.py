"""What lies beside a model for generating text: defaults of generation, and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnigraph.errors import UsageError
from omnigraph.frontends.json_fields import read_json

_DEFAULTS, _CONFIG = "generation_config.json", "config.json"
#: The files of a tokenizer; the first is what there must be for the others to count.
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_SPECIAL = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class TextFiles:
    """What an artifact brings along for generating text.

    Args:
        defaults: fields of a generation_config.json.
        pads_left: whether padding before a row changes nothing in it, where it is hidden.
        tokenizer: the files of its tokenizer, by name.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    pads_left: bool = False
    tokenizer: Mapping[str, Path] = field(default_factory=dict)

    def manifest(self) -> dict[str, Any]:
        """The manifest's entries; none where there is nothing to say."""
        said: dict[str, Any] = {"defaults": dict(self.defaults)} if self.defaults else {}
        said |= {"pads_left": True} if self.pads_left else {}
        entries: dict[str, Any] = {"generation": said} if said else {}
        if self.tokenizer:
            entries["tokenizer"] = {name: f"tokenizer/{name}" for name in self.tokenizer}
        return entries

    def write(self, directory: Path) -> None:
        """Copy the files of the tokenizer into a staged artifact."""
        for name, path in self.tokenizer.items():
            (directory / "tokenizer").mkdir(exist_ok=True)
            (directory / "tokenizer" / name).write_bytes(path.read_bytes())


def text_files(folder: Path) -> TextFiles:
    """What a folder of a model has; special ids may stand in its config.json alone.

    Raises:
        UsageError: a file is no JSON, or has numbers that are not finite.
    """
    defaults = _fields(folder / _DEFAULTS)
    config = _fields(folder / _CONFIG)
    inner = config.get("text_config")
    for name in _SPECIAL:
        for fields in (config, inner if isinstance(inner, dict) else {}):
            if defaults.get(name) is None and fields.get(name) is not None:
                defaults[name] = fields[name]
    files = {name: folder / name for name in _TOKENIZER if (folder / name).is_file()}
    return TextFiles(defaults, tokenizer=files if _TOKENIZER[0] in files else {})


def _fields(path: Path) -> dict[str, Any]:
    """The fields of a JSON file that say something of the model, and not of who wrote it."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UsageError(
            f"{path} cannot be read",
            expected="an object of JSON, as save_pretrained writes it",
            found=type(found).__name__,
            hint="write the folder again",
        )
    kept = {
        name: value
        for name, value in found.items()
        if value is not None and not name.startswith("_") and name != "transformers_version"
    }
    if path.name == _DEFAULTS:
        try:
            json.dumps(kept, allow_nan=False)
        except ValueError as error:
            raise UsageError(
                f"{path} has a number that is not finite, which no artifact can hold",
                expected="numbers of JSON",
                found=str(error),
                hint="take it out of the file; bad_words_ids forbids sequences",
            ) from error
    return kept
