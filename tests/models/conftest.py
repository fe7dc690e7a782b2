"""What the tests of the model share: tokens, masks, and weights that leave nothing at 0 or 1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from omnigraph.models import OmniNet, OmniNetConfig


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Fill all parameters, so that no bias, norm or position is at a value that hides an error."""

    def fill(module: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                is_norm = "norm" in name.lower() and name.endswith("weight")
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.2 * noise if is_norm else 0.1 * noise)
        return module.eval()

    return fill


@pytest.fixture
def make_model(randomize: Callable[[nn.Module], nn.Module]) -> Callable[..., OmniNet]:
    """A tiny model in eval mode with randomized weights."""

    def make(**overrides: object) -> OmniNet:
        model = OmniNet(OmniNetConfig.named("tiny", **overrides))
        randomize(model)
        return model

    return make


@pytest.fixture
def tokens() -> Callable[[int, int], Tensor]:
    """Random tokens [B, T] for a vocabulary of 256, none of them 0."""
    return lambda batch, length: torch.randint(1, 256, (batch, length))


@pytest.fixture
def padding() -> Callable[..., Tensor]:
    """A mask [B, T] whose first row lacks its last two tokens and, by default, second its first."""

    def make(batch: int, length: int, left: bool = True) -> Tensor:
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[0, -2:] = 0
        if left and batch > 1:
            mask[1, :3] = 0
        return mask

    return make
