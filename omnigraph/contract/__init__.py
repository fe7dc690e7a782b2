"""The numerical contract: how far numbers may be from torch's, and who compares them."""
