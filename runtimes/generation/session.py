"""`GeneratesText`: what a Session does with a program that takes a past."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    import numpy as np

    from omnigraph.artifact import Artifact
    from omnigraph.runtimes.generation.config import GenerationConfig
    from omnigraph.runtimes.generation.decoder import Decoder
    from omnigraph.runtimes.generation.result import Generation, Token
    from omnigraph.runtimes.generation.step_program import StepProgram
    from omnigraph.runtimes.generation.tokenizer import ArtifactTokenizer


class GeneratesText:
    """The methods of a Session that generate."""

    artifact: Artifact

    @property
    def generation_config(self) -> GenerationConfig:
        """The parameters of ``generate`` that the artifact brings along.

        Raises:
            UnsupportedError: one of them would change the result and is not made here.
        """
        from omnigraph.runtimes.generation.generate import defaults_of

        return defaults_of(self.artifact)

    @functools.cached_property
    def tokenizer(self) -> ArtifactTokenizer:
        """The tokenizer that the artifact brings along.

        Raises:
            UnsupportedError: it has none.
            DeviceError: the package `tokenizers` is not installed.
        """
        from omnigraph.runtimes.generation.tokenizer import ArtifactTokenizer

        return ArtifactTokenizer(self.artifact)

    @overload
    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        stream: Literal[False] = False,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        stream: Literal[True],
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[Token]: ...

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        stream: bool = False,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Generation | Iterator[Token]:
        """Continue prompts, token by token.

        Several threads may generate at a time; each call has keys and values of its own.

        Args:
            input_ids: ids [B, P] or [P] of any integer type, or lists of ids of unequal lengths.
                Of a decoder with an encoder, the source: ids [B, S], or features.
            attention_mask: [B, P], 1 for a token and 0 for padding before it. Without it, ids that
                are the pad id are padding, if that is no end of texts. Of a source [B, S], whose
                padding may be anywhere.
            stream: give an iterator of `Token` that runs the model as it is read. An iterator that
                is closed, or forgotten, computes no more.
            generation_config: parameters in place of the artifact's.
            options: fields of `GenerationConfig`, such as ``max_new_tokens=64``, and of `Hooks`:
                ``seed``, ``tokenizer``, ``log_probs``, ``on_token``, ``cancel``,
                ``logits_processor``, ``stopping_criteria``, ``program``, ``variant``, and
                ``decoder_input_ids`` of a decoder with an encoder, its own prompt; without them, it
                begins with ``decoder_start_token_id``.

        Returns:
            A `Generation`, whose ``ids`` [R, L] hold the prompts, too; R is B times
            ``num_return_sequences``. With ``stream``, an iterator of tokens.

        Raises:
            UnsupportedError: no program of the artifact takes a past; or a parameter would change
                the result and is not made here.
            UsageError: there is no such parameter, or it cannot have that value.
            InputError: the prompt is no array of ids, or too long.
            RunError: the runtime failed, or gave NaN.
        """
        from omnigraph.runtimes.generation.generate import generate

        session: Any = self
        return generate(
            session,
            self._open_decoder,
            input_ids,
            attention_mask,
            stream=stream,
            config=generation_config,
            options=options,
        )

    def agenerate(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        """``generate`` for asyncio, in a thread: awaited, or with ``stream`` iterated over.

        A task that is cancelled ends the generation at the next token. ``on_token`` and other
        callables are called in that thread.

        Returns:
            An awaitable `Generation`; with ``stream=True``, an asynchronous iterator of `Token`.
        """
        ended = threading.Event()
        cancel = options.pop("cancel", None)

        def cancelled() -> bool:
            asked = cancel is not None and (
                cancel.is_set() if hasattr(cancel, "is_set") else cancel()
            )
            return ended.is_set() or bool(asked)

        run = self._stream if options.get("stream") else self._await
        return run(ended, input_ids, attention_mask, {**options, "cancel": cancelled})

    async def _await(
        self, ended: threading.Event, ids: Any, mask: Any, options: Mapping[str, Any]
    ) -> Generation:
        import asyncio  # not at load, which need not wait for it

        try:
            run: Any = self.generate
            return await asyncio.to_thread(run, ids, mask, **options)
        finally:
            ended.set()

    async def _stream(
        self, ended: threading.Event, ids: Any, mask: Any, options: Mapping[str, Any]
    ) -> AsyncIterator[Token]:
        import asyncio

        try:
            run: Any = self.generate
            tokens: Any = await asyncio.to_thread(run, ids, mask, **options)
            while (token := await asyncio.to_thread(next, tokens, None)) is not None:
                yield token
        finally:
            ended.set()

    def _open_decoder(
        self,
        program: StepProgram,
        rows: int,
        variant: str | None,
        given: Mapping[str, np.ndarray],
    ) -> Decoder:
        """A decoder that has read nothing; a runtime may keep keys and values in its own memory."""
        from omnigraph.runtimes.generation.program_decoder import ProgramDecoder

        return ProgramDecoder(self, program, rows, variant, given)  # type: ignore[arg-type]
