"""The ``openvino`` target."""
