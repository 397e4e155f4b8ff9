"""The network of "Attention as an RNN" for series: a post-norm encoder of Aaren layers.

Feng et al. 2024 (arXiv 2405.13956); the layer is in :mod:`foveate.mixers.aaren`, what surrounds it in
:mod:`.step_encoder`.
"""

from __future__ import annotations

from ...mixers.aaren import Aaren
from ...registry import register
from ...spec import ModelSpec
from .step_encoder import StepEncoder


@register("model", "aaren_encoder", system="aaren")
class AarenEncoder(StepEncoder):
    """Post-norm encoder of Aaren layers, one token per time step: a stream of any length in constant memory.

    Args:
        task: "forecast" or "classify-series".
        seq_len: steps T of the input.
        enc_in: variables C of the input.
        outputs: steps to forecast, or number of classes.
        marks: columns of time features; 0: the series has none.
        dim: channels of a token.
        depth: number of layers.
        num_heads: attention heads; must divide ``dim``.
        hidden: width of the feed-forwards.
        dropout: after the embedding and inside the layers.
        causal: must be True.

    Raises:
        InvalidValue: another task, a size below 1, ``causal=False``.
    """

    spec = ModelSpec(reads="series", tasks=("forecast", "classify-series"), streaming="own", onnx=True)
    mixer = Aaren
