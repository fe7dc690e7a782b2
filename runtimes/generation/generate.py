"""``generate`` over any session: prompts in, tokens out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from omnigraph.artifact import Artifact
from omnigraph.errors import InputError, UsageError
from omnigraph.runtimes.generation.beam_search import beam_search
from omnigraph.runtimes.generation.config import GenerationConfig
from omnigraph.runtimes.generation.decoder import Decoder
from omnigraph.runtimes.generation.grouped_decoder import GroupedDecoder
from omnigraph.runtimes.generation.plan import Plan, make_plan, split_options
from omnigraph.runtimes.generation.prompt import Prompt, prompt_of
from omnigraph.runtimes.generation.result import Generation, Token
from omnigraph.runtimes.generation.runner import Runner
from omnigraph.runtimes.generation.search import Step, search
from omnigraph.runtimes.generation.step_program import StepProgram
from omnigraph.runtimes.generation.stopping import REASONS
from omnigraph.runtimes.generation.tokenizer import ArtifactTokenizer

#: Opens a decoder of a program for so many rows, of a variant, with inputs that stay the same.
Opener = Callable[[StepProgram, int, str | None, Mapping[str, np.ndarray]], Decoder]
_SPECIAL = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id")


def defaults_of(artifact: Artifact) -> GenerationConfig:
    """The parameters that an artifact brings along, of its model's generation_config.json.

    Raises:
        UnsupportedError: one of them would change the result and is not made here.
        UsageError: one of them has a value that it cannot have.
    """
    return GenerationConfig.from_dict(_defaults(artifact))


def _defaults(artifact: Artifact) -> Mapping[str, Any]:
    return artifact.manifest.get("generation", {}).get("defaults", {})


def generate(
    session: Runner,
    open_decoder: Opener,
    input_ids: Any,
    attention_mask: Any,
    *,
    stream: bool,
    config: GenerationConfig | Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Generation | Iterator[Token]:
    """See ``Session.generate``."""
    artifact = session.artifact
    hooks, given = split_options(options)
    chosen = _chosen(artifact, config, given)
    if chosen.stop_strings and hooks.tokenizer is None and artifact.manifest.get("tokenizer"):
        hooks = replace(hooks, tokenizer=ArtifactTokenizer(artifact))
    program = StepProgram.of(artifact, hooks.program)
    source: np.ndarray | None = None
    fixed: Mapping[str, np.ndarray] = {}
    if (encoder := program.encoder) is not None:
        source, fixed = encoder.read(session, input_ids, attention_mask, hooks.variant)
        input_ids = _begun(hooks.decoder_input_ids, chosen, len(source))
        attention_mask = np.ones(input_ids.shape, np.int64)  # a start may be the pad id
    prompt = prompt_of(input_ids, attention_mask, chosen)
    named = {*given, *(config if isinstance(config, Mapping) else ())}
    if isinstance(config, GenerationConfig):
        named |= {"max_length", "max_new_tokens"}
    plan = make_plan(chosen, named, prompt, program.capacity, hooks, source)
    decoder = _decoder(
        lambda rows: open_decoder(program, rows, hooks.variant, fixed), program, prompt
    )
    if chosen.num_beams > 1:
        if stream or hooks.on_token is not None:
            raise UsageError(
                "Beam search has no token before it has all",
                expected="num_beams=1 with stream=True or on_token",
                found=f"num_beams={chosen.num_beams}",
                hint="leave stream and on_token out, or search greedily or by sampling",
            )
        return beam_search(decoder, plan)
    return _tokens(decoder, plan) if stream else _whole(decoder, plan)


def _begun(given: Any, config: GenerationConfig, rows: int) -> np.ndarray:
    """The decoder's own prompts, one for each source; they begin with its start, if it has one."""
    start = config.decoder_start_token_id
    start = config.bos_token_id if start is None else start
    if given is None and start is None:
        raise UsageError(
            "A decoder with an encoder needs a first token",
            expected="decoder_start_token_id or decoder_input_ids",
            found="neither, and none in the artifact",
            hint="net.generate(ids, decoder_start_token_id=…), as the model was trained",
        )
    if given is None:
        return np.full((rows, 1), start, np.int64)
    ids = np.atleast_2d(np.asarray(given))
    if len(ids) not in (1, rows) or ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise InputError(
            "decoder_input_ids are not one prompt for each source",
            expected=f"ids [{rows}, P], or [P] for all",
            found=f"an array of {ids.dtype} {list(ids.shape)}",
            hint="prompts of one length; leave them out to begin with decoder_start_token_id",
        )
    ids = np.broadcast_to(ids, (rows, ids.shape[1])).astype(np.int64)
    if start is not None and (ids[:, 0] != start).all():  # as transformers does
        ids = np.concatenate([np.full((rows, 1), start, np.int64), ids], axis=1)
    return ids


def _chosen(
    artifact: Artifact,
    config: GenerationConfig | Mapping[str, Any] | None,
    given: Mapping[str, Any],
) -> GenerationConfig:
    """The parameters: the caller's, then those of a config, then the artifact's."""
    fields = dict(_defaults(artifact))
    if isinstance(config, Mapping):
        fields |= config
    if given.get("max_length") is not None:
        given = {"max_new_tokens": None, **given}  # the caller's length counts more
    if isinstance(config, GenerationConfig):
        own = {name: fields.get(name) for name in _SPECIAL if getattr(config, name) is None}
        return config.updated({**own, **given})
    return GenerationConfig.from_dict({**fields, **given})


def _decoder(
    open_decoder: Callable[[int], Decoder], program: StepProgram, prompt: Prompt
) -> Decoder:
    """A decoder with a row for each prompt; those of unequal lengths run apart where they must."""
    padding = prompt.compact().padding
    if program.pads_left or not padding.any():
        return open_decoder(len(prompt.ids))
    return GroupedDecoder(open_decoder, padding)


def _tokens(decoder: Decoder, plan: Plan) -> Iterator[Token]:
    for step in search(decoder, plan):
        for token in _of_step(step):
            if plan.hooks.on_token is not None:
                plan.hooks.on_token(token)
            yield token


def _of_step(step: Step) -> Iterator[Token]:
    for row in np.flatnonzero(step.running):
        probability = None if step.log_probs is None else float(step.log_probs[row])
        finish = REASONS[step.ended[row]]
        yield Token(int(step.tokens[row]), int(row), probability, finish)


def _whole(decoder: Decoder, plan: Plan) -> Generation:
    tokens, log_probs = [], []
    rows = len(plan.generators)
    lengths, reasons = np.zeros(rows, np.int64), np.zeros(rows, np.int8)
    for step in search(decoder, plan):
        if plan.hooks.on_token is not None:
            for token in _of_step(step):
                plan.hooks.on_token(token)
        tokens.append(step.tokens)
        lengths += step.running
        reasons = np.where(step.running, step.ended, reasons)
        if step.log_probs is not None:
            log_probs.append(np.where(step.running, step.log_probs, np.float32(np.nan)))
    prompt = np.repeat(plan.prompt.ids, rows // len(plan.prompt.ids), axis=0)
    return Generation(
        np.concatenate([prompt, np.stack(tokens, axis=1)], axis=1),
        prompt.shape[1],
        lengths,
        tuple(REASONS[reason] for reason in reasons),
        np.stack(log_probs, axis=1) if log_probs else None,
    )
