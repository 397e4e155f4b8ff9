"""All checks, imported for their registration."""

from . import (  # noqa: F401
    checks_cost,
    checks_export,
    checks_export_models,
    checks_forecast,
    checks_look,
    checks_mixer,
    checks_model,
    checks_second_inputs,
    checks_time,
    checks_tools,
)
from .checking import CHECKS, Check, Result, checks_for, run_check

__all__ = ["CHECKS", "Check", "Result", "checks_for", "run_check"]
