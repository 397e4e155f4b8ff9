"""Titans (arXiv 2501.00663): memories that learn while they read, and what is built with them."""

from .chunk_places import ChunkMemoryState
from .lmm import MemoryState, TitansLMM
from .neural_memory import NeuralMemory

__all__ = ["ChunkMemoryState", "MemoryState", "NeuralMemory", "TitansLMM"]
