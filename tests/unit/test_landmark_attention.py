"""Landmark attention: the grouped softmax and its tiles, streams that fetch blocks, their cache, the language model."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.measure.flops import count_flops
from foveate.measure.memory import saved_bytes
from foveate.mixers import TokenLayout, landmark_stream
from foveate.mixers.landmark_attention import LandmarkAttention, jumped_positions
from foveate.models.language.landmark_attention import LandmarkGPT, WindowGPT, insert_landmarks, remove_landmarks
from foveate.ops import backend
from foveate.ops.landmark_attention import landmark_attention, landmark_grouped_softmax


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# The ops --------------------------------------------------------------------------------------------------------------


def qkv(length: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(torch.randn(batch, 2, length, width, dtype=dtype).requires_grad_() for width in (6, 6, 5))


@pytest.mark.parametrize("softmax", ["grouped", "plain", "ignored"])
@pytest.mark.parametrize("extras", ["", "mask", "segments", "mask segments"])
@pytest.mark.parametrize(("length", "block"), [(1, 3), (4, 3), (7, 3), (151, 15), (64, 1), (29, 50), (90, None)])
def test_tiles_equal_the_definition(softmax, extras, length, block):
    q, k, v = qkv(length)
    options = {"block_size": block} if block else {"is_landmark": torch.rand(2, length) < 0.2}
    real = torch.rand(2, length) < 0.7 if "mask" in extras else torch.ones(2, length, dtype=torch.bool)
    if "mask" in extras:
        options["mask"] = real
    if "segments" in extras:
        options["segments"] = torch.randint(3, (2, length)).sort(1).values
    given = torch.randn(2, 2, length, 5, dtype=torch.float64) * real[:, None, :, None]  # masked queries say nothing
    results = []
    for name in ("reference", "torch"):
        with backend(name):
            o = landmark_attention(q, k, v, softmax=softmax, **options) * real[:, None, :, None]
        results.append((o, *torch.autograd.grad(o, (q, k, v), given)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


def test_the_backward_pass_is_the_gradient():
    q, k, v = qkv(11, 1)
    assert gradcheck(lambda *t: landmark_attention(*t, block_size=3), (q, k, v), fast_mode=True)
    flags = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 0]]).bool()
    assert gradcheck(lambda *t: landmark_attention(*t, is_landmark=flags), (q, k, v), fast_mode=True)

    def dropped(*t: Tensor) -> Tensor:
        torch.manual_seed(3)
        return landmark_attention(*t, block_size=3, group_dropout=0.4)

    assert gradcheck(dropped, (q, k, v), fast_mode=True)


def test_an_empty_block_takes_its_share_with_it():
    scores = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    landmark = torch.tensor([0, 0, 1, 1, 0, 0]).bool()
    weights = landmark_grouped_softmax(scores, landmark)
    for i in (4, 5):
        own, first, second = scores[0, 0, i, 4 : i + 1].logsumexp(0), *scores[0, 0, i, 2:4]
        lost = torch.stack([own, first, second]).softmax(0)[2]
        assert float(weights[0, 0, i].sum()) == pytest.approx(1 - float(lost), abs=1e-12)
    assert weights[0, 0, :4].sum(-1).tolist() == pytest.approx([1.0] * 4)


def test_queries_that_see_nothing_get_zeros():
    landmark = torch.tensor([1, 0, 0]).bool()
    q, k, v = qkv(3)
    o = landmark_attention(q, k, v, is_landmark=landmark)
    assert (o[:, :, 0] == 0).all()
    o.sum().backward()
    assert q.grad.isfinite().all()


def test_group_dropout_leaves_the_own_block_alone():
    scores, landmark = torch.randn(1, 2, 40, 40), torch.arange(40) % 8 == 7
    whole = landmark_grouped_softmax(scores, landmark)
    dropped = landmark_grouped_softmax(scores, landmark, group_dropout=0.5)
    ratio = (dropped / whole)[:, :, 39]
    assert torch.allclose(ratio[..., 32:39], torch.ones(()))
    earlier = ratio[..., :32][..., ~landmark[:32]].unflatten(-1, (4, 7))
    assert ((earlier - earlier[..., :1]).abs() < 1e-5).all(), "a block is dropped as a whole"
    assert set(earlier[..., 0].round().flatten().tolist()) == {0.0, 2.0}


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return landmark_attention(x, 2 * x, 3 * x, block_size=15)


def test_memory_is_linear_in_the_length():
    with backend("torch"):
        kept = [saved_bytes(Attention(), torch.randn(1, 1, n, 8, requires_grad=True)) for n in (256, 1024)]
    assert 0 < kept[1] < 4.2 * kept[0]


def test_the_op_says_what_is_wrong():
    q, k, v = (t.detach().float() for t in qkv(8))
    for error, says, options in (
        (InvalidValue, "block_size=0 is not possible", {"block_size": 0}),
        (InvalidValue, "give one of them", {"block_size": 3, "is_landmark": torch.zeros(8, dtype=torch.bool)}),
        (InvalidType, "is_landmark must be bool", {"is_landmark": torch.zeros(8)}),
        (InvalidValue, r"is_landmark has shape \(7,\)", {"is_landmark": torch.zeros(7, dtype=torch.bool)}),
        (InvalidType, "mask must be bool", {"block_size": 3, "mask": torch.ones(2, 8)}),
        (InvalidValue, "softmax='no' is not possible", {"block_size": 3, "softmax": "no"}),
        (InvalidValue, "group_dropout=1.0 is not possible", {"block_size": 3, "group_dropout": 1.0}),
        (InvalidValue, r"segments have shape \(2, 7\)", {"block_size": 3, "segments": torch.zeros(2, 7)}),
    ):
        with pytest.raises(error, match=says):
            landmark_attention(q, k, v, **options)
    with pytest.raises(InvalidType, match="share one floating dtype"):
        landmark_attention(q, k.double(), v, block_size=3)
    with pytest.raises(InvalidValue, match="more queries than keys"):
        landmark_grouped_softmax(torch.zeros(1, 1, 3, 2), torch.zeros(2, dtype=torch.bool))


# The mixer ------------------------------------------------------------------------------------------------------------


def mixer_of(**options) -> LandmarkAttention:
    torch.manual_seed(1)
    given = {"num_heads": 2, "block_size": 5, "top_k": 2, "chunk": 12, **options}
    return LandmarkAttention(16, **given).eval()


@torch.no_grad()
def stream(mixer, x, pieces, mask=None, state=None):
    state, outputs, at = state or mixer.init_state(len(x)), [], 0
    for piece in pieces:
        y, state = mixer.prefill(x[:, at : at + piece], state, None if mask is None else mask[:, at : at + piece])
        outputs.append(y)
        at += piece
    assert at == x.shape[1]
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize(("read", "count"), [(0, 1), (0, 5), (4, 1), (5, 1), (3, 17), (61, 40)])
def test_a_stream_feeds_what_the_plan_adds(read, count):
    mixer = mixer_of()
    whole, before, new = mixer.plan_tokens((read + count,)), mixer.plan_tokens((read,)), mixer.plan_next(read, count)
    rest = whole.source[before.length :]
    assert torch.equal(torch.where(rest < 0, rest, rest - read), new.source)
    assert new.length == mixer.slots(read + count) - mixer.slots(read)


def test_landmarks_elsewhere_are_refused():
    mixer, x = mixer_of(), torch.randn(1, 12, 16)
    plan = mixer.plan_tokens((10,))
    moved = replace(plan, source=plan.source.roll(1))
    with pytest.raises(InvalidValue, match="not a landmark after every 5 tokens"):
        mixer(x, layout=moved)
    with pytest.raises(InvalidValue, match="not a landmark after every 5 tokens"):
        mixer(x, layout=LandmarkAttention(16, num_heads=2, block_size=4).plan_tokens((10,)))
    with pytest.raises(InvalidValue, match="not a landmark after every 5 tokens"):
        mixer(x, layout=replace(plan, roles=("persistent",)))


@pytest.mark.parametrize("softmax", ["grouped", "plain", "ignored"])
@pytest.mark.parametrize("tokens", [1, 4, 5, 6, 61])
def test_a_stream_that_fetches_everything_is_forward(tokens, softmax):
    mixer = mixer_of(top_k=12, softmax=softmax)
    layout = mixer.plan_tokens((tokens,))
    x = torch.randn(2, layout.length, 16)
    with torch.no_grad():
        expected = mixer(x, layout=layout)
    for pieces in ([layout.length], [1] * layout.length):
        torch.testing.assert_close(stream(mixer, x, pieces)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("max_blocks", [None, 4])
@pytest.mark.parametrize("selection", ["per_token_and_head", "max_over_heads", "max_over_tokens"])
def test_a_stream_may_be_cut_anywhere(selection, max_blocks, masked):
    mixer = mixer_of(selection=selection, max_blocks=max_blocks)
    length = mixer.slots(103)
    x, mask = torch.randn(2, length, 16), None
    if masked:
        mask = torch.rand(2, length) < 0.7
        mask[0, :40] = False
    whole, _ = stream(mixer, x, [length], mask)
    for pieces in ([1] * length, [50, 1, 1, length - 52], [7] * (length // 7) + [length % 7] * (length % 7 > 0)):
        cut, state = stream(mixer, x, pieces, mask)
        torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)
    assert state.blocks.count == (4 if max_blocks else state.blocks.total)


def test_chunks_decide_and_are_counted_in_tokens():
    # With chunk=None every call is a chunk: calls of 12 tokens, with the landmarks that they close, are chunks of 12.
    ours, released = mixer_of(), mixer_of(chunk=None)
    slots = [mixer.slots(n + 12) - mixer.slots(n) for mixer in (ours,) for n in range(0, 96, 12)]
    x = torch.randn(1, sum(slots), 16)
    torch.testing.assert_close(stream(ours, x, [x.shape[1]])[0], stream(released, x, slots)[0])
    assert not torch.allclose(stream(released, x, [x.shape[1]])[0], stream(released, x, slots)[0], atol=1e-4)


def test_released_positions_differ_while_exactly_top_k_blocks_are_there():
    x = torch.randn(1, 14 * 5, 16)  # chunks of 12 tokens: 2, 4, 7, 9 blocks are there
    fitting, released = (
        stream(mixer_of(stream_positions=p), x, [14, 15, 14, 15, 12])[0] for p in ("fitting", "released")
    )
    differs = (fitting - released).abs().amax((0, 2)) > 1e-5
    assert differs[14:29].any()
    assert not differs[:14].any()
    assert not differs[29:].any()


def test_positions_of_a_stream_stay_small(monkeypatch):
    largest = []

    def spy(x, positions, *args, **options):
        largest.append(int(positions.max()))
        return original(x, positions, *args, **options)

    original = landmark_stream.apply_rope
    monkeypatch.setattr(landmark_stream, "apply_rope", spy)
    mixer = mixer_of()
    stream(mixer, torch.randn(1, mixer.slots(400), 16), [mixer.slots(400)])
    assert max(largest) < (2 + 1) * 6 + 5 + mixer.slots(12) + 6  # top_k + 1 blocks, the open one, the chunk, padding


def test_a_query_reads_the_blocks_it_wants_and_no_others():
    mixer = mixer_of(num_heads=1, top_k=1, rotary=False)
    tokens = 60
    x = torch.randn(1, mixer.slots(tokens), 16)
    y, _ = stream(mixer, x, [x.shape[1]])
    with torch.no_grad():
        q, k, _ = mixer._heads(x)
    last = mixer.slots(48)  # the first slot of the last chunk asks for one of the 9 blocks before
    wanted = int((k[0, 0, 5:54:6] @ q[0, 0, last]).argmax())
    for block in range(9):
        other = x.clone()
        other[:, 6 * block : 6 * block + 5] = torch.randn(1, 5, 16)
        changed = not torch.allclose(stream(mixer, other, [x.shape[1]])[0][:, last], y[:, last], atol=1e-6)
        assert changed == (block == wanted), (block, wanted)


def test_forgotten_blocks_are_gone():
    mixer = mixer_of(max_blocks=3)
    x = torch.randn(1, mixer.slots(120), 16)
    other = x.clone()
    other[:, : mixer.slots(60)] = torch.randn(1, mixer.slots(60), 16)
    late = mixer.slots(96)
    for pieces in ([x.shape[1]], [1] * x.shape[1]):
        y, y_other = (stream(mixer, t, pieces)[0] for t in (x, other))
        assert torch.equal(y[:, late:], y_other[:, late:])
    kept = mixer_of()
    assert not torch.equal(stream(kept, x, [x.shape[1]])[0][:, late:], stream(kept, other, [x.shape[1]])[0][:, late:])


def test_the_landmark_of_a_masked_block_is_not_seen():
    mixer = mixer_of(top_k=9)
    layout = mixer.plan_tokens((23,))
    x, mask = torch.randn(1, layout.length, 16), torch.ones(1, layout.length, dtype=torch.bool)
    mask[:, 6:11] = False  # the second block's tokens; its landmark stays "real"
    other = x.clone()
    other[:, 6:12] = 50.0
    with torch.no_grad():
        y, y_other = mixer(x, layout=layout, mask=mask), mixer(other, layout=layout, mask=mask)
    torch.testing.assert_close(y[:, 12:], y_other[:, 12:])
    torch.testing.assert_close(stream(mixer, x, [layout.length], mask)[0][:, 12:], y[:, 12:], rtol=1e-5, atol=1e-6)


def test_packed_documents_do_not_see_each_other():
    mixer = mixer_of()
    segments = (torch.arange(40) >= 17).long()[None]
    layout = mixer.plan_tokens((40,)).with_segments(segments)
    x = torch.randn(1, layout.length, 16)
    border = int((layout.segments[0] == 0).sum())
    for part in (slice(None, border), slice(border, None)):
        other = x.clone()
        other[:, part] = torch.randn_like(other[:, part])
        rest = slice(border, None) if part.start is None else slice(None, border)
        assert torch.equal(mixer(x, layout=layout)[:, rest], mixer(other, layout=layout)[:, rest])


def test_positions_jump_behind_landmarks_in_training_only():
    mixer = mixer_of(position_jump=9)
    assert mixer.plan_tokens((50,)).positions is None
    positions = mixer.train().plan_tokens((50,)).positions
    steps = positions.diff()
    behind = mixer.plan_tokens((50,)).source[:-1] < 0
    assert (steps[~behind] == 1).all()
    assert (steps[behind] >= 1).all()
    assert (steps[behind] < 10).all()
    assert (steps[behind] > 1).any()
    flags = torch.arange(60).expand(4, -1) % 6 == 5
    drawn = jumped_positions(flags, 9)
    assert (drawn[:, -1] != drawn[0, -1]).any(), "samples jump by themselves"


def test_dropout_only_in_training():
    mixer, x = mixer_of(dropout=0.5, group_dropout=0.5), torch.randn(1, 12, 16)
    layout = mixer.plan_tokens((10,))
    assert torch.equal(mixer(x, layout=layout), mixer(x, layout=layout))
    mixer.train()
    assert not torch.equal(mixer(x, layout=layout), mixer(x, layout=layout))


def test_costs_of_a_step_grow_by_one_key_per_block():
    mixer, flops = mixer_of(), []
    for tokens in (120, 240):  # both at the end of a chunk
        _, state = stream(mixer, torch.randn(1, mixer.slots(tokens), 16), [mixer.slots(tokens)])
        with torch.no_grad():
            flops.append(count_flops(lambda state=state: mixer.step(torch.randn(1, 16), state)))
    assert flops[1] - flops[0] == 2 * 16 * (240 - 120) // 5


# The cache ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_blocks", [None, 4])
def test_blocks_on_disk_are_the_same_blocks(max_blocks, tmp_path):
    memory, disk = (mixer_of(storage=s, max_blocks=max_blocks) for s in ("memory", "memory-mapped"))
    length = disk.slots(130)
    x = torch.randn(2, length, 16)
    begun = disk.init_state(2, folder=tmp_path)
    (y, state), (y_disk, on_disk) = (
        stream(memory, x, [30, length - 30]),
        stream(disk, x, [30, length - 30], None, begun),
    )
    assert torch.equal(y, y_disk)
    assert os.listdir(tmp_path) == [], "no folder lists the files"
    assert on_disk.nbytes == state.nbytes
    index = torch.tensor([1, 0, 1])
    more = torch.randn(3, 40, 16)
    expected, _ = stream(memory, more, [40], None, state.reorder(index))
    assert torch.equal(stream(disk, more, [40], None, on_disk.reorder(index))[0], expected)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what a process has mapped")
def test_files_die_with_their_state(tmp_path):
    def mapped() -> int:
        return sum(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())

    mixer = mixer_of(storage="memory-mapped")
    _, state = stream(mixer, torch.randn(1, 78, 16), [78], None, mixer.init_state(1, folder=tmp_path))
    assert mapped() >= 2
    del state
    assert mapped() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_state_may_be_of_another_dtype(dtype):
    for storage in ("memory", "memory-mapped"):
        mixer = mixer_of(storage=storage)
        x = torch.randn(1, 78, 16)
        expected, _ = stream(mixer, x, [78])
        y, state = stream(mixer, x, [78], None, mixer.init_state(1, dtype=dtype))
        assert y.dtype == torch.float32
        assert state.blocks.keys.dtype == dtype
        torch.testing.assert_close(y[:, :14], expected[:, :14], rtol=0.05, atol=0.05)
    with pytest.raises(InvalidType, match=r"floating dtype, not torch\.int64"):
        mixer.init_state(1, dtype=torch.int64)


@pytest.mark.parametrize("storage", ["memory", "memory-mapped"])
def test_two_futures_of_a_state_do_not_meet(storage):
    mixer = mixer_of(storage=storage, max_blocks=6)
    _, state = stream(mixer, torch.randn(1, 75, 16), [75])
    first, second = torch.randn(2, 1, 90, 16)
    alone, _ = stream(mixer, first, [90], None, state)
    outputs, mine, theirs = [], state, state
    for t in range(0, 90, 10):
        y, mine = stream(mixer, first[:, t : t + 10], [10], None, mine)
        _, theirs = stream(mixer, second[:, t : t + 10], [10], None, theirs)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), alone, rtol=1e-5, atol=1e-6)


def test_gradients_pass_through_a_stream():
    mixer = mixer_of()
    x = torch.randn(1, 40, 16, requires_grad=True)
    y, state = mixer.prefill(x[:, :30], mixer.init_state(1))
    y, _ = mixer.prefill(x[:, 30:], state)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient[:, :24].abs().sum(-1) > 0).any(), "none comes from the fetched blocks"


def test_a_foreign_state_is_refused():
    mixer, x = mixer_of(), torch.randn(2, 3, 16)
    with pytest.raises(InvalidType, match="its state is a LandmarkState, not a NoneType"):
        mixer.prefill(x, None)
    with pytest.raises(InvalidValue, match=r"of the state has shape \(3, 2, 0, 8\); it must be \(2, 2, any, 8\)"):
        mixer.prefill(x, mixer.init_state(3))
    for other in ({"block_size": 7}, {"num_heads": 4}):
        with pytest.raises(InvalidValue, match="of the state has shape"):
            mixer.prefill(x, mixer_of(**other).init_state(2))


def test_options_say_what_is_legal(tmp_path):
    for says, options in (
        ("top_k=0", {"top_k": 0}),
        ("max_blocks=1 is not possible: it must be a whole number of at least top_k=2", {"max_blocks": 1}),
        ("chunk=0", {"chunk": 0}),
        ("selection='best'.*per_token_and_head", {"selection": "best"}),
        ("storage='tape'.*memory-mapped", {"storage": "tape"}),
        ("group_dropout=1.0", {"group_dropout": 1.0}),
        ("position_jump=-1", {"position_jump": -1}),
        ("rotary=True is not possible: channel pairs are turned, and dim / num_heads is 1", {"num_heads": 16}),
    ):
        with pytest.raises(InvalidValue, match=says):
            mixer_of(**options)
    with pytest.raises(InvalidValue, match="it must be a folder that exists"):
        mixer_of(storage="memory-mapped").init_state(1, folder=tmp_path / "none")
    with pytest.raises(InvalidValue, match="only storage='memory-mapped' writes files"):
        mixer_of().init_state(1, folder=tmp_path)


def test_without_a_layout_there_are_no_landmarks():
    mixer, x = mixer_of(), torch.randn(1, 20, 16)
    layout = TokenLayout((20,), positions=torch.arange(20))
    assert torch.equal(mixer(x), mixer(x, layout=layout))
    spaced = LandmarkAttention(16, num_heads=2, block_size=30).eval()
    spaced.load_state_dict(mixer.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), spaced(x, layout=spaced.plan_tokens((20,))), rtol=1e-5, atol=1e-6)


# The language model ---------------------------------------------------------------------------------------------------


def model_of(**options) -> LandmarkGPT:
    torch.manual_seed(0)
    given = {"vocabulary": 20, "dim": 16, "depth": 2, "num_heads": 2, "block_size": 5, "top_k": 8, "chunk": 9}
    return LandmarkGPT(**{**given, **options}).eval()


def test_landmarks_go_in_and_out():
    tokens = torch.arange(24).view(2, 12)
    wide = insert_landmarks(tokens, 5, 99)
    assert wide[0].tolist() == [0, 1, 2, 3, 4, 99, 5, 6, 7, 8, 9, 99, 10, 11]
    assert torch.equal(remove_landmarks(wide, 99), tokens)
    assert torch.equal(insert_landmarks(tokens[:, :0], 5, 99), tokens[:, :0])
    with pytest.raises(InvalidValue, match="landmark_id=7 is among the tokens"):
        insert_landmarks(tokens, 5, 7)
    with pytest.raises(InvalidValue, match="take landmarks out of one at a time"):
        remove_landmarks(torch.tensor([[1, 99, 2], [1, 2, 3]]), 99)


@pytest.mark.parametrize("landmark_id", [None, 3])
def test_it_places_its_own_landmarks(landmark_id):
    model = model_of(landmark_id=landmark_id)
    tokens = torch.randint(4, 20, (2, 33))
    logits = model(tokens)
    assert logits.shape == (2, 33, 20)
    wide = insert_landmarks(tokens, 5, model.landmark_id)
    slots = model.forward_slots(wide)
    torch.testing.assert_close(logits, slots[wide != model.landmark_id].view(2, 33, 20), rtol=1e-5, atol=1e-6)


def test_it_streams_as_it_reads():
    model = model_of()
    tokens = torch.randint(20, (2, 33))
    with torch.no_grad():
        expected = model(tokens)
        logits, state = model.prefill(tokens[:, :14], model.init_state(2))
        parts = [logits]
        for t in range(14, 33):
            logits, state = model.step(tokens[:, t], state)
            parts.append(logits[:, None])
    assert state.read == 33
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-6)


def test_padding_has_no_influence():
    model = model_of()
    tokens, mask = torch.randint(20, (2, 33)), torch.ones(2, 33, dtype=torch.bool)
    mask[0, :13] = False
    other = torch.where(mask, tokens, 0)
    with torch.no_grad():
        first, second = model(tokens, mask), model(other, mask)
        streamed, _ = model.prefill(tokens, model.init_state(2), mask)
    torch.testing.assert_close(first[mask], second[mask])
    torch.testing.assert_close(streamed[mask], first[mask], rtol=1e-5, atol=1e-6)


def test_the_model_says_what_is_wrong(tmp_path):
    model, tokens = model_of(landmark_id=3, context=30, max_groups=5), torch.randint(4, 20, (1, 22))
    with pytest.raises(InvalidValue, match="token 3, the landmark, is among the tokens"):
        model(torch.full((1, 4), 3))
    with pytest.raises(InvalidValue, match="34 tokens, landmarks included, and context is 30"):
        model(torch.full((1, 29), 5))
    with pytest.raises(InvalidValue, match="max_groups must be at least 6, not 5"):
        model(tokens)
    with pytest.raises(InvalidValue, match="max_groups must be at least 6, not 5"):
        model.forward_slots(torch.tensor([[5, 3, 5, 3, 5, 3, 5, 3]]))
    with pytest.raises(InvalidValue, match="landmark_id=20 is not possible"):
        model_of(landmark_id=20)
    with pytest.raises(InvalidValue, match="the state is of another model"):
        model.prefill(tokens, model_of(depth=3).init_state(1))
    with pytest.raises(InvalidValue, match="of the state has shape"):
        model.prefill(tokens, model.init_state(2))
    with pytest.raises(InvalidType, match="cannot be built for the task 'forecast'"):
        LandmarkGPT.for_task(SimpleNamespace(task="forecast"))
    with pytest.raises(UnknownName, match="PG19"):
        LandmarkGPT.of_size("PG18")
    with pytest.raises(InvalidValue, match="a folder that exists"):
        model_of(storage="memory-mapped").init_state(1, folder=tmp_path / "none")


def test_published_size_and_start():
    model = LandmarkGPT.of_size("PG19", depth=1, dim=64)
    assert (model.vocabulary, model.landmark_id, model.block_size) == (50_304, 50_260, 50)
    assert float(model.embed.weight.std()) == pytest.approx(0.02, rel=0.05)
    last = model.get_parameter("blocks.0.mixer.out_proj.weight")
    assert float(last.std()) == pytest.approx(0.02 / math.sqrt(2), rel=0.1)


def test_position_jumps_change_what_training_sees():
    model, tokens = model_of(position_jump=30), torch.randint(20, (2, 33))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    wide = insert_landmarks(tokens, 5, model.landmark_id)
    assert not torch.equal(model.forward_slots(wide), model.forward_slots(wide))


# The window it is compared with ---------------------------------------------------------------------------------------


def window_of(**options) -> WindowGPT:
    torch.manual_seed(0)
    given = {"vocabulary": 20, "dim": 16, "depth": 2, "num_heads": 2, "window": 6, "chunk": 5}
    model = WindowGPT(**{**given, **options}).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return model


@torch.no_grad()
def window_stream(model, tokens, pieces, mask=None):
    state, outputs = model.init_state(len(tokens)), []
    parts = (None,) * len(pieces) if mask is None else mask.split(pieces, 1)
    for piece, real in zip(tokens.split(pieces, 1), parts, strict=True):
        logits, state = model.prefill(piece, state, real)
        outputs.append(logits)
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize("landmark_id", [None, 3])
def test_a_window_may_be_cut_anywhere(landmark_id):
    model, tokens = window_of(landmark_id=landmark_id, softmax="grouped"), torch.randint(20, (2, 33))
    mask = torch.rand(2, 33) < 0.8
    for real in (None, mask):
        whole, state = window_stream(model, tokens, [33], real)
        for pieces in ([1] * 33, [7, 1, 25]):
            torch.testing.assert_close(window_stream(model, tokens, pieces, real)[0], whole, rtol=1e-5, atol=1e-5)
    assert state.layers[0].length == 6 + 3
    other = torch.where(mask, tokens, (tokens + 1) % 20)
    other = other.where(mask | ((other != 3) & (tokens != 3)), tokens)  # landmarks stay where they are
    torch.testing.assert_close(window_stream(model, other, [33], mask)[0][mask], whole[mask], rtol=1e-5, atol=1e-5)


def test_a_window_that_holds_everything_is_forward():
    model, tokens = window_of(window=40), torch.randint(20, (2, 33))
    with torch.no_grad():
        expected = model(tokens)
    torch.testing.assert_close(window_stream(model, tokens, [33])[0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.forward_slots(tokens), expected)


def test_what_passed_out_of_the_window_is_forgotten():
    model, tokens = window_of(depth=1, window=6, chunk=5), torch.randint(20, (1, 20))
    whole = window_stream(model, tokens, [20])[0]
    for at in range(15):
        other = tokens.clone()
        other[:, at] = (tokens[:, at] + 1) % 20
        changed = (window_stream(model, other, [20])[0] - whole).abs().amax((0, 2)) > 1e-5
        assert changed[15:].any() == (at >= 15 - 6), at
    short = window_of(depth=1, window=0, chunk=5)
    torch.testing.assert_close(
        window_stream(short, tokens, [20])[0][:, 15:], short(tokens[:, 15:]), rtol=1e-5, atol=1e-5
    )


def test_every_call_is_a_chunk_as_released():
    model, tokens = window_of(chunk=None), torch.randint(20, (1, 30))
    torch.testing.assert_close(
        window_stream(model, tokens, [10] * 3)[0], window_stream(window_of(chunk=10), tokens, [30])[0]
    )
    assert not torch.allclose(window_stream(model, tokens, [30])[0], window_stream(model, tokens, [10] * 3)[0])


def test_the_window_says_what_is_wrong(tmp_path):
    with pytest.raises(InvalidValue, match="window=-1 is not possible"):
        window_of(window=-1)
    model, tokens = window_of(max_groups=3, landmark_id=3), torch.randint(4, 20, (1, 6))
    with pytest.raises(InvalidValue, match="max_groups must be at least 4, not 3"):
        model(torch.tensor([[5, 3, 5, 3]]))
    with pytest.raises(InvalidValue, match="the state is of another model"):
        model.prefill(tokens, window_of(depth=3).init_state(1))
    with pytest.raises(InvalidValue, match="the state has 2 samples, and the tokens 1"):
        model.prefill(tokens, model.init_state(2))
    with pytest.raises(InvalidValue, match="a window is kept in memory"):
        model.init_state(1, folder=tmp_path)
    with pytest.raises(UnknownName, match="PG19"):
        WindowGPT.of_size("PG18")
    assert WindowGPT.of_size("PG19", depth=1, dim=64, vocabulary=9).embed.num_embeddings == 9
