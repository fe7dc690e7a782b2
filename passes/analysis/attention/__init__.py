"""Reads attention in any spelling: its scores, mask, past, heads and attention weights."""
