"""What a leaderboard says, in plain sentences: the verdict, and how the comparison was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..pages import figures

#: A tied system that is this many times faster is worth a sentence.
MUCH_FASTER = 1.5


@dataclass(frozen=True, slots=True)
class Verdict:
    """The headline and the sentences below it."""

    headline: str
    system: str
    sentences: list[str]


def verdict(leaderboard: Mapping[str, Any]) -> Verdict:
    """Who won on validation data, how it did on test data, and what cannot be told apart."""
    rows, primary, split = leaderboard["rows"], leaderboard["primary"], leaderboard["ranked_on"]
    if leaderboard["best"] is None:
        return Verdict("No system finished", "", ["Every trial failed or was skipped; the reasons stand below."])
    winner = next(row for row in rows if row["system"] == leaderboard["best"]["system"])
    name, leader = winner["system"], rows[0]
    done = [row for row in rows if row["status"] == "done"]
    headline = "was chosen on validation data"
    if winner["baseline"]:
        headline = "is a baseline, and nothing beat it on validation data"
    elif len(done) == 1:
        headline = "is the only system that finished"
    if split == "test":
        sentences = _test_sentences(winner, leader, done, primary)
    else:
        score = figures.significant(winner[split][primary]["mean"])
        sentences = [f"Its validation {figures.metric_name(primary)} is {score}; test data could not be scored."]
    faster = _cheaper(winner, done)
    if faster is not None:
        ratio = winner["latency_ms"]["median"] / faster["latency_ms"]["median"]
        does = "does as well within what the test data can tell" if faster["tied"] and winner["tied"] else "is close"
        times = figures.fixed(ratio, 1 if ratio < 10 else 0)
        sentences.append(f"{faster['system']} {does} and answers {times} times faster.")
    if (leaderboard["comparison"].get("seeds") or 1) < 2 and len(done) > 1:
        sentences.append("Every system ran with one seed: how much its score varies with the seed is not known.")
    return Verdict(headline, name, sentences)


def _test_sentences(
    winner: Mapping[str, Any], leader: Mapping[str, Any], done: Sequence[Mapping[str, Any]], primary: str
) -> list[str]:
    score = f"{figures.metric_name(primary)} {figures.significant(winner['test'][primary]['mean'])}"
    if len(done) == 1:
        return [f"Its score on test data is {score}."]
    tied = [row["system"] for row in done if row["tied"] and row is not winner]
    if winner is leader:
        first = f"It is also first on test data ({score})"
        if not tied:
            return [f"{first}, significantly better than every other system."]
        others = figures.english_list(tied, most=4)
        return [f"{first}; {others} {_are(tied)} not significantly worse, so the difference may be chance."]
    best = f"{leader['system']} ({figures.significant(leader['test'][primary]['mean'])})"
    if winner["tied"]:
        more = [name for name in tied if name != leader["system"]]
        sentences = [f"On test data it scores {score}; {best} is ahead, but not significantly: call it a tie."]
        if more:
            sentences.append(f"{figures.english_list(more, most=4)} {_are(more)} in that tie as well.")
        return sentences
    return [
        f"On test data it scores {score}, significantly worse than {best}: validation and test data disagree here, and "
        f"the choice, which may not see test data, stands."
    ]


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _cheaper(winner: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The fastest system that is tied with the best as the winner is, if it is much faster."""
    if not winner["latency_ms"] or not winner["tied"]:
        return None
    tied = [row for row in done if row["tied"] and row["latency_ms"] and row is not winner]
    fastest = min(tied, key=lambda row: row["latency_ms"]["median"], default=None)
    if fastest is None or winner["latency_ms"]["median"] < MUCH_FASTER * fastest["latency_ms"]["median"]:
        return None
    return fastest


def method(leaderboard: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the comparison was made: (rule, explanation)."""
    settings, facts = leaderboard["settings"], leaderboard["comparison"]
    primary = leaderboard["validation"]["primary"]
    tested = "Test data was scored once per trial, after all choices, and stands in columns of its own."
    if leaderboard["ranked_on"] != "test":
        tested = "Test data could not be scored, so the ranks are those of the validation scores too."
    rules = [
        (
            "Choices see validation data only",
            f"Early stopping, learning rates and the winner are chosen by validation scores. {tested}",
        ),
    ]
    rows = leaderboard["rows"]
    others = " others" if any(row.get("recipe") for row in rows) else ""
    usual = not others or any(not (row.get("recipe") or row["baseline"]) for row in rows)
    if usual:
        rules.append((f"The same budget for all{others}", _budget(settings)))
    if otherwise := trained_otherwise(rows):
        rules.append(("Who was treated differently", " ".join(otherwise)))
    rates = settings.get("learning_rates") or []
    if usual and len(rates) > 1:
        share = settings.get("sweep_share")
        tried = f" for {100 * share:g} % of a trial's budget" if figures.finite(share) else ""
        rules.append(
            (
                f"The same learning-rate sweep for all{others}",
                f"Every{' such' if others else ''} system that trains tried "
                f"{figures.english_list([figures.rate(r) for r in rates])}{tried}, and "
                f"kept the rate with the best validation {primary}.",
            )
        )
    seeds = facts.get("seeds") or 0
    rules.append(
        (
            "Seeds",
            f"{seeds} per system, a system without training once; ± is the standard deviation over seeds."
            if seeds > 1
            else "One per system: spreads over seeds are not known.",
        )
    )
    if "test" in facts:
        rules.append(("Ties look like ties", _significance(facts)))
    if "refit" in (leaderboard["best"] or {}):
        rules.append(("What is shipped", _shipped(leaderboard["best"])))
    rules += [
        (
            "Pareto front",
            "A system is marked if no other is at least as good in test score, latency and peak memory together and "
            "better in one; costs within 5 % count as equal. The charts show the front of their own two axes.",
        ),
        (
            "Costs",
            "Latency: after all training, the systems in turns, one sample on one thread; median, and the range from "
            "the 10th to the 90th percentile. Memory: the largest resident size in training, above the idle process. "
            "FLOPs: matmuls, convolutions and attention of one forward pass, 2 per multiply-add.",
        ),
        (
            "Nothing is left out",
            "A trial that diverged, ran out of memory or crashed is recorded with its reason, and the others went on.",
        ),
    ]
    return rules


def trained_otherwise(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about rows that were not trained by the usual rules, and about those whose answers need company."""
    done = [row for row in rows if row["status"] == "done"]
    published = [row["system"] for row in done if row.get("recipe")]
    usual = [row["system"] for row in done if not row.get("recipe") and not row["baseline"]]
    said = []
    if published:
        dataset = next(row["recipe"]["dataset"] for row in done if row.get("recipe"))
        rest = f"; by the usual rules: {figures.english_list(usual)}" if usual else ""
        said.append(f"Trained by the published recipe for {dataset}: {figures.english_list(published)}{rest}.")
    for row in done:
        if dependence := row.get("batch_dependence"):
            said.append(
                f"{row['system']}'s answer for a sample depends on the others of its batch: it was scored in batches "
                f"of {dependence['scored']}, predict asks it for one sample at a time."
            )
    return said


def _shipped(best: Mapping[str, Any]) -> str:
    if not best["refit"]:
        return (
            f"{best['path']}/ holds the weights that were scored. They were not trained again on all data: "
            f"{best['refit_reason']}"
        )
    return (
        f"{best['path']}/ holds the winner trained anew on training, validation and test data together, with its seed "
        f"and learning rate, for the {best['refit_steps']:,} steps after which it had been best. These weights have no "
        f"score: every score here belongs to weights that saw training data alone, which are kept in {best['scored']}."
    )


def tracked(leaderboard: Mapping[str, Any]) -> list[str]:
    """A sentence for each tracker that was told about the comparison."""
    return [
        f"Tracked with {t['tracker']} in {t['where']}."
        if t["status"] == "complete"
        else f"Tracking with {t['tracker']} ended early: {t['reason']}"
        for t in leaderboard.get("tracking") or ()
    ]


def _budget(settings: Mapping[str, Any]) -> str:
    batch = f", {settings['batch_size']} samples each" if settings.get("batch_size") else ""
    if settings.get("tokens"):
        return f"Every trial reads at most {settings['tokens']:,} tokens{batch.replace('each', 'per step')}."
    if settings.get("budget"):
        return (
            f"The whole comparison was given {figures.duration(settings['budget'])}; every trial trains for the same "
            f"time, its sweep included."
        )
    if settings.get("steps"):
        return (
            f"Every trial has at most {settings['steps']:,} optimiser steps{batch}; early stopping may end it sooner."
        )
    return "Every trial has the same budget."


def _significance(facts: Mapping[str, Any]) -> str:
    overlap = facts["overlap"]
    overlapping = (
        f" Neighbouring samples overlap ({overlap} share data), which the test accounts for by the long-run variance."
        if overlap > 1
        else ""
    )
    seeds = " The variance over seeds counts as well." if facts["seeds"] > 1 else ""
    degrees = "degree" if facts["degrees_of_freedom"] == 1 else "degrees"
    power = ""
    if facts["degrees_of_freedom"] < 5:
        power = " There is little independent test data here, so only large differences can be significant."
    return (
        f"Every pair of systems is compared on the same {facts['samples']:,} test samples by a paired test "
        f"(Diebold-Mariano, {facts['degrees_of_freedom']} {degrees} of freedom, Holm-corrected over all pairs, "
        f"{100 * facts['level']:g} % level).{overlapping}{seeds} Systems are ranked by how many others are "
        f"significantly better than they are; equals share a rank.{power}"
    )
