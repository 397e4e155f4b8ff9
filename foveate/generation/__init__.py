"""Text from language models: sampling, streams of bounded state, batches of prompts, and what speed that had."""

from .generate import Event, Generation, Result, Speed, generate
from .sampling import Sampling

__all__ = ["Event", "Generation", "Result", "Sampling", "Speed", "generate"]
