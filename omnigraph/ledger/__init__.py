"""What became of each attention and of each layer, as written down in the artifact."""
