"""What kind of work an operator is, and which operators together are an attention.

Kinds, after "Generative AI Beyond LLMs" (arXiv 2312.14385): attention is the two products and the softmax between them,
not its projections, which are linear. The rules:

- a product with a parameter is "linear", one of two activations a "product", unless a softmax makes it attention;
- a softmax whose input comes from a product of two activations is attention, with that product, whatever lies between
  (a scale, a mask), and the product that its output goes into;
- a fused attention is one operator: it counts once;
- a convolution is one by its type, 1 x 1 included; upsampling moves memory;
- inside a module whose class is called ``...Norm``, what is not a product is normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

KINDS = (
    "attention",
    "linear",
    "product",
    "convolution",
    "norm",
    "activation",
    "embedding",
    "elementwise",
    "memory",
    "other",
)
#: Operators by kind; what is tagged pointwise is elementwise, the rest is other.
_NAMES = {
    "product": "mm bmm addmm baddbmm matmul linear einsum dot mv addmv mkldnn_linear _mkl_linear _linear_pointwise",
    "convolution": "convolution _convolution convolution_overrideable mkldnn_convolution conv1d conv2d conv3d",
    "norm": "native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit cudnn_batch_norm rms_norm "
    "_native_batch_norm_legit_no_training _fused_rms_norm _batch_norm_no_update batch_norm linalg_vector_norm",
    "activation": "relu gelu silu sigmoid tanh softplus elu leaky_relu hardswish hardsigmoid hardtanh mish glu celu "
    "selu log_sigmoid_forward prelu _prelu_kernel relu6 _softmax _log_softmax _safe_softmax",
    "embedding": "embedding embedding_bag _embedding_bag",
    "elementwise": "sum mean amax amin max min argmax argmin prod cumsum cumprod std var norm logsumexp any all topk "
    "sort",
    "memory": "copy clone cat stack index index_select gather scatter pad constant_pad_nd roll flip repeat fill zeros "
    "ones full arange zeros_like ones_like full_like empty empty_like new_zeros new_empty new_full contiguous _to_copy "
    "index_put where masked_fill upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d "
    "_upsample_nearest_exact2d pixel_shuffle pixel_unshuffle im2col col2im unfold_backward repeat_interleave zero "
    "expand view reshape permute transpose t slice select split chunk unbind squeeze unsqueeze as_strided detach alias "
    "_unsafe_view _reshape_alias unfold triu tril empty_strided lift_fresh split_with_sizes scalar_tensor",
}
_KIND_OF = {name: kind for kind, names in _NAMES.items() for name in names.split()}
_SOFTMAXES = ("_softmax", "_safe_softmax")
#: Kinds that may stand between the products of an attention and its softmax.
_BETWEEN = ("elementwise", "memory")


@dataclass(slots=True)
class Record:
    """One operator of a call.

    Attributes:
        name: of the operator.
        module: path of the innermost module that ran it.
        kind: one of :data:`KINDS`.
        seconds: its time.
        flops: 2 per multiply-add, of products, convolutions and fused attention.
        moved_bytes: of its inputs and outputs.
        shapes: of its tensor inputs.
        output: shape of its first output.
        sources: records that its inputs come from.
        lengths: of an attention, at the record that stands for it: maps (batch times heads), queries, keys.
        part_of: the record that stands for the attention that this one belongs to; -1: none.
        fixed: the caller said of which kind its module is.
    """

    name: str
    module: str
    kind: str
    seconds: float
    flops: int
    moved_bytes: int
    shapes: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    sources: tuple[int, ...] = ()
    lengths: tuple[int, int, int] | None = None
    part_of: int = -1
    fixed: bool = False


def kind_of(func: Any, reads_parameter: bool, module_class: str) -> str:
    """The kind of an operator by itself; :func:`find_attention` then joins those that are an attention.

    Args:
        func: the operator's overload.
        reads_parameter: one of its inputs is a parameter.
        module_class: name of the class of the module that runs it.
    """
    name = func.overloadpacket.__name__
    if "scaled_dot_product" in name or "flex_attention" in name:
        return "attention"
    kind = _KIND_OF.get(name) or _KIND_OF.get(name.removesuffix("_"))
    if kind is None:
        kind = "memory" if func.is_view else "elementwise" if torch.Tag.pointwise in func.tags else "other"
    if kind == "product":
        return "linear" if reads_parameter else "product"
    if "Norm" in module_class and kind in ("elementwise", "activation", "other"):
        return "norm"
    return kind


def find_attention(records: Sequence[Record]) -> None:
    """Mark the products and softmaxes that are an attention together, and what lies between them, in place."""
    for i, record in enumerate(records):
        if record.lengths is not None:  # a fused one
            record.part_of = i
        if record.name not in _SOFTMAXES or record.fixed:
            continue
        chain = _back_to_product(records, i)
        if chain is None:
            continue
        *front, queries, keys = (1, *record.output)
        record.lengths = (math.prod(front), queries, keys)
        for j in (i, *chain):
            records[j].kind, records[j].part_of = "attention", i
    _forward_to_products(records)


def _back_to_product(records: Sequence[Record], start: int) -> list[int] | None:
    """Records between a softmax and the product of activations that it normalises, that product last."""
    chain, here = [], records[start].sources
    while here:
        found = [j for j in here if records[j].kind == "product"]
        if found:
            return [*chain, found[0]]
        between = [j for j in here if records[j].kind in _BETWEEN and j < start]
        if not between or len(chain) > 16:
            return None
        chain.append(between[0])
        here = records[between[0]].sources
    return None


def _forward_to_products(records: Sequence[Record]) -> None:
    """The products that weights go into, and what lies between (a dropout, a cast)."""
    weights = {i: i for i, r in enumerate(records) if r.lengths is not None and r.name in _SOFTMAXES}
    for i, record in enumerate(records):
        softmax = next((weights[j] for j in record.sources if j in weights), None)
        if softmax is None or record.kind not in ("product", *_BETWEEN):
            continue
        if record.kind != "product":
            weights[i] = softmax
        record.kind, record.part_of = "attention", softmax
