"""Models with weights from elsewhere: which release's layout they are in, and how many classes they tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InvalidType, InvalidValue, unknown_name
from ..hub.weights import Weights, find_weights
from ..registry import check_options, find
from .base import Model
from .official import Renamed, fill, rename, some

#: The layout of a model's own state dict.
OWN = "foveate"


def with_weights(
    target: type[Model], name: str, where: str | Path, options: dict[str, Any], source: str | None = None
) -> Model:
    """A model with the weights of a file, a folder or a repo on the hub, in eval mode.

    Args:
        target: the class.
        name: what it was asked for by, for messages.
        where: as :func:`foveate.hub.find_weights` takes it.
        options: of the constructor. A number of classes other than the weights' puts a fresh classifier in place of
            theirs; None, or none: as many as they have.
        source: the layout, a key of ``official_keys`` or "foveate"; None: the one whose names the weights have.

    Raises:
        InvalidType: the class knows no layout, or a folder of foveate's holds another class.
        InvalidValue: weights of another model, size or number of channels; see also
            :func:`foveate.hub.find_weights`.
        UnknownName: it does not know this ``source``; there is no such repo.
    """
    legal = (OWN, *target.official_keys)
    if source is not None and source not in legal:
        raise unknown_name("source", source, legal)
    options = dict(options)
    num_classes = options.pop("num_classes", None)
    check_options(name, target, options)
    found = find_weights(where)
    if found.config:
        _check_config(target, found)
        options = {**found.config["options"], **options}
        options.pop("num_classes", None)
    model = target(**options)
    renamed = _recognise(model, name, found, legal if source is None else (source,))
    _fill(model, name, renamed, found, options)
    if num_classes is not None and num_classes != getattr(model, "num_classes", None):
        _reset(model, name, num_classes)
    return model.eval()


def _check_config(target: type[Model], found: Weights) -> None:
    """Refuse a folder of foveate's that holds something else."""
    config = found.config
    if "task" in config:
        raise InvalidType(
            f"{found.place} holds a model packed for the task {config['task']!r}: open it with foveate.load and take "
            f"its .model."
        )
    if config.get("kind") != "model" or find(config["system"], "model").load() is not target:
        raise InvalidType(f"{found.place} holds {config['system']!r}, not a {target.__name__}: open it as that.")


def _recognise(model: Model, name: str, found: Weights, sources: tuple[str, ...]) -> Renamed:
    """The weights under the model's names, by the first table that takes all of them."""
    tried = []
    for source in sources:
        renamed = _renamed(model, found, source)
        if _fits_but_for_classes(model, renamed):
            _fit_classes(model, renamed)
            renamed = _renamed(model, found, source)
        if renamed.fits:
            return renamed
        tried.append(renamed)
    closest = min(tried, key=lambda r: len(r.missing) + len(r.left_over))
    raise InvalidValue(
        f"{found.place} does not hold the weights of {name!r}: its names are not those of "
        f"{' or '.join(sources)}; nearest is {closest.source}: {closest.misfits}."
    )


def _renamed(model: Model, found: Weights, source: str) -> Renamed:
    if source != OWN:
        return rename(model, found.tensors, source)
    own = model.state_dict()
    left_over = sorted(set(found.tensors) - set(own))
    return Renamed(OWN, dict(found.tensors), sorted(set(own) - set(found.tensors)), left_over)


def _fits_but_for_classes(model: Model, renamed: Renamed) -> bool:
    """Whether a classifier, given or missing, is all that keeps the names from fitting."""
    path = getattr(model, "classifier", None)
    odd = renamed.missing + renamed.left_over
    return path is not None and all(key in (f"{path}.weight", f"{path}.bias") for key in odd)


def _fit_classes(model: Model, renamed: Renamed) -> None:
    """Give a backbone as many classes as the weights tell apart."""
    weight = renamed.tensors.get(f"{model.classifier}.weight")  # type: ignore[attr-defined]
    classes = 0 if weight is None else weight.shape[0]
    if classes != model.num_classes:
        model.reset_classifier(classes)  # type: ignore[operator]


def _fill(model: Model, name: str, renamed: Renamed, found: Weights, options: dict[str, Any]) -> None:
    own = model.state_dict()
    wrong = [k for k, v in renamed.tensors.items() if v.shape != own[k].shape]
    if not wrong:
        fill(model, renamed.tensors)
        return
    stems = [k for k in wrong if _other_channels(renamed.tensors[k].shape, own[k].shape)]
    if stems == wrong and "in_chans" in options:
        raise InvalidValue(
            f"in_chans={options['in_chans']!r} is not possible with {found.place}: its weights read "
            f"{renamed.tensors[wrong[0]].shape[1]} channels; leave it out."
        )
    shapes = [f"{k} {tuple(renamed.tensors[k].shape)} (needs {tuple(own[k].shape)})" for k in sorted(wrong)]
    raise InvalidValue(f"{found.place} holds the weights of another size than {name!r}: {some(shapes, 3)}.")


def _other_channels(given: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Whether two weights of a convolution differ in their input channels alone."""
    return len(given) == len(own) > 2 and given[1] != own[1] and (given[0], *given[2:]) == (own[0], *own[2:])


def _reset(model: nn.Module, name: str, num_classes: int) -> None:
    if not hasattr(model, "reset_classifier"):
        raise InvalidType(f"{name!r} has no classifier that could be exchanged: leave num_classes out.")
    model.reset_classifier(num_classes)  # type: ignore[operator]
