"""Changes to a model the user already has: controls, adapters (controls with parameters) and editors."""

from .attachment import Attachment, attachments
from .base import Adapter, Control, Editor
from .decoder_call import DecoderCall
from .decoders import DecoderAttention, attention_paths
from .dinat import enable_dinat
from .hip_attention import HipAttention
from .landmark_attention import LandmarkAttention, fine_tune_landmarks
from .s2_attention import S2Attention
from .seer_attention import SeerAttention
from .sigmoid_attention import SigmoidAttention
from .window_attention import SlidingWindow

__all__ = [
    "Adapter",
    "Attachment",
    "Control",
    "DecoderAttention",
    "DecoderCall",
    "Editor",
    "HipAttention",
    "LandmarkAttention",
    "S2Attention",
    "SeerAttention",
    "SigmoidAttention",
    "SlidingWindow",
    "attachments",
    "attention_paths",
    "enable_dinat",
    "fine_tune_landmarks",
]
