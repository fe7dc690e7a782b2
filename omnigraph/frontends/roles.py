"""The roles of a model's inputs and outputs, from the names that Hugging Face gives them.

This is the only place where a name says what a tensor is for. All that comes after reads the role.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from omnigraph.program import Program

#: Keys or values of a layer: a past or a present, the layer's number, and the part.
_CACHE = re.compile(r"(past|present)(?:_key_values)?[._](\d+)[._](.+)")
#: By role, the names that have it.
_NAMES = {
    "tokens": r".*input_ids",
    "mask": r".*attention_mask",
    "positions": r".*position_ids|cache_position",
    "segments": r"token_type_ids",
    "embeddings": r".*_embeds|.*hidden_state(s(\.\d+)?)?|pooler_output|.*_embeddings?",
    "features": r"pixel_values|input_features|input_values",
    "logits": r"logits",
    "labels": r".*labels",
}


def role_of_name(name: str) -> str:
    """The role of a tensor, one of `omnigraph.program.ROLES`, or "" where its name says nothing."""
    if match := _CACHE.fullmatch(name):
        return match[1]
    return next((role for role, names in _NAMES.items() if re.fullmatch(names, name)), "")


def with_roles(program: Program) -> Program:
    """A program whose tensors without a role have that of their name."""
    inputs = (replace(s, role=s.role or role_of_name(s.name)) for s in program.inputs)
    outputs = {name: role_of_name(name) for name in program.outputs} | dict(program.output_roles)
    return replace(program, inputs=tuple(inputs), output_roles=outputs)


def state_of(inputs: Iterable[str], outputs: Iterable[str]) -> dict[str, str]:
    """Each past among the inputs, and the present of the same layer and part among the outputs."""
    presents = {m.group(2, 3): m[0] for m in _caches(outputs) if m[1] == "present"}
    pasts = (m for m in _caches(inputs) if m[1] == "past")
    return {m[0]: presents[m.group(2, 3)] for m in pasts if m.group(2, 3) in presents}


def _caches(names: Iterable[str]) -> Iterable[re.Match[str]]:
    return filter(None, map(_CACHE.fullmatch, names))
