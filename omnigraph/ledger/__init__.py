"""The ledger of an artifact: what each attention and each layer became."""
