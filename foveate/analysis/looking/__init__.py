"""Pictures of what a model attends to: which places of an image its mixers read, and by which pattern."""

from .api import look
from .looked import Looked
from .trace import Seen

__all__ = ["Looked", "Seen", "look"]
