"""S2-Attention's patterns against linxihui/dkernel's ``get_sparse_attn_mask``, and attention to them."""

from __future__ import annotations

import torch.nn.functional as F
from cases import Answer, Case

from foveate.ops.block_sparse_attention import block_sparse_attention
from foveate.ops.s2_pattern import local_stride_block_mask, to_csr

TOLERANCE = 1e-5
SIZES = {"b", "head_dim"}  # which the inputs show
TOOLS = {"dtype", "device", "return_dense"}  # of the released function, for what it returns besides


def run(case: Case) -> Answer:
    options = {key: value for key, value in case.config.items() if key not in SIZES | TOOLS}
    if isinstance(options.get("local_blocks"), list):
        options["local_blocks"] = tuple(options["local_blocks"])
    kept = local_stride_block_mask(**options)  # an option that it does not have is an error
    crow, col = to_csr(kept)
    leaves = {name: case.inputs[name].requires_grad_() for name in ("q", "k", "v")}
    q, k, v = leaves.values()
    size, causal, mask = options.get("block_size", 64), options.get("causal", True), None
    past = options.pop("past_len", None) or 0
    whole = local_stride_block_mask(**options)[:, past // size :]  # queries may begin inside a block
    if causal:  # the release's token i sees tokens up to i: as many keys as there are queries, those left out included
        length, keys = options["seqlen"], k.shape[2]
        k, v = (F.pad(x, (0, 0, 0, length - keys)) for x in (k, v))
        columns = -(-length // size)
        whole = F.pad(whole, (0, columns - whole.shape[2]))
        mask = F.pad(q.new_ones(q.shape[0], keys).bool(), (0, length - keys))
    o, lse = block_sparse_attention(
        F.pad(q, (0, 0, past % size, 0)), k, v, whole[None], block_size=size, causal=causal, mask=mask, return_lse=True
    )
    o, lse = o[:, :, past % size :], lse[:, :, past % size :]
    outputs = {"block_mask": kept.float(), "crow": crow, "col": col, "o": o, "lse": lse}
    return outputs, case.gradients(o.square().mean(), leaves)
