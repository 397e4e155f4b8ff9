"""The plain Transformer that "Attention as an RNN" compares Aaren with: a post-norm encoder of softmax attention.

Vaswani et al. 2017 (arXiv 1706.03762) and Feng et al. 2024 (arXiv 2405.13956); what surrounds the layers is in
:mod:`.step_encoder`.
"""

from __future__ import annotations

from ...mixers.softmax_attention import SoftmaxAttention
from ...registry import register
from ...spec import ModelSpec
from .step_encoder import StepEncoder


@register("model", "transformer_encoder", system="softmax_attention")
class TransformerEncoder(StepEncoder):
    """Post-norm Transformer encoder, one token per time step: a stream keeps keys and values of all it read.

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
        causal: a step sees itself and earlier ones, as Aaren's must; False: all steps, and no stream.

    Raises:
        InvalidValue: another task, a size below 1.
    """

    spec = ModelSpec(reads="series", tasks=("forecast", "classify-series"), streaming="own", onnx=True)
    mixer = SoftmaxAttention
