"""Position biases and rotations: how they are written, and shorter forms of them."""
