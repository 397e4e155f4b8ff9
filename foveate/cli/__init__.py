"""The command line. Each verb lives in its own file; torch is imported by a verb that needs it, not before."""

from .main import main

__all__ = ["main"]
