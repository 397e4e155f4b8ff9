"""Changes to a model the user already has: controls, adapters (controls with parameters) and editors."""

from .attachment import Attachment, attachments
from .base import Adapter, Control, Editor
from .decoder_call import DecoderCall
from .decoders import DecoderAttention, attention_paths
from .dinat import enable_dinat

__all__ = [
    "Adapter",
    "Attachment",
    "Control",
    "DecoderAttention",
    "DecoderCall",
    "Editor",
    "attachments",
    "attention_paths",
    "enable_dinat",
]
