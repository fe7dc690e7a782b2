"""Reads position biases and rotations, and gives them shorter forms."""
