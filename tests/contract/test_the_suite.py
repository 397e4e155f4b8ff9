"""The suite catches faults: every broken mixer fails exactly the checks of the promise it breaks."""

from __future__ import annotations

import pytest
import torch

from foveate.mixers import Mixer, MixerSpec
from foveate.models import LanguageModel, MixerNet
from foveate.registry import entries

from . import broken_answers, broken_models, broken_streams, broken_words
from .cases import MixerCase, variants
from .checking import Broken, close, refused
from .checks import CHECKS, checks_for, run_check
from .honest import QUADRATIC, Honest, Landmarks, Plain
from .known_failures import KNOWN_FAILURES
from .model_cases import ModelCase
from .verdicts import judge


def broken_mixers() -> list[type[Mixer]]:
    """Every class with ``breaks``, in the order of the files."""
    found = [c for module in (broken_answers, broken_streams, broken_words) for c in vars(module).values()]
    return [c for c in found if isinstance(c, type) and "breaks" in vars(c)]


def failing(cls: type[Mixer], *, tools: bool) -> dict[str, str]:
    """Names and messages of the checks that ``cls`` fails; ``tools``: compiler and exporter too."""
    case = MixerCase(cls.__name__, cls)
    chosen = [c for c in checks_for("mixer", cls.spec) if tools or not c.slow_start]
    results = [run_check(c, case) for c in chosen]
    return {r.check: f"{r.status}: {r.message}" for r in results if r.status != "passed"}


@pytest.mark.parametrize("cls", [Honest, Plain, Landmarks], ids=lambda cls: cls.__name__)
def test_an_honest_mixer_passes(cls: type[Mixer]) -> None:
    assert failing(cls, tools=cls is Honest) == {}


def test_a_selection_may_look_ahead_if_the_spec_says_so() -> None:
    promises = MixerSpec(causal="values", masks=False, order=QUADRATIC)
    assert failing(type("Selects", (broken_answers.LooksAhead,), {"spec": promises}), tools=False) == {}


@pytest.mark.parametrize("cls", broken_mixers(), ids=lambda cls: cls.__name__)
def test_a_broken_mixer_fails_its_checks_alone(cls: type[Mixer]) -> None:
    found = failing(cls, tools=bool({"exports", "exports_to_onnx"} & cls.breaks))  # type: ignore[attr-defined]
    assert set(found) == cls.breaks, found  # type: ignore[attr-defined]


MODELS = [c for c in vars(broken_models).values() if isinstance(c, type) and hasattr(c, "breaks")]


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_a_broken_model_fails_its_checks_alone(cls: type[broken_models.HonestModel]) -> None:
    case = ModelCase(cls.__name__, cls, cls.spec, "forecast")
    tools = "exports" in cls.breaks or not cls.breaks
    results = [run_check(c, case) for c in checks_for("model", cls.spec) if tools or not c.slow_start]
    found = {r.check: f"{r.status}: {r.message}" for r in results if r.status != "passed"}
    assert set(found) == cls.breaks, found


def test_every_check_of_a_promise_is_known_to_fail() -> None:
    """Which checks no broken mixer exercises: the list may only shrink."""
    broken = set().union(*(cls.breaks for cls in broken_mixers()))  # type: ignore[attr-defined]
    never = {name for kind, name in CHECKS if kind == "mixer"} - broken
    assert never <= UNPROVEN, never - UNPROVEN


#: Checks whose failure is shown by no broken mixer: they compare in one line what the contract says in one line.
UNPROVEN = {
    "does_not_change_its_input",
    "non_contiguous_input_is_fine",
    "reads_positions",
    "its_plan_holds_its_grid",
    "segments_and_masks_combine",
    "the_past_matters",
    "refuses_not_causal",
    "streaming_equals_itself",
    "copies_and_moves",
    "refuses_illegal_sizes",
    "is_built_by_name",
}


def test_declared_failures_exist_and_have_reasons() -> None:
    around = (MixerNet.__name__, LanguageModel.__name__)
    names = {(e.kind, e.name) for e in entries()}
    names |= {("model", f"{network}:{e.name}") for network in around for e in entries("mixer")}
    names |= {("mixer", case.name) for e in entries("mixer") for case in variants(MixerCase(e.name, e.load()))}
    for (kind, name, check), reason in KNOWN_FAILURES.items():
        assert (kind, name) in names, f"known_failures.py: no {kind} is called {name}"
        assert (kind, check) in CHECKS, f"known_failures.py: no check of {kind}s is called {check}"
        assert len(reason.split()) >= 5, f"known_failures.py: {name}, {check}: say why, and what would end it"


def test_a_declared_failure_must_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    check = CHECKS["mixer", "parameters_are_those_counted"]
    honest, wrong = MixerCase("Honest", Honest), MixerCase("Wrong", broken_words.WrongParameters)
    judge(check, honest)
    with pytest.raises(AssertionError, match="Wrong failed parameters_are_those_counted: dim 16"):
        judge(check, wrong)
    for case in (honest, wrong):
        monkeypatch.setitem(KNOWN_FAILURES, ("mixer", case.name, check.name), "not counted yet")
    with pytest.raises(pytest.xfail.Exception, match="not counted yet"):
        judge(check, wrong)
    with pytest.raises(pytest.fail.Exception, match="strike it from known_failures"):
        judge(check, honest)


def test_fresh_memory_is_nan() -> None:
    assert torch.empty(1000).isnan().all()


def test_close_sees_what_it_must() -> None:
    one = torch.ones(3)
    for wrong in (one * (1 + 1e-4), torch.tensor([1.0, 1.0, torch.nan]), torch.ones(2)):
        with pytest.raises(Broken):
            close(wrong, one, "y")
    with pytest.raises(Broken):
        close(torch.full((3,), torch.inf), torch.full((3,), torch.inf), "y")
    close(one * (1 + 1e-6), one, "y")


def test_refused_wants_the_right_error_with_the_right_words() -> None:
    from foveate.errors import InvalidType, InvalidValue

    with pytest.raises(Broken, match="nothing was raised"), refused(InvalidValue, "dim", "dim=0"):
        pass
    with pytest.raises(Broken, match="it raised InvalidType"), refused(InvalidValue, "dim", "dim=0"):
        raise InvalidType("dim is wrong")
    with pytest.raises(Broken, match="does not name dim"), refused(InvalidValue, "dim", "dim=0"):
        raise InvalidValue("the dimension is wrong")
    with refused(InvalidValue, "dim", "dim=0"):
        raise InvalidValue("dim=0 is not possible.")
