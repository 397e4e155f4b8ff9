"""Networks that read series, `(B, T, C)`."""
