"""Saved models: folders of weights, configuration and model card, here and on the Hugging Face hub."""

from .card import render
from .files import CARD, CONFIG, FORMAT, WEIGHTS, is_ours, read_config, read_weights, write, write_card
from .remote import PREFIX, is_remote, local_folder, push_folder
from .saved import Saved
from .weights import Weights, find_weights

__all__ = [
    "CARD",
    "CONFIG",
    "FORMAT",
    "PREFIX",
    "WEIGHTS",
    "Saved",
    "Weights",
    "find_weights",
    "is_ours",
    "is_remote",
    "local_folder",
    "push_folder",
    "read_config",
    "read_weights",
    "render",
    "write",
    "write_card",
]
