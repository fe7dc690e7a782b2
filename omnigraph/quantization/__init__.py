"""Quantization: calibration, ranges, rounded weights, and the precision of each layer."""
