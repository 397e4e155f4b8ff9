"""Networks that read images ``(B, C, H, W)`` and volumes ``(B, C, D, H, W)``."""
