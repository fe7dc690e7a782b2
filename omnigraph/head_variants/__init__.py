"""The same program with fewer heads, and the gates that choose among them."""
