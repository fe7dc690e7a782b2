"""What is quantized, how, and what is known of its values."""
