"""Which heads and rows are not needed, and what must be sliced with them."""
