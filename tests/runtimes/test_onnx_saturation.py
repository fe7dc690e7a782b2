"""Sums of 8-bit products in onnxruntime: the product that says whether they saturate here."""

import numpy as np
import onnx
import onnxruntime

from omnigraph.runtimes.onnx import _PRODUCT, sums_saturate

PRODUCT = """<ir_version: 8, opset_import: ["" : 13]>
g (uint8[1,16] x, int8[16,16] w) => (int32[1,16] y) { y = MatMulInteger(x, w) }"""


def test_the_model_in_bytes_is_one_product_of_integers():
    said, meant = onnx.load_from_string(_PRODUCT), onnx.parser.parse_model(PRODUCT)
    assert onnx.printer.to_text(said.graph) == onnx.printer.to_text(meant.graph)
    onnx.checker.check_model(said)


def test_sums_saturate_says_what_sums_in_16_bits_would_show():
    session = onnxruntime.InferenceSession(_PRODUCT, providers=["CPUExecutionProvider"])
    x, w = np.full((1, 16), 255, np.uint8), np.full((16, 16), 127, np.int8)
    (found,) = session.run(None, {"x": x, "w": w})
    pairs = (x.astype(np.int64).T * w.astype(np.int64)).reshape(8, 2, 16).sum(axis=1)
    narrow = np.minimum(pairs, 2**15 - 1).sum(axis=0, keepdims=True)
    expected = narrow if sums_saturate() else pairs.sum(axis=0, keepdims=True)
    assert (found == expected).all()
