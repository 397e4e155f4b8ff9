"""Claims of OVO-Bench (arXiv 2501.05510), most of them on its own files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..scorers.base import Answer, Question, Row
from ..scorers.baselines import blind
from ..scorers.ovo_bench import OVOBench
from ..scorers.ovo_bench_published import PUBLISHED
from ..scorers.ovo_bench_streaming import Stream, StreamingAdapter, listen
from ..scorers.score import score
from . import Measurement, claim
from ._data import data_file, not_measured

_FILE = "ovo_bench/ovo_bench_new.json"
#: Folders of result files that lie beside the annotations, by the system's name in the table.
_FOLDERS = {
    "Gemini 1.5 Pro": "Gemini",
    "InternVL2-8B": "InternVL2",
    "Qwen2-VL-7B": "QWen2VL_7B_",
    "Qwen2-VL-72B": "QWen2VL_72B_",
    "LLaVA-Video-7B": "LLaVA_Video",
    "LLaVA-OneVision-7B": "LLaVA_OneVision",
    "LongVU-7B": "LongVU",
    "Flash-VStream-7B": "FlashVStream",
}


@claim(
    "ovo_bench",
    kind="exact",
    says="It has 12 tasks on 644 videos; its 1,640 annotations unfold into 3,035 queries.",
)
def annotations_unfold() -> Measurement:
    """Seen failing with one question for each annotation (1,640 queries)."""
    file = data_file(_FILE)
    if file is None:
        return not_measured(3035, _FILE, "OVO-Bench's annotations")
    questions = OVOBench(file).questions.values()
    entries = {question.extra["entry"] for question in questions}
    found = (len(questions), len(entries), len({q.video for q in questions}), len({q.task for q in questions}))
    detail = f"queries; annotations {found[1]}, videos {found[2]}, tasks {found[3]}"
    return Measurement(found[0], 3035, found == (3035, 1640, 644, 12), detail)


class _Seconds(StreamingAdapter):
    """Answers with the latest frame that it was given; its frames are the seconds at which they end."""

    def answer(self, frames: Sequence[Any], prompt: str) -> str:
        return str(max(frames, default=0.0))


@claim(
    "ovo_bench",
    kind="exact",
    says="Models are queried along the timeline: none is given a frame later than the second in which it is asked.",
)
def nothing_is_seen_before_its_time() -> Measurement:
    """Queries alone and in streams. Seen failing with moments rounded down, and with a stream decoded to its end."""
    file = data_file(_FILE)
    if file is None:
        return not_measured(0, _FILE, "OVO-Bench's annotations")
    suite, model, latest, late = OVOBench(file), _Seconds(), [0.0], 0

    def decode(video: str, start: float, end: float) -> list[float]:
        latest[0] = end
        return [end]

    for question in suite.questions.values():
        said = model.ask(suite, question, decode)
        moment = math.ceil(question.extra["realtime"])
        late += latest[0] != moment or float(said) != moment
    asked = 0
    for video in {question.video for question in suite.questions.values()}:
        for reply in listen(model, Stream(suite, video, decode)):
            asked += 1
            late += float(reply.text) != math.ceil(suite.questions[reply.id].extra["realtime"])
    detail = (
        f"queries of {len(suite.questions)} alone and {asked} in streams that saw more or less than up to their second"
    )
    return Measurement(late, 0, late == 0 and asked == len(suite.questions), detail)


@claim(
    "ovo_bench",
    kind="exact",
    says="The released answers of its systems score to the published table digit for digit.",
)
def published_table() -> Measurement:
    """Whatever result folders lie beside the annotations. Seen failing with letters read as whole words (7 of 64)."""
    file = data_file(_FILE)
    if file is None:
        return not_measured(0, _FILE, "OVO-Bench's annotations and result files")
    wrong, figures, systems = 0, 0, 0
    for system, folder in _FOLDERS.items():
        path = file.parent / "results" / folder
        if not path.is_dir():
            continue
        systems += 1
        found = score(OVOBench(), path, rules=("official",)).by_rules["official"].figures
        ours = {name: figure.text for (section, name), figure in found.items() if section != "timeliness"}
        figures += len(PUBLISHED[system])
        wrong += sum(ours.get(name) != f"{value:.2f}" for name, value in PUBLISHED[system].items())
    detail = f"of {figures} printed figures of {systems} systems that differ"
    return Measurement(wrong, 0, wrong == 0 and systems > 0, detail)


@claim(
    "ovo_bench",
    kind="exact",
    says="The released rule of multiple choice can be gamed: all letters at once score 100, and 0 by a strict rule.",
)
def letter_soup() -> Measurement:
    """Seen failing with a strict rule that takes the first letter (20.00)."""
    suite, found = OVOBench(), {}
    options = {letter: f"what {letter} is" for letter in "ABCDE"}
    groups = {"scenario": "backward", "task": "EPM"}
    for rules in ("official", "strict"):
        rows = []
        for letter in options:
            question = Question(f"EPM/{letter}", "EPM", "v", "?", letter, "choice", options, letter, groups)
            rows.append(Row(Answer(question, "ABCDE"), suite.judge(question, "ABCDE", rules)))
        found[rules] = next(f.value for f in suite.figures(rows) if f.key == ("task", "EPM"))
    passed = found == {"official": 100.0, "strict": 0.0}
    return Measurement(
        found["strict"] or 0.0, 0.0, passed, f"per cent by the strict rule, {found['official']} officially"
    )


@claim(
    "ovo_bench",
    kind="exact",
    says="Always yes gives 67.25 in SSR and 60.00 in CRR, Flash-VStream-7B's scores; always unable gives 100 in HLD.",
)
def constant_answers() -> Measurement:
    """Five of eight published systems do not beat it. Seen failing with yes counted in type 0 (32.75 and 40.00)."""
    file = data_file(_FILE)
    if file is None:
        return not_measured(67.25, _FILE, "OVO-Bench's annotations")
    suite = OVOBench(file)
    found = blind(suite, suite.questions.values())
    yes, unable = found["always yes"], found["unable"]
    ssr, crr, hld = (f["task", name].text for f, name in ((yes, "SSR"), (yes, "CRR"), (unable, "HLD")))
    flash = PUBLISHED["Flash-VStream-7B"]
    passed = (ssr, crr, hld) == ("67.25", "60.00", "100.00") and (flash["SSR"], flash["CRR"]) == (
        float(ssr),
        float(crr),
    )
    return Measurement(float(ssr), 67.25, passed, f"per cent of SSR; CRR {crr}, HLD {hld}")


@claim(
    "ovo_bench",
    kind="needs-pretrained",
    says="Nine current models fall far behind people, who reach 92.81 in total where Gemini 1.5 Pro reaches 63.00.",
)
def people_are_far_ahead() -> Measurement:
    """Not run here: it takes the videos, the models, and people."""
    return Measurement(
        math.nan, 92.81, False, "not measured: it would take the 644 videos, people who answer, and pretrained models"
    )
