"""HiP attention against ``masking_iteration_draft`` and ``block_sparse_attention``, version 1.1, of DeepAuto-AI."""

from __future__ import annotations

import torch
from cases import Answer, Case

from foveate.ops.block_sparse_attention import BlockIndices, block_sparse_attention
from foveate.ops.hip_attention import hip_mask
from foveate.ops.hip_search import HipSearch

TOLERANCE = 1e-5
SIZES = {"N", "tsrc", "tdst", "head_dim", "locality_keys"}  # which the inputs show, and how they were drawn
READ = {
    "mask_k",
    "block_size_q",
    "block_size_k",
    "block_size_k_group",
    "sliding_window_size",
    "topk_head_group_size",
}
#: What the draft can do besides: an oracle instead of representatives, positions of Self-Extend.
ABSENT = {"oracle_rep", "using_extend", "rope_cos", "rope_sin"}


def run(case: Case) -> Answer:
    config, given = case.config, case.inputs
    unknown = set(config) - SIZES - READ - ABSENT
    assert not unknown, f"configuration keys that nothing reads: {sorted(unknown)}"
    assert not any(config.get(key) for key in ABSENT), "neither the oracle nor Self-Extend is built"
    group, heads = config["block_size_k_group"], config["topk_head_group_size"]
    nodes = -(-(config["mask_k"] // group) // config["block_size_k"])
    search = HipSearch(
        mask_k=nodes * config["block_size_k"] * group,
        block_size_q=config["block_size_q"],
        block_size_k=config["block_size_k"],
        key_group=group,
        window=config["sliding_window_size"] * group,  # the draft counts its window in groups
        representative="first",
        query_stride=2,
        nodes="draft",
        head_group=heads,
    )
    q, k = (given[name].unflatten(0, (-1, heads)) for name in "qk")
    kept = hip_mask(q, k, search)
    indices, counts = listed(kept, search, k.shape[2])
    outputs = {"indices": indices, "ks": counts}
    if "v" in given:  # queries are scaled already, and the draft adds no window
        v = given["v"].unflatten(0, (-1, heads))
        o = block_sparse_attention(q, k, v, kept, block_size=(search.block_size_q, search.block), scale=1.0)
        outputs["context_draft"] = o.flatten(0, 1)
    return outputs, {}


def listed(kept: BlockIndices, search: HipSearch, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As the draft lists them: first keys of blocks, heads of a group one behind another as if one sequence, zeros."""
    heads, width = search.head_group, search.most
    there = torch.arange(kept.indices.shape[-1]) < kept.counts[..., None]
    head = torch.arange(heads).view(-1, 1, 1)
    place = torch.where(there, kept.indices * search.block + head * keys, 2**30)
    place = place.transpose(1, 2).flatten(2).sort(-1).values[..., :width]
    place = torch.nn.functional.pad(place, (0, width - place.shape[-1]), value=2**30)
    return place.masked_fill(place == 2**30, 0).to(torch.int32), kept.counts.sum(1).to(torch.int32)
