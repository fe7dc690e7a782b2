"""Every speed or memory figure of the README has its script here: ``python -m benchmarks.NAME``."""
