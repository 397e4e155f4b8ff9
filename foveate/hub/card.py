"""Model cards: ``README.md`` of a saved model, made from its ``config.json`` alone: the same folder has the same card.

What is not on record has no section. Names from users' files are put in code spans, without control characters.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..registry import Entry, System, entries, find, get_system, list_names, sizes
from .files import sealed

Config = Mapping[str, Any]
#: The hub's own names of what models are for; a task that is not here has none.
PIPELINES = {
    "forecast": "time-series-forecasting",
    "forecast-m4": "time-series-forecasting",
    "language": "text-generation",
    "classify-images": "image-classification",
    "classify-video": "video-classification",
}
#: What a model that reads this is called with.
READS = {
    "series": "a float tensor `(batch, time, channels)`",
    "image": "a float tensor `(batch, channels, height, width)`",
    "video": "a float tensor `(batch, channels, time, height, width)`",
    "tokens": "int64 tokens `(batch, length)`",
}
_FOLDER = "path/to/this/folder"
#: Names and rows that a card shows of a longer list.
_MOST = 12


def render(config: Config, *, repo: str | None = None, licence: str | None = None) -> str:
    """The model card of a saved model.

    Args:
        config: the content of its ``config.json``.
        repo: ``user/name`` on the hub; None: the card speaks of a folder.
        licence: of the weights, as the hub names it ("cc-by-4.0"); None: the card leaves it open.

    Returns:
        Markdown behind a block of metadata, closed by the line that :func:`~foveate.hub.files.is_ours` looks for.
    """
    entry = _entry(config)
    system = get_system(entry.system) if entry is not None else None
    sections = [
        ("", _opening(config, entry, system)),
        ("Use", _use(config, repo)),
        ("Inputs and outputs", _interface(config, entry)),
        ("Data", _data(config)),
        ("Scores", _scores(config)),
        ("Among others", _leaderboard(config)),
        ("Training", _training(config)),
        ("Limits", _limits(config, system)),
        ("Licences", _licences(system, licence)),
        ("Citation", _citation(system)),
        ("Made with", _made_with(config)),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections if text)
    data = _metadata(config, entry, system, licence)
    return sealed(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")))


def _entry(config: Config) -> Entry | None:
    """What is registered under the system's name; None for a class of the user's own."""
    kinds = (config["kind"],) if "kind" in config else ("model", "mixer")
    found = {e.kind: e for e in (*entries(), *sizes()) if config["system"] == (e.configuration or e.name)}
    return next((found[kind] for kind in kinds if kind in found), None)


def _metadata(config: Config, entry: Entry | None, system: System | None, licence: str | None) -> ModelCardData:
    task = config.get("task")
    tags = ["foveate", config["system"] if entry is not None else "", task, system.family if system else ""]
    results = _results(config)
    known: dict[str, Any] = {"eval_results": results, "model_name": _name(config)} if results else {}
    if system is not None and system.arxiv:
        tags.append(f"arxiv:{system.arxiv}")
    return ModelCardData(
        library_name="foveate",
        license=licence,
        pipeline_tag=PIPELINES.get(task or ""),
        tags=[t.replace(" ", "-") for t in dict.fromkeys(filter(None, tags))],
        **known,
    )


def _results(config: Config) -> list[EvalResult]:
    """Test scores for the hub's own tables: only of weights that were scored, which a refit's were not."""
    made = config.get("comparison")
    if made is None or config.get("refit"):
        return []
    split = made["ranked_on"]
    return [
        EvalResult(
            task_type=PIPELINES.get(config["task"]) or config["task"],
            dataset_type=made["data"]["name"],
            dataset_name=made["data"]["name"],
            dataset_split="validation" if split == "val" else split,
            metric_type=metric,
            metric_name=metric.upper(),
            metric_value=value,
        )
        for metric, value in (config.get(split) or {}).items()
        if value is not None
    ]


# ----- sections


def _opening(config: Config, entry: Entry | None, system: System | None) -> str:
    title = f"# {_name(config)}"
    if "comparison" in config:
        title += f" on {_plain(config['comparison']['data']['name'])}"
    lines = [title]
    if system is not None:
        lines.append(system.summary)
        where = " ".join(str(p) for p in (system.venue, system.year) if p)
        links = [f"[arXiv {system.arxiv}](https://arxiv.org/abs/{system.arxiv})"] if system.arxiv else []
        links += [f"[official code]({system.code})"] if system.code else []
        if system.bibtex:
            told = "; ".join(filter(None, [where, *links]))
            lines.append(f"Published as *{system.title}*{f' ({told})' if told else ''}.")
    elif entry is None:
        lines.append(f"A model of its author's own class {code(config['system'])}, saved by foveate.")
    if config.get("kind") == "mixer":
        around = "decoder (`LanguageModel`)" if config.get("reads") == "tokens" else "network (`MixerNet`)"
        lines.append(f"The mixer stands in foveate's plain pre-norm {around}.")
    if "task" in config:
        lines.append(f"Trained for the task `{_plain(config['task'])}`; it works in the units of its training data.")
    return "\n\n".join(lines)


def _use(config: Config, repo: str | None) -> str:
    place = f"hub:{repo}" if repo else _FOLDER
    own = re.fullmatch(r"([\w.]+):(?:[\w.<>]*\.)?(\w+)", config["system"])
    handed_in = [f"{name}={name}" for name in config.get("given", ()) if config.get("kind") != "mixer"]
    interface = config.get("interface", {})
    example = interface.get("example")
    first = ["import torch"] if example else []
    if own:
        first.append(f"from {own[1]} import {own[2]}  # the author's own code")
    elif handed_in:
        first.append("from foveate.models import Model")
    if handed_in:  # what was a module when the model was made, and is one again
        opener, more = f"{own[2] if own else 'Model'}.from_pretrained", handed_in
    else:
        opener, more = "foveate.load", [f"system={own[2]}"] if own else []
        first.insert(0, "import foveate")
    lines = [*first, "", f"model = {opener}({', '.join([json.dumps(place), *more])})"]
    if example:
        lines.append(f"y = model({example})  # {interface['shape']}")
    text = "```python\n" + "\n".join(lines) + "\n```"
    if ":" not in config.get("task", ":") and not own:
        text += f"\n\nOn the command line: `foveate predict {place} {new_data(config['task'])}`."
    return text


def new_data(task: str) -> str:
    """What stands for new data behind ``foveate predict MODEL`` in an example.

    Args:
        task: registered name; or that of a class which is not, and of which nothing is known.
    """
    reads = find(task, "task").spec.reads if task in list_names("task") else ""
    if reads == "image":
        return "NEW_IMAGES --out MASKS" if task == "segment" else "NEW_IMAGES"
    return "NEW_DATA.csv" if reads == "series" else "NEW_DATA"


def _interface(config: Config, entry: Entry | None) -> str:
    interface = config.get("interface")
    if interface is not None:
        rows = [(f"`{name}`", text) for name, text in interface["inputs"].items()]
        rows.append(("answer", interface["output"]))
        return "\n".join(f"- {name}: {text}" for name, text in rows)
    reads = config.get("reads") or getattr(entry.spec if entry else None, "reads", "")
    lines = [f"Reads {READS[reads]}."] if reads in READS else []
    options = [f"`{k}={v!r}`" for k, v in config["options"].items() if v is not None]
    if options and "task" not in config:
        lines.append(f"Built with {', '.join(options)}.")
    if config.get("parameters"):
        lines.append(f"{config['parameters']:,} parameters.")
    return " ".join(lines)


def _data(config: Config) -> str:
    made = config.get("comparison")
    if made is None:
        return ""
    data = dict(made["data"])
    parts = data.pop("parts", {})
    lines = [f"- {label.replace('_', ' ')}: {_value(value)}" for label, value in data.items()]
    table = ""
    if parts:
        heads = list(dict.fromkeys(key for part in parts.values() for key in part))
        rows = [[_split(split), *(_value(part.get(h)) for h in heads)] for split, part in parts.items()]
        table = "\n\n" + _table(["part", *heads], rows)
    return "\n".join(lines) + table


def _scores(config: Config) -> str:
    splits = [s for s in ("val", "test") if config.get(s)]
    if not splits:
        return ""
    made = config.get("comparison", {})
    winner = next((r for r in made.get("rows", ()) if r["system"] == config["system"]), None)
    metrics = list(dict.fromkeys(m for s in splits for m in config[s]))
    heads = ["", *(f"{_split(s)}, seed {config.get('seed', 0)}" for s in splits)]
    if winner:
        heads += [f"{_split(s)}, mean over {winner['seeds']} seeds" for s in splits if winner["seeds"] > 1]
    rows = []
    for metric in metrics:
        row = [metric.upper(), *(_number(config[s].get(metric)) for s in splits)]
        if winner and winner["seeds"] > 1:
            row += [_spread(winner[s].get(metric)) for s in splits]
        rows.append(row)
    what = (
        "These are the scores of the same system trained on the training part alone; the weights here were trained "
        "anew on all data, and have no score."
        if config.get("refit")
        else "Validation data chose these weights; test data was scored once, after all choices."
    )
    if not config.get("test"):
        what = "Validation data chose these weights; there was nothing to score on test data."
    unit = config.get("interface", {}).get("scores", "")
    return f"{_table(heads, rows)}\n\n{' '.join(filter(None, [unit, what]))}"


def _leaderboard(config: Config) -> str:
    made = config.get("comparison")
    if made is None or len(made["rows"]) < 2:
        return ""
    split, primary, chosen_by = made["ranked_on"], made["primary"], made["chosen_by"]
    arrow = "↑" if made["higher_is_better"] else "↓"
    heads = ["rank", "system", f"{_split(split)} {primary.upper()} {arrow}"]
    heads += [f"validation {chosen_by.upper()}"] if split == "test" else []
    heads += ["parameters", "latency, ms"]
    rows, ranks = [], [row["rank"] for row in made["rows"]]
    for row in made["rows"]:
        name = f"**{code(row['system'])}**" if row["system"] == config["system"] else code(row["system"])
        rank = f"{row['rank']}{'=' if ranks.count(row['rank']) > 1 else ''}"
        cells = [rank, name + (" (baseline)" if row["baseline"] else ""), _spread(row[split][primary])]
        cells += [_spread(row["val"][chosen_by])] if split == "test" else []
        rows.append([*cells, _value(row["parameters"]), _number(row["latency_ms"])])
    return f"{_table(heads, rows)}\n\n{' '.join(made['said'])}"


def _training(config: Config) -> str:
    made = config.get("comparison")
    if made is None:
        return ""
    facts = [
        ("optimiser steps", made["training"].get("steps")),
        ("steps until it was best on validation", made["training"].get("best_step")),
        ("steps of the refit on all data", config.get("refit_steps")),
        ("batch size", made["training"].get("batch_size")),
        ("learning rate", config.get("learning_rate")),
        ("chosen on validation from", made["training"].get("learning_rates")),
        ("seed", config.get("seed")),
        ("options", config.get("options")),
        ("seconds of training and scoring", made["training"].get("seconds")),
    ]
    if recipe := config.get("recipe"):
        facts.insert(0, ("published recipe", {k: v for k, v in recipe.items() if not isinstance(v, dict | list)}))
    else:
        facts.insert(0, ("recipe", made["training"].get("recipe")))
    return "\n".join(f"- {label}: {_value(value)}" for label, value in facts if value not in (None, "", [], {}))


def _limits(config: Config, system: System | None) -> str:
    lines = []
    if config.get("changed"):
        lines.append("The weights were changed after they had been loaded: scores of the earlier ones are left out.")
    if config.get("refit"):
        lines.append("The weights were trained on all data, the test part included: they must not be scored on it.")
    if dependence := config.get("batch_dependence"):
        lines.append(
            f"The answer for a sample depends on the others of its batch: it was scored in batches of "
            f"{dependence['scored']}, and `foveate predict` asks it for one sample at a time."
        )
    if "comparison" in config:
        lines.append("Scores hold for data like that above; what differs from it has not been tried.")
    if system is not None:
        lines.append(system.when_not)
        lines += [f"Reconstructed, not settled by paper or code: {text}" for text in system.reconstructed]
        lines += [f"Unverified: {text}" for text in system.unverified]
    return "\n".join(f"- {line}" for line in lines)


def _licences(system: System | None, licence: str | None) -> str:
    lines = ["foveate's code: Apache-2.0."]
    if system is not None and system.licence:
        official = f" ({system.code})" if system.code else ""
        lines.append(f"Official code of {_plain(system.slug)}{official}: {system.licence}.")
    whose = f"{licence}." if licence else "for the publisher to say, who knows those of the data."
    return "\n".join(f"- {line}" for line in [*lines, f"These weights: {whose}"])


def _citation(system: System | None) -> str:
    return f"```bibtex\n{system.bibtex.strip()}\n```" if system is not None and system.bibtex else ""


def _made_with(config: Config) -> str:
    made = config.get("comparison", {})
    versions = made.get("versions") or {"foveate": config.get("foveate")}
    text = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if machine := made.get("machine"):
        size = f"{machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB of memory"
        text += f"; trained on {', '.join([machine['cpu'], size, machine['os'], *machine['gpus']])}"
    return text + "."


# ----- words


def _name(config: Config) -> str:
    """A system's name for a title; of a class of the user's own, the class."""
    return _plain(config["system"].rpartition(":")[2].rpartition(".")[2])


def _split(name: str) -> str:
    return {"val": "validation", "train": "training"}.get(name, name)


def _plain(text: Any) -> str:
    """On one line, without control characters and without what Markdown or HTML would read as its own."""
    shown = " ".join(str(text).split())
    shown = "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in shown)
    return "".join(f"\\{c}" if c in "\\`*[]<>|#" else c for c in shown)


def code(text: Any) -> str:
    """A code span of text that comes from a user; a bar would end the cell of a table."""
    shown = " ".join(str(text).split()).replace("`", "'").replace("|", "¦")
    return f"`{''.join('�' if unicodedata.category(c) in ('Cc', 'Cf', 'Cs') else c for c in shown) or ' '}`"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _spread(score: Mapping[str, Any] | None) -> str:
    if not score or score.get("mean") is None:
        return "–"
    return _number(score["mean"]) + (f" ± {score['std']:.2g}" if score.get("std") is not None else "")


def _value(value: Any) -> str:
    """A fact: numbers with separators, names in code spans, long lists cut."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return _listed(value.items(), lambda item: f"{_plain(item[0])} {_value(item[1])}")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _listed(value, _value)
    return code(value)


def _listed(values: Iterable[Any], form: Callable[[Any], str]) -> str:
    values = list(values)
    tail = f" and {len(values) - _MOST} more" if len(values) > _MOST else ""
    return ", ".join(form(v) for v in values[:_MOST]) + tail


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
