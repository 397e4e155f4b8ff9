"""Convolutional networks with polarized self-attention inside their residual blocks."""
