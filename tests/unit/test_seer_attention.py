"""SeerAttention: pools, choices of blocks, the target, and the mixer in batches, documents and streams."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.mixers import TokenLayout, aux_losses
from foveate.mixers.seer_attention import SeerAttention, StrictSeerAttention
from foveate.mixers.seer_attention.gate import AttnGate, BlockGrid, Selection
from foveate.mixers.seer_attention.slots import BlockSlots
from foveate.mixers.softmax_attention import SoftmaxAttention
from foveate.models.language.language_model import LanguageModel
from foveate.models.official import load_official
from foveate.ops import backend
from foveate.ops.block_gate import (
    block_rope,
    blocks_from_ratio,
    blocks_from_threshold,
    blocks_from_top_k,
    check_pools,
    gate_kl_loss,
    gate_logits,
    kept_share,
    pool_blocks,
    row_budget,
    turn_blocks,
)
from foveate.ops.pooled_attention_target import pooled_attention_target
from foveate.ops.positions import apply_rope


def mixer_of(**options) -> SeerAttention:
    torch.manual_seed(0)
    given = {"num_heads": 4, "num_kv_heads": 2, "block_size": 8, "select": "threshold", "threshold": 0.1}
    mixer = SeerAttention(32, **{**given, **options}).eval()
    with torch.no_grad():
        for parameter in mixer.attn_gate.parameters():
            parameter.mul_(25)  # scores that differ
    return mixer


def dense_of(mixer: SeerAttention) -> SoftmaxAttention:
    """The same weights, every head of keys written out."""
    dense = SoftmaxAttention(32, num_heads=4, causal=True, position="rope").eval()
    weights = {k: v for k, v in mixer.state_dict().items() if "gate" not in k}
    for name in ("k_proj", "v_proj"):
        for part in ("weight", "bias"):
            heads = weights[f"{name}.{part}"].unflatten(0, (mixer.num_kv_heads, -1))
            weights[f"{name}.{part}"] = heads.repeat_interleave(4 // mixer.num_kv_heads, 0).flatten(0, 1)
    dense.load_state_dict(weights)
    return dense


def run(mixer, x: Tensor, **options) -> Tensor:
    with torch.no_grad():
        return mixer(x, **options)


# Pools, turns, choices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [24, 29])
def test_pools_are_torchs(length):
    x = torch.randn(2, 3, length, 5)
    flat = x.flatten(0, 1).mT
    options = {"kernel_size": 8, "stride": 8, "ceil_mode": True}
    expected = [
        F.max_pool1d(flat, **options),
        -F.max_pool1d(-flat, **options),
        F.avg_pool1d(flat, **options),
    ]
    expected = torch.cat([e.mT.unflatten(0, (2, 3)) for e in expected], -1)
    torch.testing.assert_close(pool_blocks(x, 8, ("max", "min", "avg")), expected)


def test_masked_tokens_are_in_no_pool():
    x, mask = torch.randn(2, 3, 20, 5), torch.ones(2, 20, dtype=torch.bool)
    mask[0, 3:6] = mask[1, 8:16] = False
    pooled = pool_blocks(x, 8, ("avg", "max"), mask)
    other = pool_blocks(x.masked_fill(~mask[:, None, :, None], 1e6), 8, ("avg", "max"), mask)
    torch.testing.assert_close(pooled, other)
    torch.testing.assert_close(pooled[0, :, 0, :5], x[0, :, [0, 1, 2, 6, 7]].mean(1))
    assert (pooled[1, :, 1] == 0).all(), "a block without tokens"


def test_blocks_turn_as_tokens_do():
    x, positions = torch.randn(2, 3, 5, 8), torch.arange(5) * 16
    torch.testing.assert_close(turn_blocks(x, block_rope(positions, 8)), apply_rope(x, positions))
    turned = turn_blocks(x, block_rope(positions, 4))
    assert torch.equal(turned[..., 4:], x[..., 4:]), "channels beyond the rope"


@pytest.mark.parametrize(
    ("blocks", "ratio", "k"),
    [(32, 0.1, 1), (32, 0.25, 4), (32, 0.5, 9), (32, 0.75, 16), (128, 0.1, 6), (128, 0.5, 37), (128, 0.75, 64)],
)
def test_worked_budgets(blocks, ratio, k):
    assert row_budget(ratio, blocks) == k
    kept = blocks_from_ratio(gate_logits(*torch.randn(2, 1, 2, blocks, 4)), ratio, last_block_dense=False)
    assert (kept.sum(-1) == torch.arange(1, blocks + 1).clamp(max=k)).all()
    assert not kept.triu(1).any()


def test_the_last_two_rows_are_dense():
    logits = gate_logits(*torch.randn(2, 1, 2, 9, 4))
    for kept in (blocks_from_ratio(logits, 0.1), blocks_from_threshold(logits.softmax(-1), 0.5)):
        assert kept[:, :, -1].all()
        assert kept[:, :, -2, :-1].all()
        assert not kept[:, :, -3].all()
    rows = torch.zeros(1, 9, dtype=torch.bool)
    rows[:, 4] = True
    assert blocks_from_ratio(logits, 0.1, dense_rows=rows).sum(-1)[0, 0].tolist() == [1, 1, 1, 1, 5, 1, 1, 1, 1]


def test_no_row_is_empty_unless_asked_for():
    score = torch.full((1, 1, 6, 6), 0.1).tril()
    options = {"last_block_dense": False}
    assert torch.equal(blocks_from_threshold(score, 0.5, **options)[0, 0], torch.eye(6).bool())
    assert not blocks_from_threshold(score, 0.5, empty="leave", **options).any()
    with pytest.raises(InvalidValue, match=r"6 rows keep no block: lower the threshold, or keep the diagonal"):
        blocks_from_threshold(score, 0.5, empty="refuse", **options)
    assert blocks_from_threshold(score, 0.05, empty="refuse", **options).sum() == 21
    late = blocks_from_threshold(score[:, :, 4:], 0.5, **options)
    assert late[0, 0].nonzero().tolist() == [[0, 4], [1, 5]], "rows are those of the last blocks"


def test_budgets_by_document():
    logits = torch.randn(2, 3, 8, 8)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, -1]])
    grid = BlockGrid.of(8, 8, None, documents)
    selection = Selection("ratio", 0.75, last_block_dense=False)
    kept = selection.keep(logits, grid)
    for sample, part in ((0, slice(0, 3)), (0, slice(3, 8)), (1, slice(0, 7))):
        alone = selection.keep(
            logits[sample : sample + 1, :, part, part], BlockGrid.of(*2 * [part.stop - part.start], None)
        )
        assert torch.equal(kept[sample : sample + 1, :, part, part], alone)
    assert not kept[0, :, 3:, :3].any()
    assert not kept[1, :, 7].any()
    dense = BlockGrid.of(8, 8, None, documents).dense
    assert dense.tolist()[0] == [False, True, True, False, False, False, True, True]


def test_choices_say_what_is_legal():
    logits = torch.randn(1, 1, 4, 4)
    with pytest.raises(InvalidValue, match=r"k=5 is not possible: .* at most 4, the number of blocks"):
        blocks_from_top_k(logits, 5)
    for ratio in (0, 1.5, -0.1, "half"):
        with pytest.raises(InvalidValue, match=r"ratio=.* above 0 and at most 1"):
            blocks_from_ratio(logits, ratio)
    with pytest.raises(InvalidValue, match="threshold=nan"):
        blocks_from_threshold(logits, float("nan"))
    with pytest.raises(InvalidValue, match=r"empty='drop'.*diagonal, refuse, leave"):
        blocks_from_threshold(logits, 0.1, empty="drop")  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match=r"visible has shape \(1, 1, 3, 4\)"):
        blocks_from_ratio(logits, 0.5, visible=torch.ones(1, 1, 3, 4, dtype=torch.bool))
    with pytest.raises(InvalidType, match="visible must be bool"):
        blocks_from_ratio(logits, 0.5, visible=torch.ones(1, 1, 4, 4))
    with pytest.raises(InvalidValue, match="5 rows cannot choose among 4 blocks"):
        blocks_from_ratio(torch.randn(1, 1, 5, 4), 0.5)
    for pools in ((), ("max", "max"), ("mean",), "max"):
        with pytest.raises(InvalidValue, match="one to three of max, min, avg, each once"):
            check_pools("q_pool", pools)
    with pytest.raises(InvalidValue, match="they must agree"):
        gate_kl_loss(logits, logits[:, :, 1:])


def test_density_is_of_causal_blocks():
    assert kept_share(torch.eye(4).bool()[None, None]) == pytest.approx(0.4)


# The target -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (1, 8), (5, 3)])
@pytest.mark.parametrize("length", [8, 37, 64])
def test_target_forms_agree(length, size, monkeypatch):
    monkeypatch.setattr("foveate.ops.pooled_attention_target.TILE", 3000)
    q, k = torch.randn(2, 4, length, 8) * 2, torch.randn(2, 2, length, 8) * 2
    mask = torch.rand(2, length) < 0.7
    visible = torch.rand(2, 1, -(-length // size[0]), -(-length // size[1])) < 0.7
    for options in ({}, {"mask": mask}, {"visible": visible}, {"mask": mask, "visible": visible}):
        found = {}
        for name in ("reference", "torch"):
            with backend(name):
                found[name] = pooled_attention_target(q, k, block_size=size, **options)
        torch.testing.assert_close(found["torch"], found["reference"], rtol=1e-5, atol=1e-6)
        total = found["torch"].sum(-1)
        assert ((total - 1).abs().lt(1e-5) | (total == 0)).all()
    assert not found["torch"].requires_grad


def test_target_says_what_is_wrong():
    q = torch.randn(1, 4, 16, 8)
    for k, says in (
        (q[0], "must have 4 axes"),
        (q[:, :3], "the heads of k divide those of q"),
        (q[:, :, :8], "must agree in all but heads"),
    ):
        with pytest.raises(InvalidValue, match=says):
            pooled_attention_target(q, k, block_size=8)
    with pytest.raises(InvalidValue, match=r"block_size=\(0, 0\)"):
        pooled_attention_target(q, q, block_size=0)
    with pytest.raises(InvalidType, match="mask must be bool"):
        pooled_attention_target(q, q, block_size=8, mask=torch.ones(1, 16))
    with pytest.raises(InvalidValue, match=r"mask has shape \(1, 15\)"):
        pooled_attention_target(q, q, block_size=8, mask=torch.ones(1, 15, dtype=torch.bool))


# The gate -------------------------------------------------------------------------------------------------------------


def test_one_matrix_where_none_is_needed_for_queries():
    options = {"head_dim": 16, "num_q_heads": 4, "num_k_heads": 2, "gate_dim": 16}
    assert AttnGate(**options).mask_linear_q is None
    assert AttnGate(**options).mask_linear_k.weight.shape == (4, 48, 16)
    for more in ({"force_double": True}, {"gate_dim": 8}, {"q_pool": ("max", "avg")}):
        gate = AttnGate(**{**options, **more})
        assert gate.mask_linear_q is not None
        assert gate.mask_linear_k.weight.shape[0] == 2


def test_the_gate_says_what_is_wrong():
    options = {"head_dim": 16, "num_q_heads": 4, "num_k_heads": 2, "block_size": 8, "gate_dim": 16}
    for change, says in (
        ({"num_k_heads": 3}, "num_k_heads=3 is not possible: it must divide num_q_heads=4"),
        ({"block_size": 0}, "block_size=0"),
        ({"gate_dim": 7}, "gate_dim=7.*even"),
        ({"k_pool": ("median",)}, "k_pool"),
        ({"rope_base": 0.0}, "rope_base"),
    ):
        with pytest.raises(InvalidValue, match=says):
            AttnGate(**{**options, **change})
    gate, q, k = AttnGate(**options), torch.randn(1, 4, 20, 16), torch.randn(1, 2, 20, 16)
    with pytest.raises(InvalidValue, match="it has 4 heads of queries and 2 of keys, 16 wide"):
        gate(q, q)
    with pytest.raises(InvalidValue, match="begin where a block of 8 does"):
        gate(q[:, :, :5], k)
    with pytest.raises(InvalidValue, match=r"block_mask has shape \(1, 1, 2, 2\); .* 3, 3\)"):
        gate(q, k, block_mask=torch.ones(1, 1, 2, 2, dtype=torch.bool))
    with pytest.raises(InvalidValue, match="these are not the weights of AttnGate"):
        load_official(gate, {"mask_linear_v.weight": torch.zeros(1)})


def test_later_rows_alone_score_as_among_all():
    gate = AttnGate(head_dim=16, num_q_heads=4, num_k_heads=2, block_size=8, gate_dim=16)
    q, k = torch.randn(1, 4, 20, 16), torch.randn(1, 2, 20, 16)
    torch.testing.assert_close(gate(q[:, :, 8:], k), gate(q, k)[:, :, 1:])


# The mixer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"threshold": -1.0}, {"select": "ratio", "ratio": 1.0}])
def test_everything_kept_is_softmax_attention(options):
    mixer, x = mixer_of(**options), torch.randn(2, 45, 32)
    torch.testing.assert_close(run(mixer, x), run(dense_of(mixer), x), rtol=1e-5, atol=1e-6)
    fewer = run(mixer_of(threshold=0.2, last_block_dense=False), x)
    assert not torch.allclose(fewer, run(dense_of(mixer), x), atol=1e-4), "nothing was skipped"


@pytest.mark.parametrize("select", ["ratio", "threshold"])
@pytest.mark.parametrize("last_block_dense", [False, True])
def test_a_padded_sample_is_what_it_is_alone(select, last_block_dense):
    mixer = mixer_of(select=select, ratio=0.3, last_block_dense=last_block_dense)
    x, mask = torch.randn(3, 45, 32), torch.ones(3, 45, dtype=torch.bool)
    mask[0, :13] = mask[1, 30:] = mask[2, 5:9] = False
    y = run(mixer, x, mask=mask)
    for sample in range(3):
        alone = run(mixer, x[sample, mask[sample]][None])
        torch.testing.assert_close(y[sample, mask[sample]][None], alone, rtol=1e-5, atol=1e-6)
    streamed, state = mixer.prefill(x, mixer.init_state(3), mask)
    torch.testing.assert_close(streamed, y, rtol=1e-5, atol=1e-6)
    y_t, _ = mixer.step(x[:, 0], state)
    for sample in range(3):
        whole = torch.cat([x[sample, mask[sample]], x[sample, :1]])[None]
        torch.testing.assert_close(y_t[sample], run(dense_of(mixer), whole)[0, -1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("select", ["ratio", "threshold"])
def test_a_document_is_what_it_is_alone(select):
    mixer = mixer_of(select=select, ratio=0.3)
    x, segments = torch.randn(2, 60, 32), torch.zeros(2, 60, dtype=torch.int64)
    segments[0, 23:], segments[1, 5:] = 1, 2
    mask = torch.ones(2, 60, dtype=torch.bool)
    for real in (None, mask):
        y = run(mixer, x, mask=real, layout=TokenLayout((60,), segments=segments))
        for sample, cut in ((0, 23), (1, 5)):
            for part in (slice(None, cut), slice(cut, None)):
                alone = run(mixer, x[sample : sample + 1, part])
                torch.testing.assert_close(y[sample : sample + 1, part], alone, rtol=1e-4, atol=1e-5)
        mask[0, 18:25] = False
        y = run(mixer, x, mask=mask, layout=TokenLayout((60,), segments=segments))
        alone = run(mixer, x[:1, 25:])
        torch.testing.assert_close(y[:1, 25:], alone, rtol=1e-4, atol=1e-5)
        mask[:] = True


def test_slots_put_documents_into_blocks_of_their_own():
    segments = torch.tensor([[5, 5, 5, 2, 2, 2, 2, 2]])
    slots = BlockSlots.of(None, segments, 4)
    assert slots.valid[0].int().tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert slots.documents.tolist() == [[0, 1, 1]]
    x = torch.arange(8.0).view(1, 8, 1)
    assert torch.equal(slots.unpack(slots.pack(x)), x)


def test_a_choice_looks_ahead_and_values_do_not():
    mixer, x = mixer_of(threshold=0.15, last_block_dense=False), torch.randn(1, 64, 32)
    y, changed = run(mixer, x), False
    for _ in range(10):
        other = x.clone()
        other[:, 44:] = torch.randn(1, 20, 32) * 3
        z = run(mixer, other)
        assert torch.equal(z[:, :40], y[:, :40]), "blocks before it"
        changed |= not torch.equal(z[:, 40:44], y[:, 40:44])
    assert changed, "no later token of a block changed what its first tokens read"


def test_pieces_that_end_with_a_block_are_one_piece():
    mixer, x = mixer_of(last_block_dense=False), torch.randn(2, 61, 32)
    expected, state, outputs = run(mixer, x), mixer.init_state(2), []
    with torch.no_grad():
        for piece in x.split([16, 8, 24, 13], 1):
            y, state = mixer.prefill(piece, state)
            outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-5, atol=1e-6)


def test_a_piece_that_begins_inside_a_block():
    mixer, x = mixer_of(threshold=-1.0), torch.randn(2, 61, 32)
    for sizes in ([5, 20, 36], [1, 1, 59]):
        state, outputs = mixer.init_state(2), []
        with torch.no_grad():
            for piece in x.split(sizes, 1):
                y, state = mixer.prefill(piece, state)
                outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), run(mixer, x), rtol=1e-5, atol=1e-6)
    sparse, state = mixer_of(), mixer_of().init_state(2)
    _, state = sparse.prefill(x[:, :5], state)
    y, _ = sparse.prefill(x[:, 5:], state)
    assert y.isfinite().all()
    assert not torch.allclose(y, run(dense_of(sparse), x)[:, 5:], atol=1e-4)


def test_a_token_reads_everything():
    mixer, x = mixer_of(), torch.randn(2, 40, 32)
    expected, state = run(dense_of(mixer), x), mixer.init_state(2)
    for t in range(40):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, expected[:, t], rtol=1e-5, atol=1e-6)


def test_training_is_dense_and_teaches_the_gate_alone():
    mixer, x = mixer_of().train(), torch.randn(2, 45, 32)
    y = mixer(x)
    torch.testing.assert_close(y.detach(), run(dense_of(mixer), x), rtol=1e-5, atol=1e-6)
    aux_losses(mixer)["gate"].backward()
    assert {name for name, p in mixer.named_parameters() if p.grad is not None} == {"attn_gate.mask_linear_k.weight"}
    assert mixer.attn_gate.mask_linear_k.weight.grad.abs().max() > 0
    mixer.eval()(x)
    assert aux_losses(mixer) == {}


def test_the_two_forms_of_training_learn_from_the_same_map():
    x = torch.randn(2, 45, 32)
    losses = {}
    for form in ("dense", "sparse"):
        mixer = mixer_of(training=form).train()
        y = mixer(x)
        losses[form] = float(mixer.aux_losses["gate"].detach())
        if form == "sparse":
            torch.testing.assert_close(y.detach(), run(mixer.eval(), x))
    assert losses["dense"] == pytest.approx(losses["sparse"], rel=1e-4)


def test_the_gate_learns_in_a_mixer():
    mixer, x = mixer_of().train(), torch.randn(4, 64, 32)
    optimizer, losses = torch.optim.Adam(mixer.attn_gate.parameters(), 0.05), []
    for _ in range(40):
        mixer(x)
        losses.append(float(mixer.aux_losses["gate"].detach()))
        optimizer.zero_grad()
        mixer.aux_losses["gate"].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_options_say_what_is_legal():
    for change, says in (
        ({"num_kv_heads": 3}, "num_kv_heads=3 is not possible: it must divide num_heads=4"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"num_heads": 32, "num_kv_heads": None}, "a head has 1 channels"),
        ({"block_size": 0}, "block_size=0"),
        ({"select": "best"}, "select='best'.*ratio, threshold"),
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"threshold": 2.0}, "threshold=2.0"),
        ({"training": "both"}, "training='both'.*dense, sparse"),
        ({"gate_loss": -1.0}, "gate_loss=-1.0"),
        ({"rope_base": 0.0}, "rope_base=0.0"),
        ({"q_pool": ("sum",)}, "q_pool"),
    ):
        with pytest.raises(InvalidValue, match=says):
            mixer_of(**change)


def test_block_sizes_follow_the_grid():
    sizes = [SeerAttention.options_for((n,))["block_size"] for n in (1, 40, 128, 1024, 100_000)]
    assert sizes == [2, 2, 8, 64, 64]


# The strict form ------------------------------------------------------------------------------------------------------


def strict_of(**options) -> StrictSeerAttention:
    torch.manual_seed(0)
    mixer = StrictSeerAttention(
        32, **{"num_heads": 4, "num_kv_heads": 2, "block_size": 4, "top_k": 2, **options}
    ).eval()
    with torch.no_grad():
        for parameter in mixer.attn_gate.parameters():
            parameter.mul_(25)
    return mixer


def test_strict_with_every_block_is_softmax_attention():
    x = torch.randn(2, 45, 32)
    mixer = strict_of(top_k=11)
    torch.testing.assert_close(run(mixer, x), run(dense_of(mixer), x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(run(strict_of(), x), run(dense_of(mixer), x), atol=1e-4)


def test_a_token_reads_its_block_and_the_best_others():
    mixer = strict_of(num_heads=1, num_kv_heads=1, top_k=2)
    x, t, gate = torch.randn(1, 41, 32), 38, mixer.attn_gate
    with torch.no_grad():
        q, k, _ = mixer._project(x)
        pools = k[:, :, :36].unflatten(2, (9, 4))
        pooled = torch.cat([pools.amax(3), pools.amin(3), pools.mean(3)], -1) @ gate.attngate_linear_k.weight[0]
        asked = q[:, :, t : t + 1] @ gate.attngate_linear_q.weight[0]
        score = apply_rope(asked, torch.tensor([t])) @ apply_rope(pooled, torch.arange(9) * 4).mT
    wanted = {9, *score[0, 0, 0].topk(2).indices.tolist()}
    y = run(mixer, x)[:, t]
    for block in range(10):
        other = torch.zeros(1, 41, 32)
        other[:, 4 * block : 4 * block + 4] = 1.0
        hook = mixer.v_proj.register_forward_hook(lambda m, a, v, other=other: v + other)
        changed = not torch.allclose(run(mixer, x)[:, t], y, atol=1e-6)
        hook.remove()
        assert changed == (block in wanted), (block, wanted)


def test_a_strict_sample_and_document_are_what_they_are_alone():
    mixer, x = strict_of(), torch.randn(2, 45, 32)
    mask, segments = torch.ones(2, 45, dtype=torch.bool), torch.zeros(2, 45, dtype=torch.int64)
    mask[0, :13] = mask[1, 5:9] = False
    y = run(mixer, x, mask=mask)
    for sample in range(2):
        alone = run(mixer, x[sample, mask[sample]][None])
        torch.testing.assert_close(y[sample, mask[sample]][None], alone, rtol=1e-5, atol=1e-6)
    segments[:, 22:] = 1
    y = run(mixer, x, layout=TokenLayout((45,), segments=segments))
    for part in (slice(0, 22), slice(22, 45)):
        torch.testing.assert_close(y[:, part], run(mixer, x[:, part]), rtol=1e-4, atol=1e-5)


def test_a_stream_keeps_pools_and_goes_on_behind_padding():
    mixer, x = strict_of(), torch.randn(2, 45, 32)
    with torch.no_grad():
        _, state = mixer.prefill(x[:, :30], mixer.init_state(2))
        assert state.pooled.shape == (2, 2, 7, 8)
        mask = torch.ones(2, 30, dtype=torch.bool)
        mask[0, :11] = False
        _, state = mixer.prefill(x[:, :30], mixer.init_state(2), mask)
        y, state = mixer.prefill(x[:, 30:44], state)
        last, _ = mixer.step(x[:, 44], state)
    y = torch.cat([y, last[:, None]], 1)
    torch.testing.assert_close(y[1:], run(mixer, x[1:])[:, 30:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y[:1], run(mixer, x[:1, 11:])[:, 19:], rtol=1e-5, atol=1e-6)


def test_the_strict_gate_learns_in_a_mixer():
    mixer, x = strict_of(), torch.randn(4, 64, 32)
    expected = run(dense_of(mixer), x)
    torch.testing.assert_close(mixer.train()(x).detach(), expected, rtol=1e-5, atol=1e-6)
    optimizer, losses = torch.optim.Adam(mixer.attn_gate.parameters(), 0.05), []
    for _ in range(40):
        mixer(x)
        losses.append(float(mixer.aux_losses["gate"].detach()))
        optimizer.zero_grad()
        mixer.aux_losses["gate"].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    with pytest.raises(InvalidValue, match="top_k=0"):
        strict_of(top_k=0)


def test_it_writes_in_a_language_model():
    model = LanguageModel(
        "strict_seer_attention", vocabulary=20, context=64, dim=32, depth=2, mixer_options={"num_kv_heads": 2}
    ).eval()
    tokens = torch.randint(20, (2, 40))
    with torch.no_grad():
        _, state = model.prefill(tokens[:, :33], model.init_state(2))
        for t in range(33, 40):
            y, state = model.step(tokens[:, t], state)
        torch.testing.assert_close(y, model(tokens)[:, -1], rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidValue, match=r"mixer='seer_attention' is not possible here: .* strictly causal"):
        LanguageModel("seer_attention", vocabulary=20, context=64, dim=32, depth=2)
