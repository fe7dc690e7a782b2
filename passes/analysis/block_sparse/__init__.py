"""Masks that leave out blocks, and attention by the blocks that are left."""
