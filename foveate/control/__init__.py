"""Changes to a model the user already has: controls, adapters (controls with parameters) and editors."""

from .attachment import Attachment, attachments
from .base import Adapter, Control, Editor

__all__ = ["Adapter", "Attachment", "Control", "Editor", "attachments"]
