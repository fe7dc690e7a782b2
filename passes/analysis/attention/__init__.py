"""Attention in any spelling: where it stands, its scores, mask, past and heads."""
