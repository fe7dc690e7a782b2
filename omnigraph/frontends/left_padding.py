"""Whether padding before a row changes what a program computes of the row."""

from __future__ import annotations

import torch

from omnigraph.program import Case, Program, TensorSpec, fit_sizes

_TOKENS = 5
#: How many padding tokens are tried.
_PADDINGS = (1, 6)
#: Sums in another order differ by less, another position by more.
_MOST_ERROR = 1e-4
#: Rotary positions that depend on how long a text is: padding counts there, at lengths not tried.
_BY_LENGTH = {"dynamic", "longrope"}


def ignores_left_padding(program: Program) -> bool:
    """Whether rows of unequal lengths may be padded on the left, behind the mask.

    That is so of rotary and relative positions, and of positions that count what the mask shows. It
    is not so where a position is the column of a token. Found by running the module: False for a
    program that has no past, has no mask, or does not run on a few tokens.
    """
    specs = {role: _named(program, role) for role in ("tokens", "mask", "past", "positions")}
    logits = [name for name, role in program.output_roles.items() if role == "logits"]
    if len(specs["tokens"]) != 1 or len(specs["mask"]) != 1 or not specs["past"] or not logits:
        return False
    if specs["positions"] or _depends_on_length(program.module):
        return False
    try:
        plain = _last_logits(program, logits[0], 0)
        return all(
            _error(_last_logits(program, logits[0], padding), plain) < _MOST_ERROR
            for padding in _PADDINGS
        )
    except Exception:  # whatever a module of someone else raises: it is then run row by row
        return False


def _named(program: Program, role: str) -> list[TensorSpec]:
    return [spec for spec in program.inputs if spec.role == role]


def _depends_on_length(module: object) -> bool:
    if not isinstance(module, torch.nn.Module):
        return True
    found: set[str] = set()
    for part in module.modules():
        kind = getattr(part, "rope_type", None)
        found |= set(kind.values()) if isinstance(kind, dict) else {str(kind)}
    return bool(found & _BY_LENGTH)


def _last_logits(program: Program, name: str, padding: int) -> torch.Tensor:
    """The scores [V] after a few tokens that have padding before them, without a past."""
    (tokens,), (mask,) = _named(program, "tokens"), _named(program, "mask")
    growing = {dim for spec in _named(program, "past") for dim in spec.shape[1:]}
    sizes = {dim: 0 if dim in growing else _TOKENS for dim in program.dim_names()}
    inputs = program.make_inputs(Case("padding", fit_sizes(program, sizes), seed=7))
    ids = inputs[tokens.name]
    before = ids[:, :1].expand(-1, padding)
    inputs[tokens.name] = torch.cat([before, ids], dim=1)
    shown = torch.ones_like(inputs[tokens.name], dtype=inputs[mask.name].dtype)
    shown[:, :padding] = 0
    inputs[mask.name] = shown
    with torch.no_grad():
        outputs = program.module(**inputs)
    if isinstance(outputs, dict):
        return outputs[name][0, -1]
    return outputs[program.outputs.index(name)][0, -1]


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The root mean square of the difference, over that of what is wanted."""
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))
