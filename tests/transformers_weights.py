"""OmniNets with the weights of Hugging Face's models, and the comparison of both."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Two layers in float32, summed in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
SIZES = {"vocab_size": 256, "hidden_size": 64, "num_layers": 2, "num_heads": 4}


def copy(ours: nn.Module, theirs: nn.Module, names: Mapping[str, str]) -> None:
    for our_name, their_name in names.items():
        ours.get_submodule(our_name).load_state_dict(theirs.get_submodule(their_name).state_dict())


def copy_layers(ours: nn.Module, theirs: nn.Module, names: Mapping[str, str]) -> None:
    for our_block, their_block in zip(ours, theirs, strict=True):
        copy(our_block, their_block, names)


def assert_real_tokens_close(got: Tensor, want: Tensor, mask: Tensor) -> None:
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], **TOLERANCE)
