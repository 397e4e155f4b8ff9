"""Generation: sampling against its definitions, batches against single prompts, text in pieces, messages."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from foveate.errors import InvalidType, InvalidValue
from foveate.generation import Sampling, generate
from foveate.generation.open import Tokens, open_writer
from foveate.generation.sampling import Draws, draw, heat, keep_min_p, keep_top_k, keep_top_p, penalise
from foveate.generation.telling import Screen, Telling
from foveate.generation.text import StopTexts, harmless
from foveate.models.language.landmark_attention import LandmarkGPT
from foveate.models.language.language_model import LanguageModel
from foveate.models.language.lightning_attention import TransNormerLLM
from foveate.registry import entries, find
from foveate.tasks.language.tokenise import ByteTokeniser

V = 11


def logits_of(seed: int, batch: int = 3, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(batch, V, generator=torch.Generator().manual_seed(seed))


def left(logits: Tensor) -> list[set[int]]:
    return [{i for i, value in enumerate(row) if value > -math.inf} for row in logits.tolist()]


# Sampling ------------------------------------------------------------------------------------------------------------


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


@given(seed=st.integers(0, 999), k=st.integers(1, V + 2))
def test_top_k_keeps_the_k_largest(seed: int, k: int) -> None:
    logits = logits_of(seed)
    naive = [set(sorted(range(V), key=lambda i, row=row: -row[i])[:k]) for row in logits.tolist()]
    assert left(keep_top_k(logits, k)) == naive


def test_top_k_keeps_what_equals_the_last() -> None:
    assert left(keep_top_k(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), 1)) == [{1, 2}]


@given(seed=st.integers(0, 999), p=st.floats(0.01, 0.999))
def test_top_p_keeps_the_fewest_that_have_the_probability(seed: int, p: float) -> None:
    logits = logits_of(seed)
    for row, kept in zip(logits.tolist(), left(keep_top_p(logits.double(), p)), strict=True):
        probabilities, total, naive = softmax(row), 0.0, set()
        for i in sorted(range(V), key=lambda i, row=row: -row[i]):
            naive.add(i)
            total += probabilities[i]
            if total >= p:
                break
        assert kept == naive


def test_top_p_looks_beyond_the_likeliest_where_it_must() -> None:
    logits = torch.stack([torch.zeros(2000), torch.arange(2000.0) / 1000]).double()
    kept = left(keep_top_p(logits, 0.9))
    assert len(kept[0]) == 2000  # all are as likely
    probabilities = softmax(logits[1].tolist())
    share = sum(probabilities[i] for i in kept[1])
    assert 0.9 <= share < 0.9 + max(probabilities)
    assert kept[1] == set(range(2000 - len(kept[1]), 2000))


@given(seed=st.integers(0, 999), least=st.floats(0.001, 1))
def test_min_p_keeps_a_share_of_the_likeliest(seed: int, least: float) -> None:
    logits = logits_of(seed)
    for row, kept in zip(logits.tolist(), left(keep_min_p(logits.double(), least)), strict=True):
        probabilities = softmax(row)
        assert kept == {i for i in range(V) if probabilities[i] >= least * max(probabilities) * (1 - 1e-12)}


def test_the_penalty_makes_what_was_seen_less_likely() -> None:
    logits, seen = torch.tensor([[2.0, -2.0, 4.0, -4.0]]), torch.tensor([[True, True, False, False]])
    assert penalise(logits, seen, 2.0).tolist() == [[1.0, -4.0, 4.0, -4.0]]


def test_temperature_divides_and_does_not_overflow() -> None:
    logits = logits_of(0)
    torch.testing.assert_close(heat(logits, 0.5).softmax(-1), (logits.double() * 2).softmax(-1))
    assert heat(logits, 1e-308).softmax(-1).max(-1).values.tolist() == [1.0] * 3


def test_what_is_drawn_has_its_probability() -> None:
    logits = keep_top_k(logits_of(3, 1, spread=1.0), 6).expand(40_000, V)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = torch.bincount(draw(logits, uniform), minlength=V) / 40_000
    expected = torch.tensor(softmax(logits[0].tolist()))
    assert (share - expected).abs().max() < 4 * math.sqrt(0.25 / 40_000)
    assert (share[expected == 0] == 0).all()


def test_the_ends_of_the_unit_interval_draw_what_has_probability() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]]).expand(2, 4)
    assert draw(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 2]


def test_filters_follow_temperature_and_each_other() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    ends = torch.tensor([1 - 1e-9], dtype=torch.float64)
    assert Sampling(top_k=3, top_p=0.9).choose(logits, ends).tolist() == [2]
    assert Sampling(top_p=0.75).choose(logits, ends).tolist() == [1]
    assert Sampling(top_p=0.75, temperature=0.25).choose(logits, ends).tolist() == [0]  # 0.88 of it is the first
    assert Sampling(min_p=0.5).choose(logits, ends).tolist() == [1]
    assert Sampling(min_p=0.2, top_k=4).choose(logits, ends).tolist() == [2]
    assert Sampling(temperature=0).choose(logits).tolist() == [0]
    seen = torch.tensor([[True, False, False, False]])
    assert Sampling(temperature=0, repetition_penalty=3.0).choose(logits, seen=seen).tolist() == [1]


def test_every_sample_has_random_numbers_of_its_own() -> None:
    together, alone = Draws([5, 6, 7]), Draws([7])
    for turn in range(130):  # beyond a block
        if turn == 70:
            together.keep([0, 2])
        assert together.next()[-1] == alone.next()[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    logits = torch.tensor([[0.0, bad, 1.0]])
    uniform = torch.zeros(1, dtype=torch.float64)
    for sampling in (Sampling(), Sampling(temperature=0), Sampling(top_k=2, top_p=0.5, min_p=0.1)):
        with pytest.raises(InvalidValue, match="logits are not finite"):
            sampling.choose(logits, uniform)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_k": 2.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.nan},
    ],
    ids=str,
)
def test_an_illegal_option_is_named(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(InvalidValue, match=f"^{name}={value!r} is not possible: "):
        Sampling(**options)


def test_a_number_to_draw_by_is_needed() -> None:
    with pytest.raises(InvalidValue, match="uniform is missing"):
        Sampling().choose(logits_of(0))


# Generation ----------------------------------------------------------------------------------------------------------


def transnormer(vocabulary: int = 23, masks: bool = True) -> TransNormerLLM:
    torch.manual_seed(0)
    model = TransNormerLLM(vocabulary=vocabulary, dim=24, depth=2, num_heads=2).double()
    model.masks = masks  # type: ignore[misc]
    torch.nn.init.normal_(model.embed.weight)  # answers that depend on what was read
    return model


def prompts_of(*lengths: int, vocabulary: int = 23) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths]


class Table(nn.Module):
    """A model without a stream: the next token depends on the last two."""

    masks = True
    vocabulary = 7

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens = tokens if mask is None else tokens.where(mask, 0)
        before = nn.functional.pad(tokens, (1, 0))[:, :-1]
        return nn.functional.one_hot((2 * tokens + before + 1) % 7, 7).double()


def texts(model: nn.Module, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    return [result.tokens for result in generate(model, prompts, max_tokens=12, **options).finish()]


SAMPLINGS = [
    pytest.param(Sampling(temperature=0), id="greedy"),
    pytest.param(Sampling(temperature=0.9, top_k=9, top_p=0.95), id="drawn"),
    pytest.param(Sampling(repetition_penalty=1.5, min_p=0.01), id="penalty"),
]


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_batch_writes_what_single_prompts_write(masks: bool, sampling: Sampling) -> None:
    model, prompts = transnormer(masks=masks), prompts_of(1, 9, 4, 9, 2)
    alone = [texts(model, [p], sampling=sampling, seed=5 + i)[0] for i, p in enumerate(prompts)]
    assert len({tuple(t) for t in alone}) > 2
    assert texts(model, prompts, sampling=sampling, seed=5) == alone
    assert texts(model, prompts, sampling=sampling, seed=5, batch=2, prefill_chunk=3) == alone
    assert texts(model, prompts, sampling=sampling, seed=6) != alone or sampling.greedy


STREAMING = [e.name for e in entries("mixer") if e.spec.causal == "strict" and e.spec.streaming == "exact"]


@pytest.mark.parametrize("mixer", STREAMING)
def test_any_streaming_mixer_writes_alike_in_a_batch(mixer: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(mixer, vocabulary=23, dim=16, depth=2, num_heads=2, positions="learned").double()
    torch.nn.init.normal_(model.embed.weight)
    prompts, sampling = prompts_of(1, 6, 3), Sampling(temperature=0.8)
    alone = [texts(model, [p], sampling=sampling, seed=i)[0] for i, p in enumerate(prompts)]
    assert texts(model, prompts, sampling=sampling, prefill_chunk=4) == alone
    assert texts(model, prompts, sampling=sampling, recompute=True) == alone


@pytest.mark.parametrize("special", [True, False])
def test_landmarks_are_where_they_are_without_padding(special: bool) -> None:
    torch.manual_seed(0)
    model: Any
    if special:
        options = {"block_size": 3, "chunk": 4, "top_k": 9}  # all: old landmarks of a first layer look alike
        sizes = {"vocabulary": 23, "dim": 16, "depth": 2, "num_heads": 2}
        model = LanguageModel("landmark_attention", **sizes, mixer_options=options).double()
    else:
        model = LandmarkGPT(vocabulary=23, dim=16, depth=2, num_heads=2, block_size=3, top_k=9).double()
    for weight in model.parameters():  # answers that depend on where landmarks stand
        torch.nn.init.normal_(weight, std=0.5)
    assert model.masks
    prompts = prompts_of(1, 11, 3, 11)
    alone = [texts(model, [p], seed=i)[0] for i, p in enumerate(prompts)]
    assert texts(model, prompts) == alone


LANGUAGE = [e.name for e in entries("model") if "language" in e.spec.tasks and e.spec.streaming != "no"]


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models_answer_for_the_last_token_alone(name: str) -> None:
    torch.manual_seed(0)
    model: Any = find(name, "model").load()(vocabulary=23).eval()
    tokens, mask = torch.randint(23, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = False
    for real in (None, mask) if getattr(model, "masks", False) else (None,):
        logits, state = model.prefill(tokens, model.init_state(2), real)
        last, other = model.prefill(tokens, model.init_state(2), real, last_only=True)
        assert last.shape == (2, 1, 23)
        torch.testing.assert_close(last, logits[:, -1:], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.step(tokens[:, 0], other)[0], model.step(tokens[:, 0], state)[0])


def test_a_generation_asks_for_the_last_token_alone() -> None:
    model, widths = transnormer(), []
    head = model._head
    model._head = lambda x: widths.append(x.shape) or head(x)  # type: ignore[method-assign,func-returns-value]
    prompts = prompts_of(5, 9)
    asked = texts(model, prompts, prefill_chunk=4)
    assert max(shape[1] for shape in widths if len(shape) == 3) == 1

    class Own(nn.Module):
        """A model of the user's, without the option."""

        masks, vocabulary, init_state, step = True, 23, model.init_state, model.step

        def prefill(self, x: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
            return model.prefill(x, state, mask)

    assert texts(Own(), prompts, prefill_chunk=4) == asked


def test_greedy_text_is_what_forward_says() -> None:
    model, (prompt,) = transnormer(), prompts_of(6)
    read = list(prompt)
    for _ in range(12):
        read.append(int(model(torch.tensor([read]))[0, -1].argmax()))
    assert texts(model, [prompt], sampling=Sampling(temperature=0)) == [read[6:]]


def test_the_penalty_counts_what_was_read_and_what_was_written() -> None:
    model, (prompt,) = transnormer(), prompts_of(14)
    read, penalty = list(prompt), 1.7
    for _ in range(12):
        logits = model(torch.tensor([read]))[0, -1].tolist()
        made = [(x / penalty if x > 0 else x * penalty) if i in read else x for i, x in enumerate(logits)]
        read.append(made.index(max(made)))
    sampling = Sampling(temperature=0, repetition_penalty=penalty)
    assert texts(model, [prompt], sampling=sampling) == [read[14:]]
    assert len(set(read[14:])) > len(set(texts(model, [prompt], sampling=Sampling(temperature=0))[0]))


def test_samples_end_at_a_stop_token_and_leave_the_batch() -> None:
    model, prompts = transnormer(), prompts_of(3, 5, 4)
    whole = texts(model, prompts, seed=1)
    stop = whole[1][4]
    run = generate(model, prompts, max_tokens=12, stop=[stop], seed=1)
    events = list(run)
    for result, text in zip(run.results, whole, strict=True):
        cut = text.index(stop) if stop in text else None
        assert result.tokens == text[:cut]
        assert result.reason == ("length" if cut is None else "stop")
    assert events[-1].reason is not None
    for sample, result in enumerate(run.results):
        own = [event for event in events if event.sample == sample]
        assert [event.token for event in own if event.token is not None] == result.tokens
        assert [event.reason for event in own] == [None] * (len(own) - 1) + [result.reason]


def test_a_listener_ends_a_sample() -> None:
    model, prompts = transnormer(), prompts_of(3, 5)
    whole = texts(model, prompts)
    run = generate(model, prompts, max_tokens=12)
    for event in run:
        if event.sample == 0 and len(run.results[0].tokens) == 3:
            run.stop(0)
    assert [r.tokens for r in run.results] == [whole[0][:3], whole[1]]
    assert [r.reason for r in run.results] == ["stopped", "length"]


def cached() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel("softmax_attention", vocabulary=23, dim=16, depth=2, num_heads=2).double().eval()
    torch.nn.init.normal_(model.embed.weight)
    return model


@pytest.mark.parametrize("make", [transnormer, cached])
def test_a_text_goes_on_from_its_state(make: Callable[[], nn.Module]) -> None:
    model: Any = make().eval()
    prompts = prompts_of(3, 5)
    greedy = Sampling(temperature=0)
    first = generate(model, prompts, max_tokens=5, sampling=greedy, keep_states=True).finish()
    whole = texts(model, prompts, sampling=greedy)
    for result, text in zip(first, whole, strict=True):
        last = [result.tokens[-1]]
        with torch.no_grad():  # not inference mode
            logits, _ = model.step(torch.tensor(last), result.state)
        assert int(logits.argmax()) == text[5]
        rest = generate(model, [last], max_tokens=7, sampling=greedy, state=result.state).finish()
        assert result.tokens + rest[0].tokens == text


def test_a_state_of_one_sample_stands_before_all_prompts() -> None:
    model, (start, *prompts) = transnormer(), prompts_of(7, 3, 2)
    _, state = model.prefill(torch.tensor([start]), model.init_state(1))
    assert texts(model, prompts, state=state) == texts(model, [start + p for p in prompts])
    both = state.reorder(torch.tensor([0, 0]))
    assert texts(model, prompts, state=both) == texts(model, [start + p for p in prompts])
    assert texts(transnormer(masks=False), prompts, state=both) == texts(model, [start + p for p in prompts])


def test_states_that_do_not_fit_are_refused() -> None:
    model, prompts = transnormer(), prompts_of(3, 2)
    deeper = TransNormerLLM(vocabulary=23, dim=24, depth=3, num_heads=2)
    cases = [
        (model.init_state(3), "the state has 3 samples, and there are 2 prompts"),
        (deeper.init_state(1), "the state is of another model: TransNormerLLM needs one that began with its own"),
        (model.init_state(1).layers[0], "the state is of another model"),
        (TransNormerLLM(vocabulary=23, dim=12, depth=2, num_heads=2).init_state(2), "kv of the state has shape"),
    ]
    for state, message in cases:
        with pytest.raises(InvalidValue, match=message):
            generate(model, prompts, max_tokens=2, state=state).finish()


def test_a_model_without_a_stream_is_recomputed_if_asked() -> None:
    model, prompts = Table(), [[1, 2], [3], [4, 5, 6]]
    with pytest.raises(InvalidType, match=r"Table has no streaming form.*recompute"):
        generate(model, prompts, max_tokens=3)
    expected = []
    for prompt in prompts:
        read = [0, *prompt]
        for _ in range(12):
            read.append((2 * read[-1] + read[-2] + 1) % 7)
        expected.append(read[len(prompt) + 1 :])
    greedy = Sampling(temperature=0)
    assert texts(model, prompts, sampling=greedy, recompute=True) == expected
    model.masks = False
    assert texts(model, prompts, sampling=greedy, recompute=True, prefill_chunk=1) == expected


def test_a_bounded_context_is_kept() -> None:
    torch.manual_seed(0)
    model = LanguageModel("gru", vocabulary=23, context=8, dim=8, depth=1, positions="learned")
    assert LanguageModel("gru", vocabulary=23, context=8, dim=8, depth=1).longest is None
    with pytest.raises(InvalidValue, match="prompt 1 has 9 tokens, and LanguageModel reads at most 8"):
        generate(model, prompts_of(2, 9), max_tokens=2)
    run = generate(model, prompts_of(8, 5), max_tokens=20)
    assert [len(r.tokens) for r in run.finish()] == [1, 4]  # the last of each need not be read
    assert [r.reason for r in run.results] == ["full", "full"]


def test_an_empty_prompt_begins_a_document() -> None:
    model = transnormer()
    with pytest.raises(InvalidValue, match="prompt 1 is empty: the model has no token that begins a document"):
        generate(model, [[1], []], max_tokens=2)
    assert texts(model, [[]], start=4) == texts(model, [[4]])


@pytest.mark.parametrize("prompt", [[0, 23], [-1]])
def test_a_token_of_another_vocabulary_is_refused(prompt: list[int]) -> None:
    with pytest.raises(InvalidValue, match=f"prompt 0 has the token {prompt[-1]}: the model's are 0 ... 22"):
        generate(transnormer(), [prompt], max_tokens=2)


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        ([], {}, InvalidValue, "there is no prompt"),
        (["text"], {}, InvalidType, "prompt 0 must be token numbers, not str: encode texts first"),
        ([torch.zeros(1, 2, dtype=torch.int64)], {}, InvalidValue, "prompt 0 has shape"),
        ([torch.zeros(2)], {}, InvalidValue, "prompt 0 has shape"),
        ([[1]], {"max_tokens": 0}, InvalidValue, "max_tokens=0 is not possible"),
        ([[1]], {"prefill_chunk": 0}, InvalidValue, "prefill_chunk=0 is not possible"),
        ([[1]], {"batch": 1.5}, InvalidValue, "batch=1.5 is not possible"),
        ([[1]], {"seed": -1}, InvalidValue, "seed=-1 is not possible"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said(prompts: Any, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        generate(transnormer(), prompts, **{"max_tokens": 2, **options})


def test_the_model_is_given_back_as_it_came() -> None:
    model = transnormer().train()
    run = generate(model, prompts_of(2), max_tokens=3)
    next(run)
    assert not model.training
    assert not torch.is_inference_mode_enabled()
    run.finish()
    assert model.training


def test_speed_counts_what_was_read_and_written() -> None:
    run = generate(transnormer(), prompts_of(4, 6), max_tokens=5)
    assert run.speed.prefill_rate is None
    run.finish()
    speed = run.speed
    assert (speed.prompt_tokens, speed.decoded) == (10, 8)  # the first of each comes with its prompt
    assert speed.prefill_rate == pytest.approx(10 / speed.prefill_seconds)
    assert speed.decode_rate == pytest.approx(8 / speed.decode_seconds)
    state = transnormer().init_state(2)
    assert (speed.state_bytes, speed.state_samples) == (state.nbytes, 2)
    json.dumps(speed.as_json(), allow_nan=False)


# Text ----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.lists(st.text("ab", max_size=4), max_size=6))
@example(["a", "b"], ["ab"])
@example(["aab", "ab"], ["a", "a", "b"])
def test_a_text_ends_where_a_stop_text_is_complete(stops: list[str], pieces: list[str]) -> None:
    finder, shown, ended = StopTexts(stops), "", False
    for piece in pieces:
        certain, ended = finder.push(piece)
        shown += certain
        if ended:
            break
    shown += finder.finish()
    whole, expected = "".join(pieces), "".join(pieces)
    for end in range(1, len(whole) + 1):
        complete = [stop for stop in stops if whole[:end].endswith(stop)]
        if complete:
            expected = whole[: end - max(map(len, complete))]
            break
    assert shown == expected
    assert ended == any(stop in whole for stop in stops)


def test_what_may_become_a_stop_text_is_held_back() -> None:
    finder = StopTexts(["\n\n", "END"])
    assert [finder.push(p) for p in ("one\n", "two E", "N", "d", "\n", "\nthree")] == [
        ("one", False),
        ("\ntwo ", False),
        ("", False),
        ("ENd", False),
        ("", False),
        ("", True),
    ]
    with pytest.raises(InvalidValue, match="a stop text is empty"):
        StopTexts(["x", ""])


def test_a_terminal_is_shown_signs_instead_of_control_characters() -> None:
    assert harmless("a\tb\nc\x1b[2J\x07\x7f\x9b\r") == "a\tb\nc\u241b[2J\u2407\u2421\ufffd\u240d"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_texts_are_shown_in_their_order() -> None:
    stream = io.StringIO()
    screen = Screen(stream, ["A: ", "B: ", "C: "], 3)
    screen.show(1, "b1", False)
    screen.show(0, "a1", False)
    assert stream.getvalue() == "[1 of 3]\nA: a1"
    screen.show(1, "b2", True)
    screen.show(2, "c1", False)
    screen.show(0, "a2", True)
    assert stream.getvalue() == "[1 of 3]\nA: a1a2\n\n[2 of 3]\nB: b1b2\n\n[3 of 3]\nC: c1"
    screen.close()
    assert stream.getvalue().endswith("C: c1\n")


def test_a_terminal_is_shown_the_end_of_a_long_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    prompt = "x" * 5000 + "\x1bend"
    for stream, expected in ((Terminal(), "\u2026" + "x" * 596 + "\u241bend!\n"), (io.StringIO(), prompt + "!\n")):
        screen = Screen(stream, [prompt], 1)
        screen.show(0, "!", True)
        assert stream.getvalue() == expected


def told(tmp_path: Path, **options: Any) -> tuple[Telling, str, list[dict[str, Any]]]:
    model, codec = transnormer(257), Tokens(ByteTokeniser())
    prompts = ["one", "three"]
    run = generate(model, [codec.encode(p) for p in prompts], max_tokens=20, seed=2)
    stream, file = io.StringIO(), tmp_path / "out.jsonl"
    telling = Telling(run, codec, prompts, seed=2, screen=Screen(stream, prompts, 2), file=file, **options)
    telling.run()
    telling.finish()
    return telling, stream.getvalue(), [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_what_is_told_is_shown_kept_and_recorded(tmp_path: Path) -> None:
    telling, shown, lines = told(tmp_path)
    records = telling.records
    assert sorted(lines, key=lambda line: line["seed"]) == records
    assert [r["prompt"] for r in records] == ["one", "three"]
    assert [(r["tokens"], r["reason"], r["seed"]) for r in records] == [(20, "length", 2), (20, "length", 3)]
    assert shown == f"[1 of 2]\none{records[0]['text']}\n\n[2 of 2]\nthree{records[1]['text']}\n"
    stop = records[0]["text"][5:7]
    telling, _, lines = told(tmp_path, stops=[stop])  # the file is replaced
    assert len(lines) == 2
    assert telling.records[0]["text"] == records[0]["text"][: records[0]["text"].index(stop)]
    assert telling.records[0]["reason"] == "stopped"
    assert telling.records[0] in lines


def test_what_was_held_back_for_a_stop_text_is_told_in_the_end(tmp_path: Path) -> None:
    whole = told(tmp_path)[0].records[0]["text"]
    telling, shown, _ = told(tmp_path, stops=[whole[-1] + "!"])
    assert telling.records[0]["text"] == whole
    assert f"one{whole}\n" in shown


def test_a_bare_model_takes_a_tokenizer_of_its_size(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel

    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    inner.save(str(tmp_path / "tokenizer.json"))
    for name, size, end in (("without", 256, None), ("with", 257, 256)):
        transnormer(size).float().save_pretrained(tmp_path / name)
        writer = open_writer(tmp_path / name, tokenizer=str(tmp_path / "tokenizer.json"))
        assert (writer.end, writer.opening, writer.stop) == (end, (), () if end is None else (end,))
        tokens, decoder = writer.encode("gr\u00fc\u00df"), writer.codec.decoder()
        assert "".join(map(decoder.push, tokens)) == "gr\u00fc\u00df"
        assert tokens != list("gr\u00fc\u00df".encode())  # the tokenizer's numbers, not bytes
    transnormer(300).float().save_pretrained(tmp_path / "other")
    with pytest.raises(InvalidValue, match=r"has 256, or 257 with the end of a document: it is another one's"):
        open_writer(tmp_path / "other", tokenizer=str(tmp_path / "tokenizer.json"))
