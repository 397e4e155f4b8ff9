"""The report: one well-formed page without requests, escaped, with its charts in both schemes, true in its words."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from foveate.compare import leaderboard, masks, pictures, report
from foveate.compare.confusion import confusions
from foveate.compare.wording import method, verdict
from tests import fake_leaderboard as fake

EVIL = '</title></script><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}'
VOID = {"meta", "link", "br", "img", "input", "hr"}
#: SVG elements that this page closes by themselves.
SHAPES = {"circle", "line", "path", "rect", "polyline", "polygon"}


def summarise(results: list[dict[str, Any]], settings: Any = fake.SETTINGS, task: Any = None) -> dict[str, Any]:
    stands_in: Any = task or fake.FakeTask()
    return leaderboard.summarise(stands_in, results, settings, fake.MACHINE)


class Page(HTMLParser):
    """Collects tags and texts, and checks that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES, f"<{tag}/> is not closed in HTML"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def classed(self, name: str) -> int:
        return sum(name in (attributes.get("class") or "").split() for _, attributes in self.tags)


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    return fake.make()


@pytest.fixture(scope="module")
def html(board: dict[str, Any]) -> str:
    return report.render(board)


def test_the_page_is_well_formed_and_has_everything(html: str):
    page = Page(html)
    assert page.open == []
    assert page.classed("lines") == 2
    assert page.classed("scatter") == 2
    assert page.classed("gallery") == 7
    assert page.classed("forecast") == 21
    headings = " ".join("".join(page.text).split())
    for told in (
        "Leaderboard",
        "What quality costs",
        "Learning curves",
        "Forecasts against truth",
        "Learning-rate sweep",
        "How the comparison was made",
        "What did not finish",
        "AMD Ryzen 9",
        "17,420",
        "foveate predict foveate-runs/forecast-prices/best NEW_DATA.csv",
        "the loss became infinite at step 212",
    ):
        assert told in headings
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    targets = [a["href"] for a in page.of("a")]
    assert all(target.startswith("#") and target[1:] in identifiers for target in targets if target)


def test_the_page_asks_no_network(html: str):
    assert not re.search(r"https?:|//[a-z]|url\(|@import|srcset|<link|<iframe|<img", html)
    policy = next(a["content"] for a in Page(html).of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_both_schemes_define_every_colour(html: str):
    style = html[html.index("<style>") : html.index("</style>")]
    used = set(re.findall(r"var\((--[\w-]+)\)", style))
    light, dark, chosen = (
        set(re.findall(r"(--[\w-]+):", block))
        for block in (
            style[: style.index("@media (prefers-color-scheme: dark)")],
            style[style.index("@media (prefers-color-scheme: dark)") : style.index(':root[data-theme="dark"]')],
            style[style.index(':root[data-theme="dark"]') :],
        )
    )
    assert used <= light
    assert light == dark == chosen
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{3,8}\b|rgb\(|fill=|stroke=", drawn)  # charts have no colours of their own


def evil_board() -> dict[str, Any]:
    results = copy.deepcopy(fake.make_results(1))
    for result in results:
        if result["system"] == "mamba":
            result["system"] = EVIL
        if result["status"] != "done":
            result["reason"] = EVIL
        for window in result.get("examples", {}).get("windows", []):
            window["series"] = EVIL
            window["future_times"][0] = EVIL
            for target in window["targets"]:
                target["name"] = EVIL
    settings = {**fake.SETTINGS, "out": EVIL, "systems": [EVIL], "options": {EVIL: {EVIL: EVIL}}}
    board = summarise(results, settings, fake.FakeTask(EVIL))
    board["machine"]["cpu"] = EVIL
    board["data"]["notes"] = [EVIL]
    board["data"]["columns"] = [EVIL]
    return board


def test_texts_from_users_are_escaped_everywhere():
    page = Page(report.render(evil_board()))
    assert page.open == []
    assert len(page.of("script")) == 1
    assert page.of("img") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    text = "".join(page.text)
    assert text.count(EVIL) >= 8  # shown as it is, in the table, the facts, the reasons, the commands
    assert "49" not in text.replace("0.49", "").split("</title></script>")[1][:80]


def test_every_chart_is_told_to_screen_readers(html: str):
    charts = re.findall(r'<svg class="chart.*?</svg>', html, re.DOTALL)
    assert len(charts) == 25
    for chart in charts:
        assert re.search(r'role="img".*?><title>[^<]+</title><desc>[^<]+</desc>', chart)
        assert "nan" not in chart.lower().replace("finance", "")
    decorations = re.findall(r"<svg class=\"strip\"[^>]*>", html)
    assert decorations
    assert all('aria-hidden="true"' in strip for strip in decorations)


def test_other_tasks_have_no_forecasts_and_other_costs():
    results = copy.deepcopy(fake.make_results())
    for result in results:
        result["peak_memory_mb"], result["examples"], result["sweep"] = None, {"pictures": [1, 2]}, []
    page = Page(report.render(summarise(results)))
    assert page.classed("forecast") == 0
    assert page.classed("scatter") == 2
    text = "".join(page.text)
    assert "Learning-rate sweep" not in text
    assert "Test mse against parameters" in text


@pytest.mark.parametrize(
    "keep", [["landmark_attention"], ["timesnet"], ["seasonal_naive"], ["seasonal_naive", "dlinear"]]
)
def test_small_and_failed_comparisons(keep: list[str]):
    results = [r for r in fake.make_results(1) if r["system"] in keep]
    page = Page(report.render(summarise(results, {})))
    assert page.open == []


def test_no_record_is_too_large():
    systems = 87
    trials = [result for result in fake.make_results(2) if result["system"] == "mamba"]
    results = []
    for number in range(systems):
        for result in trials:
            scores = {m: v * (1 + 0.01 * number) for m, v in result["test"].items()}
            results.append({**result, "system": f"system_{number}", "test": scores, "val": scores})
    html = report.render(summarise(results))
    assert len(html) < 1_000_000
    assert Page(html).classed("gallery") == pictures.MOST_SHOWN


# ----- the words


def sentences(board: dict[str, Any]) -> str:
    told = verdict(board)
    return " ".join([told.system, told.headline, *told.sentences])


def test_the_verdict_of_a_winner_that_is_tied(board: dict[str, Any]):
    assert sentences(board) == (
        "timesnet was chosen on validation data It is also first on test data (MSE 0.3124); mamba and "
        "softmax_attention are not significantly worse, so the difference may be chance. softmax_attention does as "
        "well within what the test data can tell and answers 8.8 times faster."
    )


def chosen(system: str) -> dict[str, Any]:
    board = fake.make()
    return {**board, "best": {"system": system, "seed": 0, "path": "best"}}


def test_the_verdict_when_validation_and_test_disagree():
    assert "On test data it scores MSE 0.3139; timesnet (0.3124) is ahead, but not significantly" in sentences(
        chosen("mamba")
    )
    told = sentences(chosen("dlinear"))
    assert "MSE 0.3692, significantly worse than timesnet (0.3124): validation and test data disagree" in told
    assert "faster" not in told


def test_the_verdict_when_a_baseline_wins():
    assert "seasonal_naive is a baseline, and nothing beat it" in sentences(chosen("seasonal_naive"))


def test_the_verdict_of_one_seed_and_of_one_system_and_of_none():
    assert "Every system ran with one seed" in sentences(fake.make(seeds=1))

    def only(system: str) -> dict[str, Any]:
        results = [r for r in fake.make_results(1) if r["system"] == system]
        return summarise(results, {})

    assert "the only system that finished Its score on test data is MSE" in sentences(only("mamba"))
    assert "No system finished" in sentences(only("landmark_attention"))


def test_a_clear_winner_is_called_one():
    results = [r for r in fake.make_results() if r["system"] in ("timesnet", "dlinear", "seasonal_naive")]
    board = summarise(results)
    assert "significantly better than every other system" in sentences(board)


def test_the_method_tells_what_was_done(board: dict[str, Any]):
    rules = dict(method(board))
    assert rules["The same budget for all"].startswith("Every trial has at most 600 optimiser steps, 32 samples each")
    assert "0.0003, 0.001 and 0.003 for 10 % of a trial's budget" in rules["The same learning-rate sweep for all"]
    assert "1,200 test samples" in rules["Ties look like ties"]
    assert "(48 share data)" in rules["Ties look like ties"]
    assert rules["Seeds"].startswith("2 per system")
    timed = dict(method({**board, "settings": {"budget": 1800.0}}))
    assert timed["The same budget for all"].startswith("The whole comparison was given 30 min 00 s")
    assert "The same learning-rate sweep for all" not in timed
    words = dict(method({**board, "settings": {"tokens": 2_000_000, "batch_size": 8}}))
    assert words["The same budget for all"] == "Every trial reads at most 2,000,000 tokens, 8 samples per step."


def test_what_is_shipped_and_what_was_tracked_is_said():
    board = summarise(fake.make_results())
    assert not [rule for rule, _ in method(board) if rule == "What is shipped"]
    refit = {"refit": True, "refit_steps": 1234, "refit_reason": "", "scored": "trials/mamba-seed0/scored"}
    board["best"] |= refit
    board["tracking"] = [
        {"tracker": "csv", "where": "here", "status": "complete", "reason": ""},
        {"tracker": "mlflow", "where": "there", "status": "failed", "reason": EVIL},
    ]
    page = Page(report.render(board))
    text = " ".join(page.text)
    assert "for the 1,234 steps after which it had been best" in text
    assert "kept in trials/mamba-seed0/scored" in text
    assert "Tracked with csv in here." in text
    assert f"Tracking with mlflow ended early: {EVIL}" in text
    assert page.open == []
    board["best"] |= {"refit": False, "refit_reason": "diverged: it did."}
    told = dict(method(board))["What is shipped"]
    assert told == (
        "best/ holds the weights that were scored. They were not trained again on all data: diverged: it did."
    )


def test_a_number_shorter_than_others_of_its_column_is_shown(board: dict[str, Any]):
    board = copy.deepcopy(board)
    metric, done = board["metrics"][1], [row for row in board["rows"] if row["status"] == "done"]
    for row, mean in zip(done, (4.919, *[25.593] * len(done)), strict=False):
        row["test"][metric] = {"mean": mean, "std": None}
    assert ">4.919</td>" in report.render(board)


def _with_examples(examples: dict[str, Any]) -> dict[str, Any]:
    results = copy.deepcopy(fake.make_results(1))
    for result in results:
        if result["status"] == "done":
            result["examples"] = copy.deepcopy(examples)
    return summarise(results)


def test_masks_stand_beside_images_and_truth():
    picture = base64.b64encode(b"\x89PNG").decode()
    image = {"name": EVIL, "dice": 0.126, "image": picture, "truth": picture, "answer": picture}
    board = _with_examples({"classes": [EVIL], "colours": ["#e69f00"], "dice": [0.1], "images": [image, image]})
    board["task"] = "segment"
    html = report.render(board)
    page = Page(html)
    shown = masks.table(board)
    assert shown is not None
    assert f"foveate predict {board['settings']['out']}/best NEW_IMAGES --out MASKS" in page.text
    assert shown.systems[0][0] == board["best"]["system"]
    assert any(row["baseline"] for row in board["rows"] if row["system"] in dict(shown.systems))
    assert len(page.of("img")) == 2 * (2 + len(shown.systems))
    assert all(tag["src"] == f"data:image/png;base64,{picture}" and tag["alt"] for tag in page.of("img"))
    assert "0.13" in page.text
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.endswith("; img-src data:")
    assert "<script>alert" not in html


def test_mistakes_are_shares_of_each_true_class():
    board = _with_examples({"classes": [EVIL, "dog"], "confusion": [[3, 1], [0, 0]]})
    (first, drawing), _ = confusions(board)
    assert first == board["best"]["system"]
    assert drawing.count("<rect") == 2  # of a class that the test does not have nothing is known
    assert ">75<" in drawing
    page = Page(report.render(board))
    assert "What is taken for what" in page.text
    many = {"classes": list("abcdefghijklm"), "confusion": [[1] * 13] * 13}
    assert not confusions(_with_examples(many))
