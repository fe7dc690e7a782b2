"""How much worse a quantized program is than the model: one module for each kind of metric."""
