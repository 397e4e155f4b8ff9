"""Probes as tasks: options, parts, scores by length and depth, what is stored and what is shipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from foveate.errors import FoveateError, InvalidType, InvalidValue
from foveate.models.build import resolve
from foveate.registry import entries, find
from foveate.tasks.fit import FitStream
from foveate.tasks.next_token import NOT_ASKED
from foveate.tasks.probing.base import ProbeTask
from foveate.tasks.probing.copying import CopyingTask
from foveate.tasks.probing.induction import InductionTask
from foveate.tasks.probing.listops import ListOpsTask
from foveate.tasks.probing.passkey import PasskeyTask
from foveate.tasks.probing.recall import RecallTask, zoology_mqar

TINY = {"samples": 40, "held_out": 20}
#: Every probe in every form, small.
FORMS = [
    ("recall", {"form": "mqar", "length": 32, "pairs": 4}),
    ("recall", {"form": "single", "length": 32}),
    ("copying", {"form": "string", "length": 8}),
    ("copying", {"form": "delay", "length": 8}),
    ("selective-copying", {"length": 16, "count": 3}),
    ("induction", {"length": 16}),
    ("passkey", {"form": "tokens", "length": 32}),
    ("passkey", {"form": "text", "length": 400, "test_lengths": "500"}),
    ("listops", {"length": 32, "test_lengths": "48"}),
    ("pathfinder", {"length": 20, "test_lengths": "24"}),
    ("state-tracking", {"group": "s5", "length": 8}),
]
IDS = ["-".join([name, *(v for v in options.values() if isinstance(v, str))]) for name, options in FORMS]


def made(name: str, **options) -> ProbeTask:
    return find(name, "task").load().prepare(**{**TINY, **options})


@pytest.fixture(params=FORMS, ids=IDS)
def task(request) -> ProbeTask:
    name, options = request.param
    return made(name, **options)


class Oracle(nn.Module):
    """Answers what its task asks, except in the parts that it was told to fail."""

    def __init__(self, task: ProbeTask, fails: tuple[str, ...] = (), first_only: bool = False) -> None:
        super().__init__()
        self.task, self.fails, self.first_only = task, fails, first_only
        self.known = {}
        for part in dict.fromkeys(name.partition(".")[0] for name in task._tensors):
            batch = task.batch(part, torch.arange(len(task._tensors[f"{part}.tokens"])))
            for x, y in zip(batch["x"].tolist(), batch["y"], strict=True):
                self.known[self.key(x)] = (part, y)

    def key(self, tokens: list[int]) -> tuple[int, ...]:
        """A sample without its padding, which is the last token of the vocabulary."""
        length = len(tokens)
        while self.task.padded and tokens[length - 1] == self.task.info.vocabulary - 1:
            length -= 1
        return tuple(tokens[:length])

    def forward(self, x):
        logits = torch.zeros(*x.shape, self.task.info.vocabulary)
        for row, tokens in enumerate(x.tolist()):
            part, y = self.known[self.key(tokens)]
            for number, place in enumerate((y >= 0).nonzero()[:, 0].tolist()):
                wrong = part in self.fails or (self.first_only and number > 0)
                logits[row, place, (y[place] + int(wrong)) % self.task.info.vocabulary] = 1
        return logits


def test_every_probe_is_tried_here():
    probes = {e.name for e in entries("task") if issubclass(e.load(), ProbeTask)}
    assert probes == {name for name, _ in FORMS}


def test_batches_are_what_the_definition_says(task):
    for split in ("train", "val", "test"):
        batch = task.batch(split, torch.arange(3))
        assert batch["x"].dtype == batch["y"].dtype == torch.int64
        assert batch["x"].shape == batch["y"].shape
        assert batch["x"].min() >= 0
        assert batch["x"].max() < task.info.vocabulary
        asked = batch["y"] != NOT_ASKED
        assert asked.any(1).all()
        assert batch["y"][asked].max() < task.info.vocabulary
    assert task.batch("train", torch.tensor([7, 7]))["x"].unique(dim=0).shape[0] == 1


def test_parts_differ_and_are_the_same_for_the_same_seed(task):
    name, options = task.info.probe, dict(task.layout["options"])
    again = made(name, **options, test_lengths="none")
    other = made(name, **options, test_lengths="none", data_seed=1)
    for part in ("train", "val", "test"):
        assert torch.equal(again._tensors[f"{part}.tokens"], task._tensors[f"{part}.tokens"])
        assert not torch.equal(other._tensors[f"{part}.tokens"], task._tensors[f"{part}.tokens"])
    train, val = (task._tensors[f"{part}.tokens"][:20] for part in ("train", "val"))
    assert not torch.equal(train, val)
    assert again.describe()["sha256"] != other.describe()["sha256"]
    more = made(name, **options, test_lengths="none", samples=300)
    assert torch.equal(more._tensors["train.tokens"][:40], task._tensors["train.tokens"])


def test_who_knows_the_answers_is_right_everywhere(task):
    found = task.evaluate(Oracle(task), "test", batch_size=7)
    assert list(found.metrics) == list(task.spec.test_metrics)
    assert set(found.metrics.values()) == {1.0}
    assert found.per_sample.tolist() == [1.0] * 20
    assert found.examples["accuracy"] == [1.0] * (1 + len(task.info.lengths))
    assert found.examples["lengths"] == sorted([task.info.length, *task.info.lengths])


def test_who_does_not_is_wrong_there(task):
    found = task.evaluate(Oracle(task, fails=("test",)), "test")
    assert found.metrics["accuracy"] == 0
    assert all(found.metrics[f"accuracy_at_{n}"] == 1 for n in task.info.lengths)
    val = task.evaluate(Oracle(task, fails=("test",)), "val")
    assert list(val.metrics) == list(type(task).spec.metrics)
    assert val.metrics["accuracy"] == 1
    assert val.examples == {}


def test_storing_and_loading_keeps_everything(task, tmp_path):
    task.save(tmp_path)
    again = type(task).load(tmp_path)
    assert again.info == task.info
    assert again.layout == task.layout
    assert again.describe() == task.describe()
    assert again.spec == task.spec
    assert all(torch.equal(again._tensors[n], t) for n, t in task._tensors.items())


def test_some_answers_right():
    task = made("passkey", length=32, digits=4)
    found = task.evaluate(Oracle(task, first_only=True), "test")
    assert found.metrics["accuracy"] == 0
    assert found.metrics["digits"] == 0.25
    task = made("recall", length=32, pairs=4)
    found = task.evaluate(Oracle(task, first_only=True), "test")
    assert found.metrics["accuracy"] == 0.25
    assert found.metrics["exact"] == 0
    assert found.per_sample.tolist() == [0.25] * 20


def test_the_grid_of_depths_and_lengths():
    task = made("passkey", length=32, digits=2, depths=4, test_lengths="64,48")
    assert task.info.lengths == (48, 64)

    class FindsTheEnd(nn.Module):
        """Knows keys that stand in the second half."""

        def forward(self, x):
            logits = torch.zeros(*x.shape, task.info.vocabulary)
            for row, tokens in enumerate(x.tolist()):
                place = tokens.index(10)
                if place > len(tokens) // 2:
                    logits[row, -2, tokens[place + 1]] = logits[row, -1, tokens[place + 2]] = 1
                else:
                    logits[row, -2:, 13] = 1
            return logits

    found = task.evaluate(FindsTheEnd(), "test")
    assert found.examples["groups"] == ["0 %", "33 %", "67 %", "100 %"]
    assert found.examples["lengths"] == [32, 48, 64]
    assert found.examples["grid"] == [[0.0] * 3, [0.0] * 3, [1.0] * 3, [1.0] * 3]
    assert found.metrics["accuracy"] == 0.5


def test_training_may_ask_for_every_token():
    task = made("recall", form="single", length=32)
    batch = task.batch("train", torch.arange(4))
    assert (batch["y"] != NOT_ASKED).sum() == 4
    assert torch.equal(batch["trained"][:, :-1], batch["x"][:, 1:])
    assert torch.equal(batch["trained"][:, -1], batch["y"][:, -1])
    assert "trained" not in task.batch("val", torch.arange(4))

    class Uniform(nn.Module):
        def forward(self, x):
            return torch.zeros(*x.shape, task.info.vocabulary)

    torch.testing.assert_close(task.loss(Uniform(), batch), torch.tensor(20.0).log())
    assert "trained" not in made("recall", form="single", loss="answers").batch("train", torch.arange(4))


def test_the_loss_is_the_mean_over_answers():
    task = made("recall", length=32, pairs=4)
    batch = task.batch("train", torch.arange(5))
    logits = torch.randn(5, 32, task.info.vocabulary)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), batch["y"].flatten(), ignore_index=NOT_ASKED)
    torch.testing.assert_close(task.loss(lambda x: logits, batch), expected)


def test_zoology_parts_are_numbered_from_the_seed():
    task = made("recall", length=32, pairs=4, stream="zoology", data_seed=5, test_lengths="48")
    for number, (part, count, length) in enumerate(
        [("train", 40, 32), ("val", 20, 32), ("test", 20, 32), ("test_at_48", 13, 48)]
    ):
        official = zoology_mqar(5 + number, count, length=length, pairs=4, vocabulary=256)
        assert (task._tensors[f"{part}.tokens"].numpy() == official.tokens).all()


def test_longer_tests_cost_as_many_tokens():
    task = made("induction", length=16, held_out=64)
    assert [len(task._tensors[f"test_at_{n}.tokens"]) for n in (32, 64, 256)] == [32, 16, 4]
    assert task.size("test") == 64
    assert task.scoring_size("test") == 256


def test_batches_end_with_their_last_answer():
    task = made("listops", length=60)
    width = max(int(task._tensors["train.places"][i, 0]) for i in range(3)) + 1
    assert task.batch("train", torch.arange(3))["x"].shape == (3, width)


def test_published_sizes():
    sizes = {name: find(name, "task").load().sizes["published"] for name, _ in FORMS}
    assert sizes["selective-copying"][""] == {"length": 4096, "count": 16, "vocabulary": 16}
    assert sizes["induction"][""] == {"length": 256, "vocabulary": 16}
    assert (sizes["listops"][""]["shortest"], sizes["listops"][""]["length"]) == (500, 2000)
    task = made("induction", scale="published", test_lengths="64,1048576", held_out=2, samples=2)
    assert task.info.lengths == (64, 1_048_576)
    assert task.info.length == 256


def test_a_model_learns_and_new_samples_are_answered(tmp_path):
    task = made("induction", length=12, vocabulary=6, samples=2000, held_out=200, test_lengths="24")
    torch.manual_seed(0)
    model = resolve("softmax_attention").build(task.info, {"dim": 32, "depth": 2})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(120):
        optimizer.zero_grad()
        task.loss(model, task.batch("train", torch.arange(64) + 64 * (step % 31))).backward()
        optimizer.step()
    scores = task.evaluate(model, "test").metrics
    assert scores["accuracy"] > 0.9
    packaged = task.package(model)
    again = type(task).unpack(
        packaged.config, lambda info: resolve("softmax_attention").build(info, {"dim": 32, "depth": 2})
    )
    again.load_state_dict(packaged.state_dict())
    table = task.predict(again)
    assert list(table.columns) == ["sample", "place", "answer", "truth"]
    assert (table["answer"] == table["truth"]).mean() > 0.9
    assert (table["place"] == 11).all()
    batch = task.batch("test", torch.arange(5))
    np.savez(tmp_path / "given.npz", x=batch["x"].numpy(), y=batch["y"].numpy())
    np.savez(tmp_path / "asked.npz", x=batch["x"].numpy())
    known, unknown = task.predict(again, tmp_path / "given.npz"), task.predict(again, tmp_path / "asked.npz")
    assert known["truth"].tolist() == batch["y"][:, -1].tolist()
    assert unknown["answer"].tolist() == known["answer"].tolist()
    assert list(unknown.columns) == ["sample", "place", "answer"]


def test_the_most_frequent_answer_is_the_baseline():
    task = made("listops", samples=500)
    baseline = resolve("token_frequencies").build(task.info, {})
    FitStream(task).fit(baseline, None)
    answers = task._tensors["train.answers"][:, 0].long()
    frequent = torch.bincount(answers).argmax()
    expected = (task._tensors["test.answers"][:, 0] == frequent).double().mean()
    assert task.evaluate(baseline, "test").metrics["accuracy"] == float(expected)


@pytest.mark.parametrize(
    ("name", "options", "kind", "says"),
    [
        ("recall", {"form": "many"}, InvalidValue, "form='many' is not possible: it must be 'mqar' or 'single'"),
        ("recall", {"length": 33}, InvalidValue, "length=33 is not possible: an even number of at least 4"),
        ("recall", {"length": 32, "pairs": 9}, InvalidValue, "pairs=9 is not possible: between 1 and a quarter of"),
        ("recall", {"pairs": 0}, InvalidValue, "pairs=0 is not possible: a whole number of at least 1"),
        ("recall", {"vocabulary": 64}, InvalidValue, "vocabulary=64 is not possible: it must be larger than length=64"),
        ("recall", {"power": 0.0}, InvalidValue, "power=0.0 is not possible: a positive number"),
        ("recall", {"fill": "ones"}, InvalidValue, "fill='ones' is not possible: it must be 'zeros' or 'random'"),
        ("recall", {"stream": "zoology", "fill": "random"}, InvalidValue, "the release does not seed it"),
        ("recall", {"form": "single", "pairs": 4}, InvalidValue, "pairs=4 is not possible: form='single' is filled"),
        ("recall", {"form": "single", "vocabulary": 5}, InvalidValue, "vocabulary=5 is not possible: at least 6"),
        ("recall", {"loss": "some"}, InvalidValue, "loss='some' is not possible: it must be 'answers' or"),
        (
            "recall",
            {"scale": "large"},
            InvalidValue,
            "scale='large' is not possible: it must be 'small' or 'published'",
        ),
        ("recall", {"samples": 0}, InvalidValue, "samples=0 is not possible"),
        ("recall", {"samples": 2.5}, InvalidType, "samples=2.5 is not possible: a whole number is needed"),
        ("recall", {"held_out": True}, InvalidType, "held_out=True is not possible"),
        ("recall", {"data_seed": -1}, InvalidValue, "data_seed=-1 is not possible"),
        ("recall", {"test_lengths": "64,128"}, InvalidValue, "different ones that are not length=64 are needed"),
        ("recall", {"test_lengths": "a"}, InvalidValue, "test_lengths='a' is not possible: lengths by commas"),
        ("recall", {"test_lengths": 128}, InvalidType, "test_lengths=128 is not possible: lengths by commas"),
        ("recall", {"test_lengths": "101"}, InvalidValue, "length=101 is not possible: an even number"),
        ("copying", {"count": 4}, InvalidValue, "count=4 is not possible: form='string' has no such option"),
        ("copying", {"form": "delay", "shortest": 4}, InvalidValue, "shortest=4 is not possible: form='delay' has no"),
        ("copying", {"shortest": 20}, InvalidValue, "shortest=20 is not possible: it cannot be above length=16"),
        ("copying", {"letters": 1}, InvalidValue, "letters=1 is not possible: at least 2 kinds"),
        ("selective-copying", {"count": 65}, InvalidValue, "count=65 is not possible: length=64 has no room"),
        ("selective-copying", {"vocabulary": 3}, InvalidValue, "vocabulary=3 is not possible: at least 4"),
        ("induction", {"length": 2}, InvalidValue, "length=2 is not possible: at least 3 are needed"),
        ("induction", {"vocabulary": 2}, InvalidValue, "vocabulary=2 is not possible: at least 3 are needed"),
        ("passkey", {"length": 7}, InvalidValue, "length=7 is not possible: 3 digits, signs and one token of filler"),
        ("passkey", {"vocabulary": 12}, InvalidValue, "vocabulary=12 is not possible: at least 13"),
        ("passkey", {"form": "text", "vocabulary": 50}, InvalidValue, "form='text' has the characters of ASCII"),
        ("passkey", {"digits": 19, "length": 200}, InvalidValue, "digits=19 is not possible: at most 18"),
        ("listops", {"length": 9}, InvalidValue, "length=9 is not possible: it must be at least 2 above shortest=8"),
        ("listops", {"max_args": 1}, InvalidValue, "max_args=1 is not possible: an operator has at least 2 operands"),
        ("pathfinder", {"length": 8}, InvalidValue, "length=8 is not possible: an image has at least 12 pixels"),
        ("state-tracking", {"group": "s4"}, InvalidValue, "group='s4' is not possible: it must be 'parity' or 's3' or"),
    ],
)
def test_what_is_refused(name, options, kind, says):
    with pytest.raises(kind) as caught:
        made(name, **options)
    assert says in str(caught.value)
    assert isinstance(caught.value, FoveateError)


def test_files_that_are_refused(tmp_path):
    task = made("induction", length=12, test_lengths="none")
    answers = task.package(resolve("gru").build(task.info, {"dim": 8, "depth": 1}))
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "empty.npz", z=np.zeros(3))
    np.savez(tmp_path / "floats.npz", x=np.zeros((2, 3)))
    np.savez(tmp_path / "large.npz", x=np.full((2, 3), 16))
    np.savez(tmp_path / "apart.npz", x=np.zeros((2, 3), int), y=np.zeros((2, 4), int))
    for name, says in {
        "none.npz": "cannot be read as an .npz file of whole numbers",
        "text.npz": "cannot be read as an .npz file of whole numbers",
        "empty.npz": "has no x of whole numbers (samples, length): it holds z",
        "floats.npz": "has no x of whole numbers",
        "large.npz": "x holds a number that is no token: they go from 0 to 15",
        "apart.npz": "y must be whole numbers of the shape of x, (2, 3), not (2, 4)",
    }.items():
        with pytest.raises(InvalidValue) as caught:
            task.predict(answers, tmp_path / name)
        assert says in str(caught.value)
    with pytest.raises(InvalidType, match=r"source=3 is not possible: the path of an \.npz file"):
        task.predict(answers, 3)


def test_what_a_packaged_model_refuses():
    task = made("induction", length=12, test_lengths="none")
    answers = task.package(resolve("gru").build(task.info, {"dim": 8, "depth": 1}))
    inputs = answers.example_inputs(3)
    assert answers(**inputs).shape == (3, 12, 16)
    with pytest.raises(InvalidType, match=r"tokens must be int64, not torch\.float32"):
        answers(torch.zeros(2, 3))
    with pytest.raises(InvalidValue, match=r"tokens have shape \(3,\): \(batch, length\) is needed"):
        answers(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InvalidValue, match="tokens hold 16: numbers from 0 to 15 are tokens"):
        answers(torch.full((1, 2), 16))


def test_a_model_of_the_wrong_shape_is_refused():
    task = made("induction", length=12, test_lengths="none")
    with pytest.raises(InvalidValue, match=r"Identity returned \(2, 12\): logits are a tensor .* = \(2, 12, 16\)"):
        task.loss(nn.Identity(), task.batch("train", torch.arange(2)))


def test_names_of_parts_are_told():
    task = made("induction", length=12, test_lengths="24")
    with pytest.raises(LookupError, match="unknown split 'tests'"):
        task.size("tests")
    with pytest.raises(LookupError, match="unknown split 'test_at_25': did you mean 'test_at_24'"):
        task.batch("test_at_25", torch.arange(1))


@pytest.mark.parametrize("cls", [RecallTask, CopyingTask, InductionTask, PasskeyTask, ListOpsTask])
def test_specs_are_one_kind(cls):
    assert cls.spec.reads == "tokens"
    assert cls.spec.models_of == "language"
    assert cls.spec.higher_is_better
