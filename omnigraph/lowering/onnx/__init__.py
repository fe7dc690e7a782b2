"""The ``onnx`` target."""
