"""Ops: tensor in, tensor out, stateless. Each file holds the readable definition and the fast forms beside it."""

from .backend import backend, current_backend

__all__ = ["backend", "current_backend"]
