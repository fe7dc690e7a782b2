"""What an element of a tensor is as a function of its index."""
