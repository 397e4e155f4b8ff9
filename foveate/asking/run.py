"""Asking a suite's questions: what is left of them goes to the model, and what comes back is on the disk at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from ..errors import InvalidValue, invalid
from ..pyav import need_pyav
from ..scorers.base import Suite
from .answers import Answers
from .asked import Giver, Model, Outcome, find_video
from .frames import PURPOSE
from .sampling import Sampling

#: Failures in a row that are not about the question end a run: the others would fare the same.
MOST_IN_VAIN = 8
#: Seconds in which answers that are on their way may still come when a run is interrupted or given up.
GRACE = 3.0


@dataclass(slots=True)
class Summary:
    """How a run ended.

    Attributes:
        file: of the answers.
        total: questions.
        before: that were answered in earlier runs.
        answered: in this run.
        failures: reasons by id.
        repeated: answers for which frames were shown more than once, because a clip has fewer than was asked for.
    """

    file: Path
    total: int
    before: int = 0
    answered: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    repeated: int = 0

    @property
    def left(self) -> int:
        """Questions that are not answered."""
        return self.total - self.before - self.answered


def ask(
    suite: Suite,
    model: Model,
    out: str | Path,
    *,
    videos: str | Path | None,
    sampling: Sampling | None = None,
    side: int | None = 720,
    limit: int | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[Summary, Outcome | None], None] = lambda summary, outcome: None,
) -> Summary:
    """Ask a model what it has not answered yet.

    Args:
        suite: with its annotations.
        model: a :class:`~foveate.asking.local.Local` or an :class:`~foveate.asking.endpoint.Endpoint`.
        out: file of the answers; begun by the same settings, it is continued.
        videos: folder of the suite's videos; None: questions are asked without.
        sampling: which frames are shown; None: the suite's own.
        side: longest side of a frame in pixels; None: as it is.
        limit: only so many of the suite's first questions.
        settings: what else makes answers different; they stand beside the file.
        progress: called at the beginning and with every outcome.

    Raises:
        InvalidValue: nothing to ask, no such folder, a file that cannot be continued, or the model fails at everything.
    """
    if limit is not None and limit < 1:
        raise invalid("limit", limit, "at least 1")
    if side is not None and side < 16:
        raise invalid("side", side, "at least 16 pixels")
    questions = list(suite.questions.values())[:limit]
    if not questions:
        raise InvalidValue(f"{suite.slug} has no question to ask: give its annotations.")
    sampling = sampling or Sampling.of(suite.shown)
    folder = None if videos is None else Path(videos)
    check_videos(suite, folder, sampling)
    told = {"suite": suite.slug, "model": model.name, **_shown(folder, sampling, side, model), **(settings or {})}
    with Answers.hold(Path(out), told) as answers:
        left = [q for q in questions if q.id not in answers.answered]
        summary = Summary(answers.file, len(questions), len(questions) - len(left), failures=answers.failures)
        progress(summary, None)
        give = Giver(suite, folder, sampling, side, model.convert)
        try:
            _collect(model.outcomes(left, give), answers, summary, progress)
        except (KeyboardInterrupt, InvalidValue):  # what is on its way is not asked for again
            for outcome in model.leave(GRACE):
                if outcome.response is not None:
                    _keep(outcome, answers, summary, progress)
            raise
        if not summary.failures:
            answers.failed_file.unlink(missing_ok=True)
    return summary


def _collect(
    outcomes: Any, answers: Answers, summary: Summary, progress: Callable[[Summary, Outcome | None], None]
) -> None:
    in_vain = 0
    for outcome in outcomes:
        with _whole():
            _keep(outcome, answers, summary, progress)
        in_vain = in_vain + 1 if outcome.about_all else 0
        if in_vain >= MOST_IN_VAIN:
            raise InvalidValue(
                f"stopped after {in_vain} questions in a row that failed alike: {outcome.reason} "
                f"{summary.before + summary.answered} of {summary.total} are answered; the same command goes on."
            )


@contextmanager
def _whole() -> Iterator[None]:
    """Let an interruption wait until what is inside is done: an answer that came is not to be asked for again."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield
        return
    came = []
    signal.signal(signal.SIGINT, lambda *given: came.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def _keep(
    outcome: Outcome, answers: Answers, summary: Summary, progress: Callable[[Summary, Outcome | None], None]
) -> None:
    answers.add(outcome)
    if outcome.response is not None:
        summary.answered += 1
        summary.repeated += bool(outcome.asked and outcome.asked.repeated)
    progress(summary, outcome)


def _shown(folder: Path | None, sampling: Sampling, side: int | None, model: Model) -> dict[str, Any]:
    """What makes two runs show the same, as it stands in the settings."""
    if folder is None:
        return {"videos": None}
    return {
        "videos": str(folder.resolve()),
        "sampling": sampling.way,
        "frames": sampling.frames,
        "fps": sampling.fps,
        "rule": sampling.rule,
        "single": sampling.which if sampling.way == "single" else None,
        "side": side,
        "shown_as": model.shows,
    }


def check_videos(suite: Suite, folder: Path | None, sampling: Sampling) -> None:
    """See at once whether a suite can be asked with a folder of videos.

    Raises:
        InvalidValue: there is none of its videos, or it has no time stamps to stream to.
        MissingExtra: PyAV is absent.
    """
    if folder is None:
        return
    need_pyav(PURPOSE)
    questions = suite.questions.values()
    if sampling.way == "stream" and all(q.clip.end is None for q in questions):
        raise InvalidValue(f"the questions of {suite.slug} have no time stamps to stream to: use another sampling.")
    if not folder.is_dir():
        raise InvalidValue(f"--videos {folder} is not possible: there is no such folder.")
    names = list(dict.fromkeys(q.video for q in questions))
    for name in names:
        try:
            find_video(folder, name)
        except InvalidValue:
            continue
        return
    raise InvalidValue(f"--videos {folder} has none of the videos of {suite.slug}: {names[0]}, for one, is not in it.")
