"""Cost formulas and measurements; numbers only, no model is imported here."""

from .cost import Cost

__all__ = ["Cost"]
