"""Arithmetic spelled out in ops, read back as what it computes: norms, activations."""
