"""The program that reads the source of a decoder with an encoder, once for each request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnigraph.artifact import Artifact
from omnigraph.errors import InputError
from omnigraph.program import TensorSpec
from omnigraph.runtimes.foreign_arrays import as_numpy
from omnigraph.runtimes.generation.runner import Runner


@dataclass(frozen=True)
class Encoder:
    """A program whose outputs a decoder's step takes.

    Args:
        name: the program.
        source: its input of token ids [B, S], or of features [B, …].
        mask: its input [B, S], if there is one.
        gives: the outputs that the step takes, such as the keys and values of cross-attention.
        shows: whether the step takes the mask, too.
    """

    name: str
    source: TensorSpec
    mask: TensorSpec | None
    gives: tuple[str, ...]
    shows: bool

    @classmethod
    def of(cls, artifact: Artifact, needed: Sequence[str]) -> Encoder | None:
        """The program that gives inputs of a step; None where none gives one of them.

        Args:
            needed: the inputs of the step besides its tokens, positions and past.
        """
        for name, entry in artifact.programs.items():
            given = tuple(spec.name for spec in entry.outputs if spec.name in needed)
            sources = [spec for spec in entry.inputs if spec.role in ("tokens", "features")]
            if not given or len(sources) != 1 or entry.state:
                continue
            masks = [spec for spec in entry.inputs if spec.role == "mask"]
            mask = masks[0] if masks else None
            return cls(name, sources[0], mask, given, mask is not None and mask.name in needed)
        return None

    def read(
        self, session: Runner, source: Any, mask: Any, variant: str | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Run the encoder.

        Args:
            source: ids [B, S] or [S] of any integer type, or features [B, …].
            mask: [B, S], 1 for a token and 0 for padding; None shows all.

        Returns:
            The source with its batch, and the inputs of the step by name.

        Raises:
            InputError: the source has no batch, or there is no input for the mask.
        """
        array = self._source(source)
        feeds = {self.source.name: array.astype(self.source.dtype)}
        shown: dict[str, np.ndarray] = {}
        if mask is not None and self.mask is None:
            raise InputError(
                f"Program {self.name!r} takes no mask",
                expected=f"{self.source.name} alone",
                found="an attention_mask",
                hint="give sources of one length in each request, without a mask",
            )
        if self.mask is not None:
            given = np.ones(array.shape[:2]) if mask is None else np.asarray(mask)
            shown = {self.mask.name: np.atleast_2d(given).astype(self.mask.dtype)}
            feeds |= shown
        outputs = session.run(feeds, program=self.name, variant=variant)
        kept: Mapping[str, np.ndarray] = {name: outputs[name] for name in self.gives}
        return array, {**kept, **(shown if self.shows else {})}

    def _source(self, given: Any) -> np.ndarray:
        array = as_numpy(self.source.name, np.asarray(given) if isinstance(given, list) else given)
        if self.source.role == "tokens" and array.ndim == 1:
            array = array[None]
        kind = "iu" if self.source.role == "tokens" else "fiu"
        if array.ndim != len(self.source.shape) or array.dtype.kind not in kind or not len(array):
            raise InputError(
                f"The source is not what program {self.name!r} reads",
                expected=f"{self.source.name}, {self.source.dtype} {list(self.source.shape)}",
                found=f"{array.dtype} {list(array.shape)}",
                hint="texts of unequal lengths are padded to one array, with an attention_mask",
            )
        return array
