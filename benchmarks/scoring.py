"""What scoring costs: 100,000 made-up answers to each suite, in the authors' layouts, by both sets of rules.

``python benchmarks/scoring.py --markdown benchmarks/scoring.md`` writes annotations and answers of every registered
suite (most of them letters, the rest sentences, essays, lists and null), and scores them in a process of its own:
reading and scoring, then the record (blind baselines, bootstrap over videos, the table of items), each with the peak of
resident memory until then. The promise is less than 5 s and 500 MB for reading and scoring. ``foveate score --help`` is
timed as well: it must answer in 0.4 s.

A suite without a maker of answers here is said to have none. Times on a busy machine mean nothing: it refuses when
others compute, unless ``--busy`` is given; CPU seconds stand beside the wall's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from foveate.registry import find, list_names

ESSAY = "The clip shows a person in a kitchen, who takes something from a drawer and then puts it back again. " * 3


def say(draw: random.Random, letter: str, text: str) -> Any:
    """A reply: of ten, six are letters alone."""
    forms: tuple[Any, ...] = (letter, letter, letter, f"({letter})", f"{letter}.", f"{letter}. {text}")
    forms += (f"The answer is {letter}.", ESSAY + letter, [letter], None)
    return draw.choice(forms)


def number(draw: random.Random) -> Any:
    """A reply to a question for a count."""
    return draw.choice((str(draw.randrange(9)), "three", "I count 2 of them.", ESSAY, None))


def yes_no(draw: random.Random) -> Any:
    """A reply to yes or no."""
    return draw.choice(("Yes", "No", "yes.", "No, not yet.", "Not sure", ESSAY, None))


def dump(file: Path, value: Any) -> Path:
    """Write JSON, or JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value) if file.suffix == ".json" else "".join(json.dumps(line) + "\n" for line in value)
    file.write_text(text, encoding="utf-8")
    return file


def ovo_bench(folder: Path, answers: int, draw: random.Random) -> tuple[Path | None, Path]:
    """Half of them letters, half of them along timelines of ten."""
    entries: list[dict[str, Any]] = []
    told: dict[str, list[Any]] = {"backward": [], "realtime": [], "forward": []}
    for n in range(answers // 2):
        task, right = ("EPM", "ASI", "OCR", "STU")[n % 4], draw.randrange(4)
        options = [f"object {n + place}" for place in range(4)]
        row = {"id": n, "task": task, "video": f"{n // 5}.mp4", "question": f"Which of the objects is {n}?"}
        entries.append({**row, "realtime": n % 300 + 0.5, "answer": options[right], "options": options, "gt": right})
        reply = say(draw, draw.choice("ABCD"), options[0])
        told["backward" if n % 4 < 2 else "realtime"].append(
            {**row, "response": reply, "ground_truth": chr(65 + right)}
        )
    for n in range(answers // 2, answers // 2 + (answers - answers // 2) // 10):
        task = ("REC", "SSR", "CRR")[n % 3]
        row = {"id": n, "task": task, "video": f"{n}.mp4", "question": "What falls?", "activity": "jump"}
        row |= {"all_steps": ["cut"], "start_time": [4], "end_time": [99], "end_times": [2, 5, 9]}
        info = [{"realtime": t, "count": t // 3, "type": int(t > 4), "step": "cut"} for t in range(10)]
        entries.append({**row, "ask_time": 0, "clue_time": 5, "test_info": info})
        reply = number if task == "REC" else yes_no
        told["forward"].append({**row, "test_info": [{**element, "response": reply(draw)} for element in info]})
    return dump(folder / "ovo_bench_new.json", entries), dump(folder / "model" / "model_offline.json", told)


def tomato(folder: Path, answers: int, draw: random.Random) -> tuple[Path | None, Path]:
    """Six options each."""
    tasks = ("count", "direction", "rotation", "shape&trend", "velocity&frequency", "visual_cues")
    lines = []
    for place, task in enumerate(tasks):
        items = {}
        for n in range(place, answers, len(tasks)):
            options = [f"option {n + i}" for i in range(6)]
            scene = ("human", "object", "simulated")[n % 3]
            items[str(n)] = {"question": f"Which is {n}?", "options": options, "answer": n % 6, "key": str(n // 5)}
            items[str(n)] |= {"demonstration_type": scene, "motion_type": "x", "variation": {}}
            lines.append({"id": f"{task}/{n}", "response": say(draw, draw.choice("ABCDEF"), options[0])})
        dump(folder / "data" / f"{task}.json", items)
    return folder / "data", dump(folder / "answers.jsonl", lines)


def temporal_bench(folder: Path, answers: int, draw: random.Random) -> tuple[Path | None, Path]:
    """Two captions each, ten questions to a video."""
    items, lines = [], []
    for n in range(answers):
        video = f"short_video/COIN/{n // 10}.mp4"
        text = f"Which caption describes this video?\nA. A cart rolls left {n}.\nB. A cart rolls right {n}.\n"
        items.append(
            {"idx": f"{video}_{n}", "video_name": video, "dataset": "COIN", "question": text, "GT": "AB"[n % 2]}
        )
        items[-1]["category"] = ("Action Order", "Event Order", "Others")[n % 3]
        lines.append({"idx": f"{video}_{n}", "response": say(draw, draw.choice("AB"), f"A cart rolls left {n}.")})
    annotations = dump(folder / "temporalbench_short_qa.json", items)
    return annotations, dump(folder / "temporalbench_short_qa" / "model-frame8.jsonl", lines)


def tempcompass(folder: Path, answers: int, draw: random.Random) -> tuple[Path | None, Path]:
    """A third each of multiple choice, yes or no, and caption matching."""
    aspects = ("action", "direction", "speed", "order", "attribute_change")
    tasks = ("multi-choice", "yes_no", "caption_matching")
    for place, task in enumerate(tasks):
        asked: dict[str, dict[str, list[Any]]] = {}
        told: dict[str, dict[str, list[Any]]] = {}
        for n in range(place, answers, len(tasks)):
            video, aspect = str(n // 25), aspects[n % 5]
            if task == "yes_no":
                item, reply = {"question": f"Is it {n}?", "answer": ("yes", "no")[n % 2]}, yes_no(draw)
            else:
                names = ("A. ", "B. ", "C. ") if task == "multi-choice" else ("Caption A: ", "Caption B: ")
                options = [f"{name}it is {n + i}" for i, name in enumerate(names)]
                item = {"question": "\n".join([f"What is it, {n}?", *options]), "answer": options[n % len(names)]}
                reply = say(draw, draw.choice("AB"), options[0])
            asked.setdefault(video, {}).setdefault(aspect, []).append(item)
            prediction = reply if isinstance(reply, str) else ""
            told.setdefault(video, {}).setdefault(aspect, []).append({**item, "prediction": prediction})
        dump(folder / "questions" / f"{task}.json", asked)
        dump(folder / "predictions" / f"{task}.json", told)
    return folder / "questions", folder / "predictions"


def mvbench(folder: Path, answers: int, draw: random.Random) -> tuple[Path | None, Path]:
    """The authors' result file, which brings its truth."""
    tasks = ("Action Sequence", "Action Antonym", "Object Existence", "State Change")
    rows = [
        {"pred": say(draw, draw.choice("ABC"), f"thing {n}"), "gt": f"({'ABC'[n % 3]}) thing {n}"}
        for n in range(answers)
    ]
    each = answers // len(tasks)
    counts = {task: [0, each] for task in tasks}
    return None, dump(folder / "result.json", {"acc_dict": counts, "res_list": rows[: each * len(tasks)]})


#: (annotations or None, predictions) of a suite, written into a folder.
MAKERS: dict[str, Callable[[Path, int, random.Random], tuple[Path | None, Path]]] = {
    "mvbench": mvbench,
    "ovo_bench": ovo_bench,
    "tempcompass": tempcompass,
    "temporal_bench": temporal_bench,
    "tomato": tomato,
}


def child(slug: str, annotations: Path | None, predictions: Path) -> None:
    """Score in this process and print what it took."""
    from foveate.scorers.collecting import uncollected
    from foveate.scorers.items import write_items
    from foveate.scorers.record import record
    from foveate.scorers.score import score

    started, cpu = time.perf_counter(), time.process_time()
    with uncollected():  # as the command line does
        suite = find(slug, "scorer").load()(annotations)
    scores = score(suite, predictions)
    scored = time.perf_counter() - started, time.process_time() - cpu, peak()
    json.dumps(record(scores))
    write_items(scores, Path(os.devnull))
    whole = time.perf_counter() - started, time.process_time() - cpu, peak()
    unread = {name: found.unreadable for name, found in scores.by_rules.items()}
    print(json.dumps({"answers": len(scores.answers), "unread": unread, "scored": scored, "whole": whole}))


def peak() -> float:
    """The largest resident memory of this process until now, in MB.

    What the system counts since this program began: ``ru_maxrss`` keeps the size of the process that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6  # type: ignore[index]


def measured(slug: str, answers: int) -> dict[str, Any]:
    """A suite's answers made, and scored in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        annotations, predictions = MAKERS[slug](Path(place), answers, random.Random(0))
        arguments = [sys.executable, __file__, "--child", slug, str(annotations or ""), str(predictions)]
        return json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE).stdout)


def help_seconds(times: int = 7) -> float:
    """The median time of ``foveate score --help``, from starting Python."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "foveate", "score", "--help"], check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - started)
    return sorted(found)[times // 2]


def main() -> None:
    """Measure and print; see the module's own words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", help="default: all that are registered")
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--busy", action="store_true", help="measure although others compute")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        slug, annotations, predictions = given.child
        return child(slug, Path(annotations) if annotations else None, Path(predictions))
    load = psutil.cpu_percent(interval=2)
    # Not above: it loads torch, whose memory is none of scoring's.
    from foveate.measure.machine import cpu_name, usable_cores

    if load > 15 and not given.busy:
        sys.exit(
            f"the machine is busy ({load:.0f} % of its cores): timings would mean nothing; --busy measures anyway."
        )
    suites = given.suites or list_names(kind="scorer")
    lines = [
        "| suite | answers | unread by official, strict rules | read and scored: s | CPU s | MB | with baselines, "
        "intervals, items: s | CPU s | MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for slug in suites:
        if slug not in MAKERS:
            lines.append(f"| {slug} | no maker of answers in benchmarks/scoring.py | | | | | | | |")
            continue
        found = measured(slug, given.answers)
        unread = ", ".join(f"{count:,}" for count in found["unread"].values())
        cells = [f"{x:.2f} | {cpu:.2f} | {size:.0f}" for x, cpu, size in (found["scored"], found["whole"])]
        lines.append(f"| {slug} | {found['answers']:,} | {unread} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    help_line = f"`foveate score --help`: {help_seconds():.2f} s from starting Python (median of 7)."
    text = "\n".join(lines) + f"\n\n{help_line}\n"
    print(text)
    if given.markdown is not None:
        command = " ".join(["python", "benchmarks/scoring.py", *sys.argv[1:]])
        facts = f"{cpu_name()}, {usable_cores()} cores; {load:.0f} % of them were busy with other work before."
        head = f"# What scoring costs\n\nMade by `{command}` on {datetime.now(UTC):%Y-%m-%d}.\n\n- {facts}\n"
        given.markdown.write_text(f"{head}\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
