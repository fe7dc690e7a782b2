"""The prompts of a request, as one array with padding on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnigraph.errors import InputError
from omnigraph.runtimes.foreign_arrays import as_numpy
from omnigraph.runtimes.generation.config import GenerationConfig


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids [B, P] int64, and which of them are no padding [B, P] bool."""

    ids: np.ndarray
    shown: np.ndarray

    def compact(self) -> Prompt:
        """The same prompts without hidden tokens between those that are shown: what a model reads.

        Positions count tokens that are shown, and nothing looks at the others. Those have the id 0,
        which every model has: a pad id may be none of its vocabulary.
        """
        order = np.argsort(self.shown, axis=1, kind="stable")  # hidden ones first
        longest = int(self.shown.sum(axis=1).max())
        ids, shown = (np.take_along_axis(a, order, axis=1) for a in (self.ids, self.shown))
        return Prompt(np.where(shown, ids, 0)[:, -longest:], shown[:, -longest:])

    @property
    def padding(self) -> np.ndarray:
        """How many positions before the first token of each row are padding, [B]."""
        return self.shown.argmax(axis=1)


def prompt_of(input_ids: Any, attention_mask: Any, config: GenerationConfig) -> Prompt:
    """The prompts that a caller gave.

    Without a mask, ids that are ``pad_token_id`` are padding if that is no end of a text, as in
    transformers.

    Args:
        input_ids: ids [B, P] or [P] of any integer type, or lists of ids of unequal lengths.
        attention_mask: [B, P], 1 for a token and 0 for padding before it; or None.

    Raises:
        InputError: they are no such arrays, a row has no token, or padding stands after one.
    """
    rows = _ragged(input_ids)
    if rows is not None:
        if attention_mask is not None:
            raise InputError(
                "An attention mask cannot be given with prompts of unequal lengths",
                expected="an array [B, P] with it, or lists alone",
                found=f"{len(rows)} lists",
                hint="leave attention_mask out: each list is a whole prompt",
            )
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), config.pad, np.int64)
        shown = np.zeros((len(rows), longest), bool)
        for row, tokens in enumerate(rows):
            ids[row, longest - len(tokens) :] = tokens
            shown[row, longest - len(tokens) :] = True
        return _checked(ids, shown)
    ids = _ids(input_ids)
    if ids.shape[1] == 0 and config.bos_token_id is not None:
        ids = np.full((len(ids), 1), config.bos_token_id, np.int64)
        attention_mask = None
    if attention_mask is not None:
        return _checked(ids, _mask(attention_mask, ids.shape))
    pad, ends = config.pad_token_id, config.eos_token_id or ()
    if pad is not None and pad not in ends and (ids == pad).any():
        return _checked(ids, ids != pad)
    return _checked(ids, np.ones(ids.shape, bool))


def _ragged(given: Any) -> list[np.ndarray] | None:
    """Lists of ids of unequal lengths, one for each prompt; None where they are one array."""
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        return None
    if any(not hasattr(row, "__len__") or isinstance(row, str) for row in given):
        return None
    rows = [np.asarray(row) for row in given]
    if len({len(row) for row in rows}) == 1:
        return None
    if any(row.ndim != 1 for row in rows):
        raise _no_ids("lists within lists")
    return [_integers(row) for row in rows]


def _ids(given: Any) -> np.ndarray:
    array = np.asarray(given) if isinstance(given, Sequence) else as_numpy("input_ids", given)
    ids = _integers(array)
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or not len(ids):
        raise _no_ids(f"an array {list(ids.shape)}")
    return ids


def _integers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iu" and array.size:
        raise _no_ids(f"an array of {array.dtype}")
    return array.astype(np.int64)


def _no_ids(found: str) -> InputError:
    return InputError(
        "The prompt is no array of token ids",
        expected="integers [B, P] or [P], or a list of ids for each prompt",
        found=found,
        hint="net.generate([[5, 6, 7]]); a tokenizer makes ids of text",
    )


def _mask(given: Any, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.asarray(given) if isinstance(given, Sequence) else as_numpy("attention_mask", given)
    if mask.ndim == 1:
        mask = mask[None]
    if mask.shape != shape:
        raise InputError(
            "The attention mask is not of the shape of the prompt",
            expected=str(list(shape)),
            found=str(list(mask.shape)),
            hint="1 for each token, 0 for padding before it",
        )
    return mask != 0


def _checked(ids: np.ndarray, shown: np.ndarray) -> Prompt:
    empty = ~shown.any(axis=1)
    if empty.any():
        raise InputError(
            f"Row {empty.argmax()} of the prompt has no token",
            expected="at least one in each row",
            found="padding alone" if ids.shape[1] else "an empty prompt",
            hint="begin with the token that begins texts, bos_token_id",
        )
    right = ~shown[:, -1]
    if right.any():
        raise InputError(
            f"Row {right.argmax()} of the prompt has padding after its tokens",
            expected="padding before them, since the next token follows the last position",
            found="a hidden last position",
            hint="tokenize with padding_side='left', or give a list of ids for each prompt",
        )
    return Prompt(ids, shown)
