"""Imported by the fork server: what every worker would otherwise load, or find out, anew.

torch comes with the parts that it loads at the first training step. The garbage collector rests: modules that load
leave it nothing to find, and its looking takes a quarter of the time. A worker turns it on again.
"""

# ruff: noqa: E402, F401 - the collector rests before anything is imported; what is imported is not used here

import gc

gc.disable()

import torch
import torch._dynamo

from ..registry import entries
from . import finished, worker

entries()
