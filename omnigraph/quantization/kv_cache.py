"""Key/value caches in eight bits: their scales, and the references of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from omnigraph.contract.graph_check import GraphRunner, rounded_activations
from omnigraph.contract.reference import Reference
from omnigraph.export_job import TracedProgram
from omnigraph.passes.base import run_passes
from omnigraph.passes.quantize_caches import QuantizeCaches
from omnigraph.program import Case, Program, TensorSpec, fit_sizes

#: How many input sets give the ranges of keys and values, and their length.
_SETS, _LENGTH = 16, 64
_MOST = 127


def quantize_caches(item: TracedProgram, program: Program) -> TracedProgram:
    """A traced program whose key/value caches are int8 at its boundary, in Graph and references.

    Scales are those of the largest key and value of each head, over input sets of the program's
    own. A program without a past is given back as it is.

    Args:
        item: the program, whose Graph is changed.
        program: what it was traced from.
    """
    if not item.state or item.graph is None:
        return item
    scales = _scales(item, program)
    state = {given: taken for taken, given in item.state}
    run_passes(item.graph, [QuantizeCaches(state, scales)])
    by_input = {state[name]: scale for name, scale in scales.items()}
    return replace(
        item,
        inputs=_in_int8(item.inputs, by_input),
        outputs=_in_int8(item.outputs, scales),
        references=[_converted(r, by_input, scales) for r in item.references],
        golden=_converted(item.golden, by_input, scales),
        greedy=replace(
            item.greedy,
            references=[_converted(r, by_input, scales) for r in item.greedy.references],
        ),
        rounded_activations=rounded_activations(item.graph),
    )


def _scales(item: TracedProgram, program: Program) -> dict[str, np.ndarray]:
    """By output: [H] float32, a 127th of the largest magnitude of each head."""
    assert item.graph is not None
    runner = GraphRunner(item.graph)
    largest: dict[str, np.ndarray] = {}
    for seed in range(_SETS):
        sizes = fit_sizes(program, {"batch": 1, "past": 0}, _LENGTH if seed % 2 else 1 + seed)
        inputs = program.make_inputs(Case("caches", sizes, seed=2000 + seed))
        found = runner.run({name: tensor.cpu().numpy() for name, tensor in inputs.items()})
        for _, given in item.state:
            if found[given].ndim == 4 and found[given].size:
                most = np.abs(found[given]).max(axis=(0, 2, 3))
                largest[given] = np.maximum(largest.get(given, 0), most)
    for reference in item.references:  # longer ones among them
        for _, given in item.state:
            if (result := reference.outputs.get(given)) is not None and result.size:
                most = np.abs(result).max(axis=(0, 2, 3))
                largest[given] = np.maximum(largest.get(given, 0), most)
    return {
        name: np.where(most > 0, most / _MOST, 1).astype(np.float32)
        for name, most in largest.items()
    }


def _in_int8(
    specs: Sequence[TensorSpec], scales: Mapping[str, np.ndarray]
) -> tuple[TensorSpec, ...]:
    return tuple(
        replace(s, dtype="int8", least=None, greatest=None) if s.name in scales else s
        for s in specs
    )


def _converted(
    reference: Reference, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> Reference:
    """A reference with its past in int8, and its present in units of the scale, not rounded."""
    feeds = dict(reference.feeds)
    for name, scale in inputs.items():
        if name in feeds:
            quantized = np.rint(feeds[name] / _by_head(scale))
            feeds[name] = np.clip(quantized, -128, _MOST).astype(np.int8)
    results = dict(reference.outputs)
    for name, scale in outputs.items():
        if name in results:
            results[name] = results[name] / _by_head(scale)
    return Reference(reference.case, feeds, results)


def _by_head(scale: np.ndarray) -> np.ndarray:
    """[H] as what multiplies [B, H, S, D]."""
    return scale.reshape((-1, 1, 1))
