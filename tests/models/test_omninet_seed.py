"""Models made from a seed."""

from __future__ import annotations

import torch

from omnigraph.models import OmniNet, OmniNetConfig


def test_trained_like_leaves_no_bias_zero_and_no_norm_one():
    config = OmniNetConfig.named("tiny")
    plain = OmniNet.from_seed(config, 3)
    varied = OmniNet.from_seed(config, 3, trained_like=True)
    for name, parameter in varied.named_parameters():
        if parameter.ndim == 1:
            assert parameter.unique().numel() == parameter.numel(), name
        else:
            assert torch.equal(parameter, plain.get_parameter(name)), name
    again = OmniNet.from_seed(config, 3, trained_like=True)
    assert all(map(torch.equal, varied.parameters(), again.parameters()))
