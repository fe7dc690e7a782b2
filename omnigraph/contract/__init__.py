"""The numerical contract: how far outputs may be from torch's, and the code that compares them."""
