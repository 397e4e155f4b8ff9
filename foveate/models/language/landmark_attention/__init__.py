"""Language models of landmark attention (arXiv 2305.16300): the published one, and the window it is compared with."""

from .gpt import PUBLISHED, LandmarkGPT, LandmarkGPTState, insert_landmarks, remove_landmarks
from .window import WindowGPT, WindowGPTState

__all__ = [
    "PUBLISHED",
    "LandmarkGPT",
    "LandmarkGPTState",
    "WindowGPT",
    "WindowGPTState",
    "insert_landmarks",
    "remove_landmarks",
]
