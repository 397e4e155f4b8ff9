"""Networks that read tokens, `(B, L)`."""
