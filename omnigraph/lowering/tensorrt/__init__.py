"""The ``tensorrt`` target."""
