"""Landmark attention against the authors' lm_benchmark: the grouped softmax, the language model, cached inference."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from cases import DEFAULT_TOLERANCE, Answer, Case
from torch.func import functional_call, jacfwd

from foveate.mixers import landmark_stream
from foveate.models.language.landmark_attention import LandmarkGPT, WindowGPT
from foveate.models.official import load_official
from foveate.ops import backend
from foveate.ops.landmark_attention import landmark_grouped_softmax

SOFTMAX = {"mem_opt": "grouped", "nomem": "plain", "ignore_mem": "ignored"}
#: Configuration keys that change nothing for a recorded answer, or that are read below.
READ = {
    "vocab_size", "n_embd", "n_head", "n_layer", "sequence_length", "bias", "dropout", "group_dropout", "softmax_func",
    "positional_encoder", "max_groups_for_softmax", "lm_cache", "postpone_lm_cache", "enable_rem_score", "landmark_id",
    "pos_jump_on_mem", "batch_size", "mem_cache_size", "mem_cache_freq", "cache_topk", "cache_selection_method",
    "mem_freq", "allow_cache_during_training", "use_cache", "mid_length",
}  # fmt: skip


def run(case: Case) -> Answer:
    return softmax(case) if "is_landmark" in case.inputs else language_model(case)


def softmax(case: Case) -> Answer:
    """The function alone: its raw scores are masked for causality inside."""
    scores, landmark = case.inputs["scores"].requires_grad_(), case.inputs["is_landmark"]
    unknown = set(case.config) - {"B", "H", "T", "max_mem_cnt", "p_group_dropout"}
    assert not unknown, f"configuration keys that nothing reads: {sorted(unknown)}"
    assert not case.config.get("p_group_dropout"), "dropout cannot be repeated"
    weights = landmark_grouped_softmax(scores, landmark)
    return {"probs": weights}, case.gradients(weights.square().mean(), {"scores": scores})


def build(case: Case) -> LandmarkGPT:
    config: dict[str, Any] = case.config
    options: dict[str, Any]
    unknown = set(config) - READ
    assert not unknown, f"configuration keys that nothing reads: {sorted(unknown)}"
    assert config["positional_encoder"] in ("rotary", "rotary_mem_jump"), config["positional_encoder"]
    cached = config["lm_cache"]
    assert cached in ("none", "mem", "kv", "kv_train"), cached
    kind, options = LandmarkGPT, {}
    if cached in ("kv", "kv_train"):
        kind, options = WindowGPT, {"window": config["mem_cache_size"], "chunk": None}
    else:
        options = {"position_jump": config["pos_jump_on_mem"] or 0}
    if cached == "mem":
        options |= {
            "block_size": config["mem_cache_freq"],
            "max_blocks": config["mem_cache_size"],
            "top_k": config["cache_topk"],
            "selection": config["cache_selection_method"],
            "chunk": None,
            "stream_positions": "released",
        }
    model = kind(
        vocabulary=config["vocab_size"],
        landmark_id=config["landmark_id"],
        dim=config["n_embd"],
        depth=config["n_layer"],
        num_heads=config["n_head"],
        context=config["sequence_length"],
        max_groups=config["max_groups_for_softmax"],
        bias=config["bias"],
        dropout=config["dropout"],
        group_dropout=config["group_dropout"] or 0.0,
        softmax=SOFTMAX[config["softmax_func"]],  # type: ignore[arg-type]
        **options,
    ).eval()
    params, lost = case.params, {}
    if config["bias"]:
        names = [f"transformer.h.{i}.attn.c_attn.bias" for i in range(config["n_layer"])]
        lost = {name: torch.zeros(3 * config["n_embd"]) for name in names if name not in params}
    load_official(model, {**params, **lost})
    if lost:
        recover_biases(model, case)
    return model


def recover_biases(model: LandmarkGPT, case: Case) -> None:
    """Find the biases of the queries, keys and values, which recordings with biases lack.

    Whoever recorded left out what ends in "attn.bias", the constant mask, and with it "c_attn.bias". The recorded
    logits determine these numbers many times over (3,600 logits, 192 biases in the visible case), so that a model that
    computes anything else finds none that fit. Gauss-Newton steps with damping, in double precision.
    """
    own = {name: p.detach().double() for name, p in model.named_parameters()}
    names = [name for name in own if name.endswith("qkv_proj.bias")]
    tokens, wanted = case.inputs["idx"], case.outputs["logits"].double()
    assert wanted.numel() > 10 * sum(own[name].numel() for name in names), "too few logits to find the biases by"

    def misses(biases: torch.Tensor) -> torch.Tensor:
        given = {**own, **dict(zip(names, biases.chunk(len(names)), strict=True))}
        with backend("reference"):
            logits = functional_call(Slots(model), {f"model.{name}": value for name, value in given.items()}, tokens)
        return (logits - wanted).flatten()

    found, damping = torch.cat([own[name] for name in names]), 1e-2
    left = misses(found)
    for _ in range(12):
        slopes = jacfwd(misses)(found)
        normal, downhill = slopes.T @ slopes, slopes.T @ left
        trial = found - torch.linalg.solve(normal + damping * normal.diagonal().diag(), downhill)
        after = misses(trial)
        if after.square().sum() < left.square().sum():
            found, left, damping = trial, after, damping / 5
        else:
            damping *= 4
        if left.abs().max() < 3e-6:
            break
    for name, bias in zip(names, found.chunk(len(names)), strict=True):
        model.get_parameter(name).data.copy_(bias)


class Slots(torch.nn.Module):
    """``forward_slots`` as a module's call."""

    def __init__(self, model: LandmarkGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.forward_slots(tokens)


def language_model(case: Case) -> Answer:
    model, inputs = build(case), case.inputs
    if case.config["lm_cache"] != "none":
        return {"logits": as_recorded(model, case)}, {}
    logits = model.forward_slots(inputs["idx"])
    outputs = {"logits": logits[:, -case.outputs["logits"].shape[1] :]}  # without targets, the last one alone
    loss = logits.square().mean()
    if "targets" in inputs:
        loss = F.cross_entropy(logits.flatten(0, 1), inputs["targets"].flatten(), ignore_index=-1)
        outputs["loss"] = loss.reshape(case.outputs["loss"].shape) if "loss" in case.outputs else loss
    return outputs, case.gradients(loss, official_parameters(model, case))


def chunk_length(case: Case) -> int:
    """Raw tokens of a call, which only the notes tell where the configuration does not."""
    if "mid_length" in case.config:
        return case.config["mid_length"]
    found = re.search(r"chunks? of (?:length )?(\d+)", case.notes)
    assert found is not None, f"no length of chunks in the notes: {case.notes!r}"
    return int(found[1])


class Place(NamedTuple):
    """Where a block is chosen: which choice of a call, which sample and which of its slots."""

    choice: int
    sample: int
    row: int


def as_recorded(model: LandmarkGPT, case: Case) -> torch.Tensor:
    """Logits of a stream in which blocks that are wanted alike are fetched as they were recorded.

    All landmarks are the same token: in a first layer old ones are wanted exactly alike, and the order of sums of a
    matrix product decides, in the release and here. Where an answer differs, what ties with our choice is tried.
    """
    tokens, length = case.inputs["idx"], chunk_length(case)
    state, answers = model.init_state(len(tokens)), []
    for chunk, wanted in zip(tokens.split(length, 1), case.outputs["logits"].split(length, 1), strict=True):
        chosen: dict[Place, torch.Tensor] = {}
        logits, after, ties = prefill(model, chunk, state, chosen)
        while better := one_better(model, chunk, state, wanted, chosen, right_tokens(logits, wanted), ties):
            chosen |= better
            logits, after, ties = prefill(model, chunk, state, chosen)
        state = after
        answers.append(logits)
    return torch.cat(answers, 1)


def right_tokens(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Of each sample, how many tokens are answered as recorded before the first that is not."""
    near = (logits - wanted).abs().amax(-1) < DEFAULT_TOLERANCE * wanted.abs().max()
    return near.int().cummin(1).values.sum(1)


def one_better(
    model: LandmarkGPT,
    chunk: torch.Tensor,
    state: Any,
    wanted: torch.Tensor,
    chosen: dict[Place, torch.Tensor],
    right: torch.Tensor,
    ties: dict[Place, Iterable[torch.Tensor]],
) -> dict[Place, torch.Tensor]:
    """One more choice with which more tokens of its sample are right; empty: there is none, or all are right."""
    for place in reversed(ties):
        if right[place.sample] == chunk.shape[1]:
            continue
        for blocks in ties[place]:
            logits, _, _ = prefill(model, chunk, state, {**chosen, place: blocks})
            if right_tokens(logits, wanted)[place.sample] > right[place.sample]:
                return {place: blocks}
    return {}


def prefill(
    model: LandmarkGPT, chunk: torch.Tensor, state: Any, chosen: dict[Place, torch.Tensor]
) -> tuple[torch.Tensor, Any, dict[Place, Iterable[torch.Tensor]]]:
    """Logits of a chunk with these choices, the state behind it, and what ties, made when asked for."""
    best, ties = landmark_stream._best, {}
    calls = itertools.count()

    def choose(asked: torch.Tensor, count: int, blocks: Any) -> torch.Tensor:
        call, picked = next(calls), best(asked, count, blocks)
        for sample, row in itertools.product(range(asked.shape[0]), range(asked.shape[2])):
            place = Place(call, sample, row)
            ties[place] = tied(asked[sample, :, row], count, landmark_stream._ring_start(blocks))
            if place in chosen:
                picked[sample, :, row] = chosen[place]
        return picked

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(landmark_stream, "_best", choose)
        logits, state = model.prefill(chunk, state)
    return logits, state, ties


def tied(asked: torch.Tensor, count: int, ring_start: int) -> Iterator[torch.Tensor]:
    """All choices of as many blocks, oldest first, that are wanted alike: ``(heads, count)`` each."""
    alike = bool((asked == asked[0]).all())  # the heads decide together
    of_heads = []
    for wants in asked[:1] if alike else asked:
        least = wants.topk(count).values[-1]
        sure = (wants > least + 1e-6).nonzero()[:, 0].tolist()
        even = ((wants - least).abs() <= 1e-6).nonzero()[:, 0].tolist()
        some = [[*sure, *more] for more in itertools.combinations(even, count - len(sure))]
        of_heads.append([sorted((ring - ring_start) % len(wants) for ring in each) for each in some])
    for each in itertools.product(*of_heads):
        yield torch.tensor(each).expand(len(asked), count)


def official_parameters(model: LandmarkGPT, case: Case) -> dict[str, torch.Tensor]:
    """Our parameters by the official names of the recorded ones."""
    own, named = dict(model.named_parameters()), {}
    for key in (*case.params, *case.grads):
        for pattern, replacement in model.official_keys["lm_benchmark"].items():
            match = re.fullmatch(pattern, key)
            if match and replacement:
                named[key] = own[match.expand(replacement)]
                break
    if "transformer.wte.weight" in case.grads:
        named["transformer.wte.weight"] = model.embed.weight  # the head's own tensor
    return named
