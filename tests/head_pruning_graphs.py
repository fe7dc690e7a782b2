"""Layers of attention whose heads a test prunes: their text, their weights and their inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, OPSET, Graph

H, D, C = 4, 2, 8
#: Heads 1 and 3 are closed, and head 2 counts half.
GATE = np.array([1, 0, 0.5, 0], np.float32).reshape(1, H, 1, 1)


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def graph_with(body: str, constants: Mapping[str, np.ndarray]) -> Graph:
    """A Graph from text in which some inputs are constants."""
    model = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["": {OPSET}]> {body}')
    for value in list(model.graph.input):
        if value.name in constants:
            model.graph.input.remove(value)
            array = constants[value.name]
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    for position, node in enumerate(graph.graph):
        node.name = node.name or f"node_{position}"
        node.metadata_props[MODULE_KEY] = "model"
    return graph


def shapes(heads: int, keys: int | None = None, size: int = D) -> dict[str, np.ndarray]:
    return {
        "split": np.array([0, 0, heads, size]),
        "split_key": np.array([0, 0, keys or heads, size]),
        "merge": np.array([0, 0, heads * size]),
    }


def layer(heads: int, width: int, gated: str = "") -> str:
    """One attention whose heads are merged and projected; ``gated`` stands after it."""
    return f"""g (float[B,T,{C}] x, float[{C},{width}] wq, float[{width}] bq, float[{C},{width}] wk,
          float[{C},{width}] wv, float[{width},{C}] wo, float[1,{heads},1,1] gate,
          float[1,{heads},5,5] slope, int64[4] split, int64[3] merge)
       => (float[B,T,{C}] y) {{
      q0 = MatMul(x, wq)
      q1 = Add(q0, bq)
      q2 = Reshape(q1, split)
      q = Transpose<perm=[0,2,1,3]>(q2)
      k0 = MatMul(x, wk)
      k2 = Reshape(k0, split)
      k = Transpose<perm=[0,2,1,3]>(k2)
      v0 = MatMul(x, wv)
      v2 = Reshape(v0, split)
      v = Transpose<perm=[0,2,1,3]>(v2)
      a = Attention(q, k, v, slope)
      {gated}
      m0 = Transpose<perm=[0,2,1,3]>(c)
      m = Reshape(m0, merge)
      y = MatMul(m, wo)
    }}"""


def grouped_layer(attend: str, merged: str = "a") -> str:
    """The nodes of an attention whose keys have heads of their own number.

    Args:
        attend: what makes ``a`` of q, k and v, and more after it.
        merged: the value whose heads are merged and projected.
    """
    return f"""
      q0 = MatMul(x, wq)
      q2 = Reshape(q0, split)
      q = Transpose<perm=[0,2,1,3]>(q2)
      k0 = MatMul(x, wk)
      k2 = Reshape(k0, split_key)
      k = Transpose<perm=[0,2,1,3]>(k2)
      v0 = MatMul(x, wv)
      v2 = Reshape(v0, split_key)
      v = Transpose<perm=[0,2,1,3]>(v2)
      {attend}
      m0 = Transpose<perm=[0,2,1,3]>({merged})
      m = Reshape(m0, merge)
      y = MatMul(m, wo)"""


def layer_weights(heads: int = H, width: int = H * D) -> dict[str, np.ndarray]:
    return {
        **weights(
            wq=(C, width), bq=(width,), wk=(C, width), wv=(C, width), wo=(width, C),
            slope=(1, heads, 5, 5),
        ),
        **shapes(heads),
    }  # fmt: skip


FEEDS = {"x": np.random.default_rng(1).standard_normal((2, 5, C)).astype(np.float32)}


def plain(body: str = "", **changed: np.ndarray) -> Graph:
    text = layer(H, H * D, body) if body else layer(H, H * D).replace("(c)", "(a)")
    return graph_with(text, layer_weights() | {"gate": GATE} | changed)
