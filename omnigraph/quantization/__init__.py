"""What an export must know to quantize: ranges, rounded weights, the precision of each layer."""
