"""What passes read a Graph with, and build it from: masks, positions, heads, layouts. No passes."""
