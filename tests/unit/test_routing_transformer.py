"""Routing Transformer: ops against their definitions, centroids, both layers, streams, the language model, refusals."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.generation import generate
from foveate.measure.flops import count_flops
from foveate.measure.op_costs import op_cost
from foveate.mixers import TokenLayout, aux_losses
from foveate.mixers.routing_transformer import OnlineKMeans, RoutingAttention, StrictRoutingAttention
from foveate.models.language.language_model import LanguageModel
from foveate.models.language.routing_transformer import PUBLISHED, RoutingTransformer
from foveate.ops import backend
from foveate.ops.cluster_window_attention import Blocks, block_count, cluster_window_attention, cluster_window_flops
from foveate.ops.local_block_attention import local_block_attention, local_block_flops
from foveate.ops.routing_attention import routing_attention, routing_scores, top_members

LENGTH, CLUSTERS = 29, 4
MASK = torch.arange(LENGTH) < torch.tensor([[LENGTH], [17]])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def qkv(length: int = LENGTH) -> list[Tensor]:
    return [torch.randn(2, 2, length, width, dtype=torch.float64) for width in (6, 6, 5)]


def agree(op, *tensors: Tensor) -> None:
    """Outputs and gradients of the fast form against the definition."""
    answers = []
    for form in ("reference", "torch"):
        given = [t.clone().requires_grad_() for t in tensors]
        with backend(form):
            o = op(*given)
        loss = (o * torch.arange(o.shape[-1])).sin().sum()
        answers.append((o, *torch.autograd.grad(loss, given, materialize_grads=True)))
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


# Ops ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extras", ["plain", "distances", "memory"])
@pytest.mark.parametrize(("causal", "shared", "avoid"), list(itertools.product((False, True), repeat=3)))
def test_sets_equal_the_definition_with_gradients(causal: bool, shared: bool, avoid: bool, extras: str) -> None:
    means, tables = torch.randn(2, CLUSTERS, 6).double(), [torch.randn(9, 6).double(), torch.randn(9, 5).double()]
    slots = [torch.randn(2, CLUSTERS, 2, width).double() for width in (6, 5)]
    q, k, v = qkv()
    more = {"plain": [], "distances": tables, "memory": slots}[extras]
    names = {"plain": (), "distances": ("rel_k", "rel_v"), "memory": ("memory_k", "memory_v")}[extras]
    for mask, window in itertools.product((None, MASK), (7, 40)):
        sets = [top_members(routing_scores(x, means), window, mask) for x in (q, k)]
        options = {"causal": causal, "mask": mask, "avoid_self": avoid, "scale": 0.7}

        def call(q, k, v, *given, sets=sets, options=options):
            lists = (sets[0], None if shared else sets[1])
            return routing_attention(q, k, v, *lists, **options, **dict(zip(names, given, strict=True)))

        agree(call, q, k, v, *more)


def test_a_token_in_no_set_gets_zeros_and_one_in_two_their_mean() -> None:
    q, k, v = qkv(4)
    sets = torch.tensor([[0, 1], [1, 2]]).expand(2, 2, -1, -1)
    o = routing_attention(q, k, v, sets, count_eps=0.0)
    assert (o[:, :, 3] == 0).all()
    pairs = [routing_attention(q, k, v, sets[:, :, c : c + 1], count_eps=0.0) for c in (0, 1)]
    torch.testing.assert_close(o[:, :, 1], (pairs[0] + pairs[1])[:, :, 1] / 2)
    torch.testing.assert_close(routing_attention(q, k, v, sets)[:, :, 0], o[:, :, 0] / 1.01)


def test_members_are_the_nearest_in_order_of_time_and_real_ones_first() -> None:
    scores = torch.tensor([[3.0, 1.0, 4.0, 1.5, 9.0]]).view(1, 1, 5, 1)
    assert top_members(scores, 3).flatten().tolist() == [0, 2, 4]
    assert top_members(scores, 9).flatten().tolist() == [0, 1, 2, 3, 4]
    mask = torch.tensor([[True, True, True, True, False]])
    assert top_members(scores, 3, mask).flatten().tolist() == [0, 2, 3]


@pytest.mark.parametrize("past", [0, 5, 28])
@pytest.mark.parametrize("window", [1, 4, 50])
@pytest.mark.parametrize("extras", ["plain", "segments", "distances"])
def test_clusters_equal_the_definition_with_gradients(past: int, window: int, extras: str) -> None:
    clusters = torch.randint(-1, CLUSTERS, (2, 2, LENGTH))
    segments = (torch.arange(LENGTH) > 12).long().expand(2, -1) if extras == "segments" else None
    tables = [torch.randn(9, 6).double(), torch.randn(9, 5).double()] if extras == "distances" else []

    def call(q, k, v, *given):
        tables = dict(zip(("rel_k", "rel_v"), given, strict=False))
        return cluster_window_attention(q[:, :, past:], k, v, clusters, CLUSTERS, window, segments=segments, **tables)

    agree(call, *qkv(), *tables)


@pytest.mark.parametrize("spread", ["even", "one", "each"])
def test_blocks_hold_every_member_however_they_are_spread(spread: str) -> None:
    rows = {"even": torch.arange(40) % 5, "one": torch.full((40,), 3), "each": torch.arange(40)}[spread][None]
    count = int(rows.max()) + 1
    for window in (1, 3, 8, 40):
        blocks = Blocks.of(rows, count, window)
        assert blocks.token.shape == (1, block_count(40, count, window), window)
        assert sorted(blocks.token[blocks.rank >= 0].tolist()) == list(range(40))
        assert torch.equal(blocks.token.flatten(1).gather(1, blocks.place), torch.arange(40)[None])


@pytest.mark.parametrize(("block", "back"), list(itertools.product((1, 4, 7, 40), (0, 1, 2))))
@pytest.mark.parametrize("extras", ["plain", "distances"])
def test_local_blocks_equal_the_definition_with_gradients(block: int, back: int, extras: str) -> None:
    tables = [torch.randn(9, 6).double(), torch.randn(9, 5).double()] if extras == "distances" else []
    tokens, first = torch.arange(LENGTH)[None], 13
    documents = {"positions": torch.where(tokens < first, tokens, tokens - first), "segments": (tokens >= first).long()}
    cases = [({"causal": True}, 0), ({"causal": False, "ahead": 1}, 0), ({"causal": False}, 0)]
    cases += [({"positions": tokens}, past) for past in (0, 5, 28)] + [(documents, past) for past in (0, 5, 28)]
    for (options, past), mask in itertools.product(cases, (None, MASK)):

        def call(q, k, v, *given, options=options, past=past, mask=mask):
            near = dict(zip(("rel_k", "rel_v"), given, strict=False))
            return local_block_attention(q[:, :, past:], k, v, block, back=back, mask=mask, **options, **near)

        agree(call, *qkv(), *tables)


def test_flops_are_those_of_sets_and_blocks() -> None:
    with torch.device("meta"), backend("torch"):
        q, k, v = (torch.empty(2, 3, 50, width) for width in (6, 6, 5))
        clusters = torch.empty(2, 3, 50, dtype=torch.int64)
        assert count_flops(lambda: cluster_window_attention(q, k, v, clusters, 4, 7)) == cluster_window_flops(
            50, 4, 7, 3, 6, 5, 2
        )
        assert count_flops(lambda: local_block_attention(q, k, v, 8, back=2)) == local_block_flops(
            50, 8, 2, 0, 3, 6, 5, 2
        )


def test_formulas_count_what_is_seen() -> None:
    assert op_cost("routing_attention", length=50, clusters=3, window=7, d=4, e=6, heads=2).exps == 6 * 49
    assert op_cost("routing_attention", length=5, clusters=3, window=7, d=4, e=6, causal=True).exps == 3 * 15
    for length, clusters, window in ((29, 4, 3), (5, 7, 3), (12, 1, 40)):
        label = torch.arange(length) % clusters
        rank = torch.arange(length) // clusters
        seen = (label[:, None] == label) & (rank[:, None] >= rank) & (rank[:, None] - rank < window)
        cost = op_cost("cluster_window_attention", length=length, clusters=clusters, window=window, d=4, e=6, heads=2)
        assert (cost.exps, cost.flops) == (2 * int(seen.sum()), 2 * 2 * int(seen.sum()) * 10)
    for causal, ahead in ((True, 0), (False, 0), (False, 1)):
        token = torch.arange(29)
        gap = token[:, None] // 8 - token // 8
        seen = (gap <= 2) & (gap >= -ahead) & ((token[:, None] >= token) | (not causal))
        sizes = {"length": 29, "block": 8, "d": 4, "e": 6, "back": 2, "ahead": ahead, "causal": causal}
        assert op_cost("local_block_attention", **sizes).exps == int(seen.sum())


# Centroids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["layernorm", "l2"])
@pytest.mark.parametrize("rule", ["spherical", "released", "peer"])
def test_centroids_move_as_written_and_only_after_a_step(norm: str, rule: str) -> None:
    kmeans = OnlineKMeans(2, 3, 4, decay=0.9, norm=norm, rule=rule)
    x = kmeans.on_sphere(torch.randn(2, 2, 11, 4))
    mask = torch.arange(11) < torch.tensor([[11], [6]])
    before, nearest = kmeans.means.clone(), kmeans.assign(x)
    kmeans.observe(x, nearest, mask)
    assert torch.equal(kmeans.means, before)
    kmeans.after_step()
    for head, c in itertools.product(range(2), range(3)):
        mine = x[:, head][mask & (nearest[:, head] == c)]
        mu, radius = before[head, c], kmeans.radius
        if rule == "released":
            counts = torch.stack([(mask & (nearest[:, head] == i)).sum() * 0.1 for i in range(3)])
            smooth = (counts + 1e-5) / (counts.sum() + 3e-5) * counts.sum()
            expected = (0.9 * mu + 0.1 * mine.sum(0)) / smooth[c]
        else:
            towards = F.normalize(mine.sum(0), dim=-1) * radius if len(mine) else mu
            expected = 0.9 * mu + 0.1 * towards
            expected = F.normalize(expected, dim=-1) * radius if rule == "spherical" else expected
        torch.testing.assert_close(kmeans.means[head, c], expected, rtol=1e-4, atol=1e-5)
    moved = kmeans.means.clone()
    kmeans.after_step()  # nothing was observed since
    assert torch.equal(kmeans.means, moved)


def test_the_commitment_loss_pulls_tokens_and_not_centroids() -> None:
    kmeans = OnlineKMeans(1, 3, 4, commitment=0.5)
    x = kmeans.on_sphere(torch.randn(2, 1, 7, 4)).requires_grad_()
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    nearest = kmeans.assign(x)
    loss = kmeans.loss(x, nearest, mask)
    apart = (x - kmeans.means[0][nearest]).square()[mask[:, None]]
    torch.testing.assert_close(loss, 0.5 * apart.mean())
    loss.backward()
    assert (x.grad[~mask[:, None]] == 0).all()
    assert not kmeans.means.requires_grad


def test_starting_from_tokens_is_drawn_by_the_generator_given() -> None:
    x, starts = torch.randn(2, 2, 40, 8), []
    for _ in range(2):
        kmeans = OnlineKMeans(2, 4, 8)
        before = float(kmeans.loss(kmeans.on_sphere(x), kmeans.assign(kmeans.on_sphere(x))))
        kmeans.start_from(x, generator=torch.Generator().manual_seed(3))
        starts.append(kmeans.means.clone())
        assert float(kmeans.loss(kmeans.on_sphere(x), kmeans.assign(kmeans.on_sphere(x)))) < before
    assert torch.equal(*starts)
    with pytest.raises(InvalidValue, match=r"x has shape \(2, 3, 40, 8\)"):
        kmeans.start_from(torch.randn(2, 3, 40, 8))


def test_training_reports_the_loss_and_moves_centroids_by_the_recipes_hook() -> None:
    for mixer in (RoutingAttention(16, num_heads=2, num_clusters=3), StrictRoutingAttention(16, num_heads=2)):
        x, before = torch.randn(2, 20, 16), mixer.kmeans.means.clone()
        mixer.eval()(x)
        assert aux_losses(mixer) == {}
        mixer.train()(x)
        loss = aux_losses(mixer)["commitment"]
        (gradient,) = torch.autograd.grad(loss, mixer.route_q.weight)
        assert gradient.abs().sum() > 0
        assert torch.equal(mixer.kmeans.means, before)
        mixer.kmeans.after_step(None)
        assert not torch.equal(mixer.kmeans.means, before)


def test_as_released_the_loss_of_shared_queries_counts_twice() -> None:
    mixer, x = (
        RoutingAttention(16, num_heads=2, local_heads=0, causal=True, commitment=1.0).train(),
        torch.randn(2, 9, 16),
    )
    mixer(x)
    on = mixer.kmeans.on_sphere(mixer._heads(mixer.route_q(x)))
    torch.testing.assert_close(aux_losses(mixer)["commitment"], 2 * mixer.kmeans.loss(on, mixer.kmeans.assign(on)))


# Layers ---------------------------------------------------------------------------------------------------------------


def dense(mixer, x: Tensor, scale: float, causal: bool) -> Tensor:
    """Softmax attention by the weights of a layer whose only cluster takes everything."""
    heads = [mixer._heads(projection(x)) for projection in (mixer.route_q, mixer.route_k or mixer.route_q)]
    q, k = (mixer.kmeans.on_sphere(h) for h in heads) if mixer.norm == "layernorm" else heads
    o = F.scaled_dot_product_attention(q, k, mixer._heads(mixer.v_proj(x)), is_causal=causal, scale=scale)
    return mixer.out_proj(o.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [False, True])
def test_one_cluster_of_everything_is_dense_attention(causal: bool) -> None:
    everything = {"num_heads": 4, "local_heads": 0, "num_clusters": 1, "window": 30}
    x, mixer = (
        torch.randn(2, 30, 16).double(),
        RoutingAttention(16, causal=causal, count_eps=0.0, **everything).double(),
    )
    torch.testing.assert_close(mixer(x), dense(mixer, x, 1.0, causal))
    peer = RoutingAttention(16, causal=causal, norm="l2", share_qk=False, count_eps=1e-5, **everything).double()
    if not causal:  # with causality it has a memory slot
        torch.testing.assert_close(peer(x) * (1 + 1e-5), dense(peer, x, 0.5, causal))
    if causal:
        strict = StrictRoutingAttention(16, **everything).double()
        torch.testing.assert_close(strict(x), dense(strict, x, 1.0, causal))


def test_the_published_selection_looks_ahead_and_the_strict_one_does_not() -> None:
    options = {"num_heads": 2, "local_heads": 0, "num_clusters": 4, "window": 10}
    x = torch.randn(1, 40, 16)
    other = torch.cat([x[:, :30], 3 * torch.randn(1, 10, 16)], 1)
    released, strict = RoutingAttention(16, causal=True, **options), StrictRoutingAttention(16, **options)
    assert (released.spec.causal, strict.spec.causal) == ("values", "strict")
    assert torch.equal(strict(x)[:, :30], strict(other)[:, :30])
    assert not torch.allclose(released(x)[:, :30], released(other)[:, :30])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "l2"},
        {"position": "relative"},
        {"position": "rope"},
        {"window": 1},
        {"local_heads": 0},
        {"local_heads": 2},
        {"look_back": 0},
        {"block": 3},
    ],
)
def test_a_stream_with_masks_of_any_split_equals_forward(options: dict) -> None:
    mixer = StrictRoutingAttention(16, **{"num_heads": 2, "num_clusters": 3, "window": 4, **options}).double().eval()
    x, mask = torch.randn(3, 50, 16).double(), torch.rand(3, 50) < 0.6
    mask[0, :20], mask[1, 10:30], mask[:, 40:] = False, False, True
    with torch.no_grad():
        expected = mixer(x, mask=mask)
        for pieces in ([50], [1, 2, 3, 34, 10], [20, 20, 1, 9], [40, *[-1] * 10]):
            state, outputs, at = mixer.init_state(3), [], 0
            for piece in pieces:
                if piece < 0:
                    y, state = mixer.step(x[:, at], state)
                    y = y[:, None]
                elif at >= 40:  # no mask at all after pieces with one
                    y, state = mixer.prefill(x[:, at : at + piece], state)
                else:
                    y, state = mixer.prefill(x[:, at : at + piece], state, mask[:, at : at + piece])
                outputs.append(y)
                at += abs(piece)
            torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-4, atol=1e-6)  # float32 angles


def test_a_state_does_not_grow_and_says_its_size() -> None:
    mixer = StrictRoutingAttention(16, num_heads=2, num_clusters=3, window=8, block=5)
    state = mixer.init_state(2)
    with torch.no_grad():
        for _ in range(3):
            _, state = mixer.prefill(torch.randn(2, 100, 16), state)
            assert state.nbytes == mixer.cost((100,), 2).state_bytes


def test_packed_documents_are_those_alone_with_masks() -> None:
    for position in ("none", "relative"):
        mixer, x = StrictRoutingAttention(16, num_heads=2, window=5, block=3, position=position), torch.randn(2, 40, 16)
        segments = torch.tensor([0] * 7 + [1] * 20 + [0] * 13).expand(2, -1)  # a number that comes again is another one
        mask = torch.rand(2, 40) < 0.7
        y = mixer(x, mask=mask, layout=TokenLayout((40,), segments=segments))
        for b, part in itertools.product(range(2), (slice(0, 7), slice(7, 27), slice(27, 40))):
            real = mask[b, part]
            alone = mixer(x[b : b + 1, part][:, real])
            torch.testing.assert_close(y[b : b + 1, part][:, real], alone, rtol=1e-4, atol=1e-6)


def test_a_language_model_of_the_strict_form_writes() -> None:
    model = LanguageModel("strict_routing_attention", vocabulary=11, context=60, dim=16, depth=2, num_heads=2).eval()
    layer = model.stack.layers[0].mixer
    assert (layer.num_clusters, layer.window, layer.position) == (8, 8, "rope")
    (written,) = generate(model, [torch.tensor([1, 2, 3])], max_tokens=5).finish()
    assert len(written.tokens) == 5
    with pytest.raises(InvalidValue, match="strictly causal"):
        LanguageModel("routing_attention", vocabulary=11)


# The language model ---------------------------------------------------------------------------------------------------


def test_the_language_model_scores_and_does_not_write() -> None:
    model = RoutingTransformer(vocabulary=11, context=64, dim=16, depth=2, num_heads=4, window=16).eval()
    tokens = torch.randint(11, (2, 50))
    assert model(tokens).shape == (2, 50, 11)
    with pytest.raises(InvalidType, match="RoutingTransformer cannot write text: which tokens its centroids select"):
        generate(model, [tokens[0]], max_tokens=2, recompute=True).finish()
    with pytest.raises(InvalidType, match="no streaming form"):
        model.init_state(1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"form": "released", "glu": True},
        {"causal": False},
        {"reversible": True},
        {"rezero": True, "shift_tokens": True, "causal": False},
        {"embedding_dim": 8, "tie": True},
    ],
)
def test_a_mask_hides_what_is_masked(options: dict) -> None:
    model = RoutingTransformer(vocabulary=11, context=64, dim=16, depth=2, num_heads=4, window=16, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens, other = torch.randint(11, (2, 2, 40))
    mask = (torch.arange(40) < 30).expand(2, -1)
    changed = torch.where(mask, tokens, other)
    torch.testing.assert_close(model(tokens, mask)[mask], model(changed, mask)[mask])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_their_clusters(name: str) -> None:
    with torch.device("meta"):
        model = RoutingTransformer.of_size(name, vocabulary=100)
    layers = [layer.attention for layer in model.layers]
    wanted = {"wikitext103_4k": (14, 8, 8), "wikitext103_1k": (20, 2, 8), "enwik8_8k": (12, 16, 4),
              "enwik8_12k": (12, 48, 4), "pg19_8k": (22, 16, 2)}[name]  # fmt: skip
    assert (len(layers), layers[-1].num_clusters, layers[-1].routed_heads) == wanted
    assert sum(layer.routed_heads > 0 for layer in layers) == (1 if name == "pg19_8k" else len(layers))


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 is not possible"),
        ({"local_heads": 9}, "local_heads=9 is not possible: a whole number, 0 ... num_heads=2, is needed"),
        ({"num_clusters": 0}, "num_clusters=0 is not possible"),
        ({"window": 0}, "window=0 is not possible"),
        ({"look_back": -1}, "look_back=-1 is not possible"),
        ({"position": "rope", "num_heads": 16}, "a head has 1 channels"),
        ({"centroids": "still"}, "centroids='still' is not possible: it must be one of spherical, released, peer"),
        ({"decay": 1.5}, "decay=1.5 is not possible: it must be in 0 ... 1"),
        ({"commitment": -1.0}, "commitment=-1.0 is not possible"),
        ({"count_eps": -1.0}, "count_eps=-1.0 is not possible"),
        ({"num_mem_kv": 2, "position": "relative"}, "num_mem_kv=2 is not possible: a memory has no place"),
    ],
)
def test_options_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(message)):
        RoutingAttention(16, **{"num_heads": 2, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 100, "window": 16}, "context=100 is not possible: it must be a multiple of window=16"),
        ({"dim": 18}, "num_heads=4 is not possible: it must divide dim=18, or head_dim must be given"),
        ({"local_heads": [1, 2, 3]}, "local_heads=[1, 2, 3] is not possible: one number in 0 ... 4, or 2 of them"),
        ({"form": "new"}, "form='new' is not possible"),
        ({"vocabulary": 0}, "vocabulary=0 is not possible"),
    ],
)
def test_language_models_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(message)):
        RoutingTransformer(**{"vocabulary": 11, "dim": 16, "depth": 2, "num_heads": 4, **options})


def test_texts_and_sizes_that_are_refused() -> None:
    model = RoutingTransformer(vocabulary=11, context=64, dim=16, depth=1)
    with pytest.raises(InvalidValue, match="the text has 65 tokens, and context is 64"):
        model(torch.zeros(1, 65, dtype=torch.int64))
    with pytest.raises(UnknownName, match="enwik8_8k"):
        RoutingTransformer.of_size("enwik8", vocabulary=11)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q, k, v, s: routing_attention(q, k[:, :, 1:], v, s), InvalidValue, "agree in batch, heads and length"),
        (lambda q, k, v, s: routing_attention(q, k, v.float(), s), InvalidType, "share one floating dtype"),
        (lambda q, k, v, s: routing_attention(q, k, v, s.int()), InvalidType, "q_sets must be int64"),
        (lambda q, k, v, s: routing_attention(q, k, v, s[:1]), InvalidValue, "q_sets has shape (1, 2, 2, 3)"),
        (lambda q, k, v, s: routing_attention(q, k, v, s, count_eps=-1.0), InvalidValue, "count_eps=-1.0"),
        (
            lambda q, k, v, s: routing_attention(q, k, v, s, rel_k=q[0, 0]),
            InvalidValue,
            "rel_k and rel_v come together",
        ),
        (lambda q, k, v, s: routing_attention(q, k, v, s, mask=MASK), InvalidValue, "mask has shape (2, 29)"),
        (lambda q, k, v, s: cluster_window_attention(q, k, v, s[..., 0], 2, 3), InvalidValue, "clusters have shape"),
        (lambda q, k, v, s: cluster_window_attention(q, k, v, q[..., 0], 2, 3), InvalidType, "clusters must be int64"),
        (lambda q, k, v, s: cluster_window_attention(q, k, v, s[..., 0], 2, 0), InvalidValue, "window=0"),
        (lambda q, k, v, s: local_block_attention(q, k, v, 0), InvalidValue, "block=0"),
        (lambda q, k, v, s: local_block_attention(q, k, v, 3, ahead=1), InvalidValue, "nothing is ahead"),
        (lambda q, k, v, s: local_block_attention(q[:, :, 1:], k, v, 3), InvalidValue, "positions are needed"),
    ],
)
def test_tensors_that_are_refused(call, error: type[Exception], message: str) -> None:
    sets = torch.arange(3).expand(2, 2, 2, -1)
    with pytest.raises(error, match=re.escape(message)):
        call(*qkv(8), sets)
