"""Reads arithmetic as what it computes: polynomials, activations, norms."""
