"""Changes to a model the user already has: controls, adapters (controls with parameters) and editors."""

from .attachment import Attachment, attachments
from .base import Adapter, Control, Editor
from .dinat import enable_dinat

__all__ = ["Adapter", "Attachment", "Control", "Editor", "attachments", "enable_dinat"]
