"""The published suites are shown as their authors show them, asked, and their answers scored."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from foveate.asking.client import Client
from foveate.asking.endpoint import Endpoint
from foveate.asking.run import ask
from foveate.asking.sampling import Sampling
from foveate.errors import UnknownName
from foveate.registry import find
from foveate.scorers.base import Shown
from foveate.scorers.score import score
from tests.toy_clips import Stub, pictures, write_clip

pytest.importorskip("av")
ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FOVEATE_DATA", ROOT.parent / "shared" / "data"))
SHOWN = {
    "mvbench": Shown(16, rule="centres"),
    "ovo_bench": Shown(64, stream=True),
    "tempcompass": Shown(None, 1.0),
    "temporal_bench": Shown(16),
    "tomato": Shown(16),
}
ANNOTATIONS = {"ovo_bench": "ovo_bench_new.json", "tempcompass": "", "tomato": "data"}


def suite_class(slug: str) -> Any:
    try:
        return find(slug, "scorer").load()
    except UnknownName:
        pytest.skip(f"{slug} is not registered")


@pytest.mark.parametrize("slug", list(SHOWN))
def test_each_suite_has_its_authors_way(slug: str):
    assert suite_class(slug).shown == SHOWN[slug]


@pytest.mark.parametrize("slug", list(ANNOTATIONS))
def test_a_few_questions_of_each_task_are_asked_and_scored(slug: str, tmp_path: Path):
    annotations = DATA / slug / ANNOTATIONS[slug]
    if not annotations.exists():
        pytest.skip(f"the annotations are absent: $FOVEATE_DATA/{slug}")
    suite = suite_class(slug)(annotations)
    by_task: dict[str, list[str]] = {}
    for question in suite.questions.values():
        by_task.setdefault(question.task, []).append(question.id)
    chosen = {id for ids in by_task.values() for id in ids[:2]}
    suite.questions = {id: q for id, q in suite.questions.items() if id in chosen}
    write_clip(tmp_path / "clip.mp4", 24)
    for question in suite.questions.values():
        file = tmp_path / question.video
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "clip.mp4", file)
    out = tmp_path / "answers.jsonl"
    with Stub() as stub:
        summary = ask(suite, Endpoint(Client(stub.url, "m")), out, videos=tmp_path)
        assert summary.failures == {}
        own = Sampling.of(suite.shown)
        assert {len(pictures(body)) for body in stub.bodies} == {3 if own.frames is None else own.frames}
        blind = ask(suite, Endpoint(Client(stub.url, "m")), tmp_path / "blind.jsonl", videos=None)
        assert blind.failures == {}
    assert len(stub.bodies) == 2 * len(chosen)
    found = score(suite, out)
    assert len(found.answers) == len(chosen)
    assert chosen.isdisjoint(found.missing)
