"""Faults planted in exports, to see whether the contract finds them."""
