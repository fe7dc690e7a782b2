"""The tokenizer that an artifact brings along: text to ids, ids to text, and chats to text.

It needs the packages `tokenizers`, and `jinja2` for chats; neither torch nor transformers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omnigraph.artifact import Artifact
from omnigraph.errors import ArtifactError, DeviceError, UnsupportedError

if TYPE_CHECKING:
    import tokenizers

_FILE, _CONFIG, _MAP, _TEMPLATE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_INSTALL = "pip install 'omnigraph[generate]'"


class ArtifactTokenizer:
    """Reads and writes text with the files of an artifact.

    Raises:
        UnsupportedError: the artifact has no tokenizer.
        DeviceError: the package `tokenizers` is not installed.
        ArtifactError: a file is not what it is called.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._files: Mapping[str, str] = artifact.manifest.get("tokenizer", {})
        if _FILE not in self._files:
            raise UnsupportedError(
                f"{artifact.path} has no tokenizer",
                expected=f"a {_FILE} beside the model when it was exported",
                found="none",
                hint="give token ids; or save the tokenizer into the model's folder "
                "(tokenizer.save_pretrained) and export again",
            )
        try:
            import tokenizers
        except ImportError as error:
            raise DeviceError(
                "Text needs the package tokenizers, which is not installed", hint=_INSTALL
            ) from error
        try:
            self._inner: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(self._text(_FILE))
        except Exception as error:  # tokenizers raises no kind of its own
            raise self._damaged(_FILE, error) from error

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text; with ``special``, what the tokenizer puts around texts, too."""
        return self._inner.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of some ids."""
        return self._inner.decode(list(map(int, ids)), skip_special_tokens=skip_special_tokens)

    def chat(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> list[int]:
        """The ids of a chat, at whose end the model answers.

        Args:
            messages: each with "role" and "content".
            more: what else the template reads, such as ``tools`` or ``enable_thinking``.

        Raises:
            UnsupportedError: the tokenizer has no chat template.
            DeviceError: the package `jinja2` is not installed.
            ArtifactError: the template fails.
        """
        return self.encode(self.chat_text(messages, **more), special=False)

    def chat_text(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> str:
        """The text of a chat; see `chat`."""
        template = self._chat_template()
        from omnigraph.runtimes.generation.chat_template import render

        given = {"add_generation_prompt": True, "tools": None, "documents": None, **more}
        return render(template, {**self._special(), **given, "messages": list(messages)})

    def stream(self) -> TextStream:
        """Gives text as ids come."""
        return TextStream(self)

    def _chat_template(self) -> str:
        if _TEMPLATE in self._files:
            return self._text(_TEMPLATE)
        found = self._config.get("chat_template")
        if isinstance(found, list):  # several, by name
            named = {each.get("name"): each.get("template") for each in found}
            found = named.get("default")
        if not isinstance(found, str):
            raise UnsupportedError(
                f"The tokenizer of {self._artifact.path} has no chat template",
                expected=f"{_TEMPLATE}, or chat_template in {_CONFIG}",
                found="none",
                hint="it is no model for chats: give it a text to continue (--prompt)",
            )
        return found

    def _special(self) -> dict[str, str]:
        """The special tokens by name, such as ``bos_token``."""
        found = {}
        for name, token in {**self._fields(_MAP), **self._config}.items():
            text = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(text, str):
                found[name] = text
        return found

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        return self._fields(_CONFIG)

    def _fields(self, name: str) -> dict[str, Any]:
        if name not in self._files:
            return {}
        try:
            found = json.loads(self._text(name))
        except ValueError as error:
            raise self._damaged(name, error) from error
        return found if isinstance(found, dict) else {}

    def _text(self, name: str) -> str:
        try:
            return self._artifact.read(self._files[name]).tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> ArtifactError:
        return ArtifactError(
            f"{name} of {self._artifact.path} cannot be read",
            expected="what save_pretrained of a tokenizer writes",
            found=str(error).splitlines()[0][:200],
            hint="export again from a folder whose tokenizer loads; it may need newer tokenizers",
        )


class TextStream:
    """Gives the text of ids as they come, never a part of a character.

    A token alone may be no text: some bytes of a character, or a word whose space depends on the
    token before it. So the text is that of a few tokens, less that of all but the last of them.
    """

    def __init__(self, tokenizer: ArtifactTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._before, self._given = 0, 0

    def add(self, token: int) -> str:
        """The text that one more token completes; "" where it completes none."""
        self._ids.append(token)
        text = self._new()
        if not text or text.endswith("\ufffd"):
            return ""
        self._before, self._given = self._given, len(self._ids)
        return text

    def rest(self) -> str:
        """The text that is left at the end."""
        text = self._new()
        self._before = self._given = len(self._ids)
        return text

    def extended(self, tokens: Iterable[int]) -> str:
        """The text that some more tokens complete."""
        return "".join(map(self.add, tokens))

    def _new(self) -> str:
        old = self._tokenizer.decode(self._ids[self._before : self._given])
        return self._tokenizer.decode(self._ids[self._before :])[len(old) :]
