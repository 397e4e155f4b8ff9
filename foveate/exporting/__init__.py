"""Models as files that run without foveate: PyTorch's ``.pt2`` and ONNX, verified before they are written."""

from .api import Exported, export
from .formats import FORMATS, read_facts

__all__ = ["FORMATS", "Exported", "export", "read_facts"]
