"""A Graph of one linear layer, and its weights."""

from __future__ import annotations

import numpy as np

from omnigraph.graph import Graph
from omnigraph.testing import graph_from_text, store_weights

LAYER = """g (float[N,4] x, float[4,8] w, float[8] b) => (float[N,8] y) {
    product = MatMul(x, w)
    y = Add(product, b)
}"""


def layer(dtype: type = np.float32, inner: int = 4, outer: int = 8) -> Graph:
    """A Graph with the weights w [K, M] and b [M]."""
    rng = np.random.default_rng(0)
    text = LAYER.replace("4]", f"{inner}]").replace("[4,8]", f"[{inner},{outer}]")
    graph = graph_from_text(text.replace("8]", f"{outer}]"))
    arrays = {"w": rng.standard_normal((inner, outer)), "b": rng.standard_normal(outer)}
    store_weights(graph, {name: array.astype(dtype) for name, array in arrays.items()})
    return graph


def weights(graph: Graph) -> dict[str, np.ndarray]:
    return {n: v.const_value.numpy() for n, v in graph.graph.initializers.items()}
