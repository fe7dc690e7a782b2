"""OmniNet: an encoder, a decoder, or both, from one configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .attention import Attention, KeyValue
from .config import ConfigError, OmniNetConfig
from .fake_quantization import FakeQuantization
from .feed_forward import FeedForward
from .head_gate import HeadGate, sparsity_penalty
from .linear import Embedding, Linear, Quantizer, set_quantizer
from .pruning import prune, pruned_config
from .stack import Stack


class OmniNet(nn.Module):
    """A transformer of ``config.kind`` (Vaswani et al. 2017, section 3).

    B is the batch, T and S the tokens of the decoder and of the encoder, P those of the past,
    C the hidden size, H the heads, D the head size, V the vocabulary. Tokens and masks are int64.
    """

    def __init__(self, config: OmniNetConfig, *, initialize: bool = True) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.encoder = Stack(config, "encoder") if config.kind != "decoder" else None
        self.decoder = Stack(config, "decoder") if config.kind != "encoder" else None
        self.output = Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        if config.tie_embeddings:
            self.output.weight = self.token_embedding.weight
        self.fake_quantization: FakeQuantization | None = None
        if config.quantization != "none":
            self._round()
        if initialize:
            self.initialize()

    @classmethod
    def from_seed(
        cls, config: OmniNetConfig, seed: int = 0, *, trained_like: bool = False
    ) -> OmniNet:
        """A model whose weights depend on ``config`` and ``seed`` alone.

        Args:
            trained_like: biases and norms get random values too, as those of a trained model have,
                so that an export that loses or swaps one has other numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        model = cls(config, initialize=False)
        model.initialize(generator)
        if trained_like:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        noise = torch.empty_like(parameter).normal_(0.0, 0.02, generator=generator)
                        parameter.add_(noise)
        return model

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Normal weights of deviation 0.02, over sqrt(branches) where a residual branch ends.

        As GPT-2 does (Radford et al. 2019, section 2.3).
        """
        done: set[int] = set()
        branches = 2 * max(self.config.encoder_layers, self.config.decoder_layers)
        ends = {id(m.output) for m in self.modules() if isinstance(m, Attention)}
        ends |= {id(m.down) for m in self.modules() if isinstance(m, FeedForward)}
        for module in self.modules():
            if not isinstance(module, nn.Linear | nn.Embedding) or id(module.weight) in done:
                continue
            done.add(id(module.weight))
            deviation = 0.02 / math.sqrt(branches) if id(module) in ends else 0.02
            module.weight.normal_(0.0, deviation, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        if self.output.bias is not None:
            self.output.bias.zero_()
        for module in self.modules():
            if isinstance(module, HeadGate):
                module.open_all()

    # -- running ---------------------------------------------------------------------------

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Run the encoder.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 1 for a token and 0 for padding.

        Returns:
            last_hidden_state [B, S, C], and cross_key_values: keys and values [B, H, S, D] of the
            cross-attention of each decoder layer (none where there is no decoder).

        Raises:
            ValueError: the model has no encoder, or absolute positions do not reach that far.
        """
        encoder = self._side("encoder")
        with self._autocast(input_ids):
            hidden, _ = encoder(input_ids, self.token_embedding(input_ids), attention_mask)
            if self.decoder is None:
                return hidden, []
            across = (block.cross_attention for block in self.decoder.layers())
            return hidden, [attention.project(hidden) for attention in across if attention]

    def decode(
        self,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None = None,
        past_key_values: Sequence[KeyValue] | None = None,
        cross_key_values: Sequence[KeyValue] | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Run the decoder over some more tokens.

        Args:
            decoder_input_ids: [B, T].
            decoder_attention_mask: [B, P+T], 1 for a token and 0 for padding, the past first.
            past_key_values: for each layer keys and values [B, H, P, D] of an earlier call.
            cross_key_values: what `encode` gave, for kind encoder-decoder.
            attention_mask: [B, S], the encoder's.

        Returns:
            logits [B, T, V], and for each layer keys and values [B, H, P+T, D].

        Raises:
            ValueError: the model has no decoder, cross_key_values lack, or absolute positions do
                not reach that far.
        """
        decoder = self._side("decoder")
        if self.encoder is not None and not cross_key_values:
            raise ValueError(
                "decode of kind=encoder-decoder: expected cross_key_values, found none\n"
                "hint: pass the second result of encode"
            )
        with self._autocast(decoder_input_ids):
            hidden, presents = decoder(
                decoder_input_ids,
                self.token_embedding(decoder_input_ids),
                decoder_attention_mask,
                past_key_values,
                cross_key_values,
                attention_mask,
            )
            return self.output(hidden), presents

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The whole model.

        Args:
            input_ids: [B, S], of the encoder, or of the decoder where it is alone.
            attention_mask: [B, S], 1 for a token and 0 for padding.
            decoder_input_ids: [B, T], for kind encoder-decoder.
            decoder_attention_mask: [B, T], likewise.

        Returns:
            logits, [B, T, V] ([B, S, V] where there is one side).

        Raises:
            ValueError: decoder_input_ids lack where there are two sides, or are given where not.
        """
        if (decoder_input_ids is not None) != (self.config.kind == "encoder-decoder"):
            raise ValueError(
                f"forward of kind={self.config.kind}: expected "
                f"{'' if decoder_input_ids is None else 'no '}decoder_input_ids\n"
                "hint: only an encoder-decoder takes tokens for both sides"
            )
        if self.encoder is None:
            return self.decode(input_ids, attention_mask)[0]
        hidden, cross = self.encode(input_ids, attention_mask)
        if decoder_input_ids is None:
            with self._autocast(input_ids):
                return self.output(hidden)
        return self.decode(
            decoder_input_ids,
            decoder_attention_mask,
            cross_key_values=cross,
            attention_mask=attention_mask,
        )[0]

    def _autocast(self, input_ids: Tensor) -> AbstractContextManager[object]:
        """The precision that the configuration asks for; a trace keeps that of the weights."""
        if self.config.autocast == "none" or torch.compiler.is_exporting():
            return nullcontext()
        return torch.autocast(input_ids.device.type, getattr(torch, self.config.autocast))

    def _side(self, side: str) -> Stack:
        stack = self.encoder if side == "encoder" else self.decoder
        if stack is None:
            raise ValueError(
                f"{side}: expected a model that has one, found kind={self.config.kind}\n"
                "hint: set kind=encoder-decoder"
            )
        return stack

    # -- changing --------------------------------------------------------------------------

    def prune_heads(self, heads: Mapping[int | str, Iterable[int]]) -> None:
        """Take heads out for good: the weights shrink, the numbers are those without these heads.

        Args:
            heads: by layer, numbers of heads as they were before any removal. A layer is a number
                (self-attentions, the encoder's first) or a name such as ``decoder.0.cross``.

        Raises:
            ConfigError: no such layer or head, or none would be left, or the model is quantized;
                nothing is changed then.
        """
        if self.config.quantization != "none":
            raise ConfigError(
                "quantization", "none", self.config.quantization, "prune heads before quantizing"
            )
        self.config = pruned_config(self.config, heads)
        for stack in (self.encoder, self.decoder):
            if stack is not None:
                stack.config = self.config
        prune(self, self.config)

    def sparsity_penalty(self) -> Tensor:
        """What to add to the loss so that head gates close: a scalar, of the last forward."""
        return sparsity_penalty(self, self.config.head_pruning_penalty)

    def set_quantizer(self, quantizer: Quantizer | None) -> None:
        """Pass the input and the weight of each linear layer through ``quantizer``, or stop it."""
        set_quantizer(self, quantizer)

    def prepare_quantization(self, inputs: str = "uint8") -> FakeQuantization:
        """Round what every linear layer multiplies from now on, for training that is aware of it.

        Scales are to be observed next, and may be learned then::

            rounding = model.prepare_quantization()
            with rounding.observing():
                model(**batch)
            rounding.learn()

        Args:
            inputs: "uint8" for CPUs, "int8" for GPUs: the type of what layers multiply.

        Returns:
            All roundings, a part of the model, which is saved and loaded with it.

        Raises:
            ConfigError: there is no such type, or the model is quantized already.
        """
        if self.config.quantization != "none":
            raise ConfigError(
                "quantization", "none", self.config.quantization, "it is prepared once"
            )
        self.config = replace(self.config, quantization=inputs)
        return self._round()

    def _round(self) -> FakeQuantization:
        self.fake_quantization = FakeQuantization(self, self.config.quantization)
        self.fake_quantization.to(self.token_embedding.weight.device)
        self.set_quantizer(self.fake_quantization.quantize)
        self.token_embedding.path = "token_embedding"
        self.token_embedding.quantizer = self.fake_quantization.quantize
        return self.fake_quantization

    # -- keeping ---------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into ``folder``; tied weights are kept once."""
        from .checkpoint import save

        save(self, self.config, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> OmniNet:
        """Read what `save` wrote.

        Raises:
            CheckpointError: a file lacks, or its tensors are not those of the configuration.
        """
        from .checkpoint import load

        model = load(Path(folder), lambda config: cls(config, initialize=False))
        if model.config.tie_embeddings:
            model.output.weight = model.token_embedding.weight
        return model
