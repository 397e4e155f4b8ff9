"""Changes to a model the user already has: controls, adapters (controls with parameters) and editors."""

from .attachment import Attachment, attachments
from .base import Adapter, Control, Editor
from .decoder_call import DecoderCall
from .decoders import DecoderAttention, attention_paths
from .dinat import enable_dinat
from .landmark_attention import LandmarkAttention, fine_tune_landmarks
from .sigmoid_attention import SigmoidAttention
from .sliding_window import SlidingWindow

__all__ = [
    "Adapter",
    "Attachment",
    "Control",
    "DecoderAttention",
    "DecoderCall",
    "Editor",
    "LandmarkAttention",
    "SigmoidAttention",
    "SlidingWindow",
    "attachments",
    "attention_paths",
    "enable_dinat",
    "fine_tune_landmarks",
]
