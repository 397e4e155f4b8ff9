"""Complete networks, in folders by what they read."""

from .base import Model
from .build import Contestant, resolve
from .language.language_model import LanguageModel
from .mixer_net import MixerNet
from .official import load_official

__all__ = ["Contestant", "LanguageModel", "MixerNet", "Model", "load_official", "resolve"]
