"""The program of an artifact that reads the next tokens with a past, found by its roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omnigraph.artifact import Artifact, ProgramEntry
from omnigraph.errors import UnsupportedError
from omnigraph.program import Dim, DimLike, TensorSpec
from omnigraph.runtimes.generation.encoder import Encoder

#: How an artifact gets a program with a past.
_HOW = (
    "export a folder of a causal language model, or omninet with --set kind=decoder, with its "
    "program decode; for a module of your own, give a Program whose state pairs each past with "
    "its present"
)


@dataclass(frozen=True)
class StepProgram:
    """A program with a past, as a decoder calls it.

    Args:
        name: the program.
        tokens: the input [B, T] of token ids.
        mask: the input [B, P + T], if there is one.
        positions: the input [B, T] or [T], if there is one.
        logits: the output [B, T, V], or [B, 1, V] of the last token alone.
        state: the output that each past takes on the next call, and the axis of its positions.
        capacity: how many positions a row may have; None is no bound.
        most_tokens: how many tokens one call may take; None is no bound.
        pads_left: whether padding before a row changes nothing in it.
        encoder: the program that reads the source of a decoder with an encoder.
    """

    name: str
    tokens: TensorSpec
    mask: TensorSpec | None
    positions: TensorSpec | None
    logits: str
    state: Mapping[str, tuple[str, int]]
    capacity: int | None
    most_tokens: int | None
    pads_left: bool
    encoder: Encoder | None = None

    @classmethod
    def of(cls, artifact: Artifact, name: str | None = None) -> StepProgram:
        """The program of an artifact that generates; ``name`` asks for one.

        Raises:
            UnsupportedError: there is none, or it needs inputs that a decoder has not.
        """
        found = name if name is not None else _with_past(artifact)
        entry = artifact.programs.get(found or "")
        if found is None or entry is None or not _past_of(entry):
            raise _no_past(artifact, name)
        (tokens,), masks, positions = (
            [spec for spec in entry.inputs if spec.role == role]
            for role in ("tokens", "mask", "positions")
        )
        state = _state(found, entry)
        known = {*state, *(spec.name for spec in (tokens, *positions))}
        encoder = Encoder.of(artifact, [s.name for s in entry.inputs if s.name not in known])
        if encoder is not None:
            known |= {*encoder.gives}
            masks = [m for m in masks if encoder.mask is None or m.name != encoder.mask.name]
            known |= {encoder.mask.name} if encoder.shows and encoder.mask is not None else set()
        known |= {mask.name for mask in masks}
        _check_inputs(found, [s for s in entry.inputs if s.name not in known], masks)
        ranges = artifact.manifest["dimensions"]
        capacity, most = _limits(found, tokens, entry, state, ranges)
        return cls(
            name=found,
            tokens=tokens,
            mask=masks[0] if masks else None,
            positions=positions[0] if positions else None,
            logits=next(spec.name for spec in entry.outputs if spec.role == "logits"),
            state=state,
            capacity=capacity,
            most_tokens=most,
            pads_left=bool(masks)
            and (
                any(len(spec.shape) == 2 for spec in positions)
                or bool(artifact.manifest.get("generation", {}).get("pads_left"))
            ),
            encoder=encoder,
        )


def _past_of(entry: ProgramEntry) -> bool:
    """Whether a program reads tokens with a past, and scores those that follow."""
    inputs = [spec.role for spec in entry.inputs]
    scores = any(spec.role == "logits" and len(spec.shape) == 3 for spec in entry.outputs)
    return inputs.count("tokens") == 1 and "past" in inputs and scores and bool(entry.state)


def _with_past(artifact: Artifact) -> str | None:
    default = artifact.manifest["default_program"]
    for name in (default, "decode", *artifact.programs):
        if name in artifact.programs and _past_of(artifact.programs[name]):
            return name
    return None


def _no_past(artifact: Artifact, name: str | None) -> UnsupportedError:
    why = artifact.manifest.get("model", {}).get("not_made", {}).get("decode")
    what = f"Program {name!r} of {artifact.path}" if name is not None else f"{artifact.path}"
    return UnsupportedError(
        f"{what} cannot generate: no program of it takes a past",
        expected="a program that reads tokens with the keys and values before them",
        found=f"only {', '.join(artifact.programs)}" + (f"; {why}" if why else ""),
        hint=_HOW,
    )


def _state(name: str, entry: ProgramEntry) -> dict[str, tuple[str, int]]:
    """The output and the axis of positions of each past."""
    inputs = {spec.name: spec for spec in entry.inputs}
    found = {}
    for past, present in entry.state:
        shape: Sequence[DimLike] = inputs[past].shape
        axes = [axis for axis, dim in enumerate(shape) if axis > 0 and isinstance(dim, str)]
        if len(axes) != 1:
            raise UnsupportedError(
                f"The state {past!r} of program {name!r} is no past that grows with the tokens",
                expected="one axis with a name besides the batch, [B, H, P, D]",
                found=str(list(shape)),
                hint="generate needs keys and values of all tokens before",
            )
        found[past] = (present, axes[0])
    return found


def _check_inputs(name: str, others: Sequence[TensorSpec], masks: Sequence[TensorSpec]) -> None:
    """Refuse a program that needs more than tokens, a mask, positions and a past."""
    needed = [spec for spec in others if spec.default is None]
    if needed or len(masks) > 1:
        found = needed[0] if needed else masks[1]
        raise UnsupportedError(
            f"Program {name!r} cannot generate by itself: it needs {found.name!r}",
            expected="inputs that are tokens, a mask, positions and a past",
            found=f"{found.name}, {found.dtype} {list(found.shape)}",
            hint="no program of the artifact gives it: export a decoder with its encoder, as "
            "--programs encode,decode; `Session.run` takes all inputs",
        )
    if masks and len(masks[0].shape) != 2:
        raise UnsupportedError(
            f"The mask {masks[0].name!r} of program {name!r} is not one that generate can make",
            expected="[B, P + T]: 1, and 0 for padding",
            found=str(list(masks[0].shape)),
            hint="export a program whose attention mask has two axes",
        )


def _limits(
    name: str,
    tokens: TensorSpec,
    entry: ProgramEntry,
    state: Mapping[str, tuple[str, int]],
    dimensions: Mapping[str, Sequence[int | None]],
) -> tuple[int | None, int | None]:
    """How many positions a row may have, and how many tokens one call may take.

    Raises:
        UnsupportedError: a call cannot take one token, or a past cannot be empty.
    """
    pasts = [spec for spec in entry.inputs if spec.name in state]
    past = str(pasts[0].shape[state[pasts[0].name][1]])
    step = tokens.shape[1]
    now = Dim(step, step) if isinstance(step, int) else _range(dimensions, step)
    before, both = _range(dimensions, past), _range(dimensions, f"{past} + {step}")
    if any(spec.default is None for spec in pasts) or 0 not in before:
        raise UnsupportedError(
            f"Program {name!r} cannot begin: its past cannot be empty",
            expected=f"{past} from 0 on",
            found=str(before),
            hint="export it with --dynamic past=0:N",
        )
    if 1 not in now or before.multiple > 1:
        raise UnsupportedError(
            f"Program {name!r} cannot take one token after another",
            expected="1 token in a call, and a past of any length",
            found=f"{step} of {now}, {past} of {before}",
            hint="export it with --dynamic sequence=1:N",
        )
    ends = [end for end in (None if before.max is None else before.max + 1, both.max) if end]
    return min(ends, default=None), now.max


def _range(dimensions: Mapping[str, Sequence[int | None]], name: str) -> Dim:
    ends = dimensions.get(name, (0, None))
    return Dim(ends[0] or 0, ends[1], ends[2] or 1 if len(ends) > 2 else 1)
