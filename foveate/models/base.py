"""The convention of complete models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue
from ..hub.files import fill
from ..hub.saved import Saved, plain_option
from ..registry import check_options, find
from ..spec import ModelSpec
from .published import Published


class Model(nn.Module, Saved):
    """A complete network.

    Inputs by what it reads: series ``(B, T, C)``, image ``(B, C, H, W)``, video ``(B, C, T, H, W)``, tokens ``(B, L)``
    int64; anything else is documented by the model. ``forward`` returns one tensor; auxiliary losses are read with
    :func:`foveate.mixers.aux_losses`. Constructor options are plain values: ``save_pretrained`` writes them to
    ``config.json``. A module handed in is handed in again to ``from_pretrained``.

    A subclass sets :attr:`spec` with literals and implements :meth:`for_task` for every task in ``spec.tasks``.
    """

    #: Literals in the class body; an option that changes a promise sets it again on the instance.
    spec: ModelSpec
    #: Constructor options, defaults included, as plain values; names of modules and classes handed in; and, with their
    #: types, names of what cannot be saved.
    _options: dict[str, Any]
    _handed_in: list[str]
    _not_plain: dict[str, str]
    #: Dotted path of the Recipe class ("foveate.tasks.base.Recipe" is the default one) that trains this model.
    recipe: ClassVar[str] = "foveate.tasks.base.Recipe"
    #: Under a time budget, the share of a trial's time that a system without training may take to be scored.
    untrained_share: ClassVar[float] = 0.1
    #: It stands around a mixer, and its saved form is named by that.
    named_by_mixer: ClassVar[bool] = False
    #: What it is made of, the name of an option: "mixer" or "backbone"; ``<name>_options`` are given on.
    made_of: ClassVar[str] = "mixer"
    #: The official release's state-dict keys to ours; see :func:`foveate.models.official.load_official`.
    official_keys: ClassVar[dict[str, dict[str, str]]] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        parameters = cls._hub_mixin_init_parameters
        defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
        given = {**dict(zip(list(parameters)[1:], args, strict=False)), **kwargs}
        made._options, made._handed_in, made._not_plain = {}, [], {}
        for name, value in {**defaults, **given}.items():
            try:
                made._options[name] = plain_option(value)
            except TypeError as error:
                if isinstance(value, nn.Module | type):
                    made._handed_in.append(name)
                elif name in given:
                    made._not_plain[name] = str(error)
        return made

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """Build the model for a task from what the task says about the data (``Task.info``), plus options."""
        raise InvalidType(f"{cls.__name__} cannot be built for a task.")

    @classmethod
    def published(cls, info: Any, dataset: str) -> Published | None:
        """How its authors trained it for ``info.task`` on a public data set.

        Args:
            info: what the task says about the data (``Task.info``).
            dataset: name in :data:`foveate.tasks.known_data.KNOWN`.

        Returns:
            None where nothing is published: it is then trained by the usual rules.
        """
        return None

    # ----- saving and loading

    @classmethod
    def with_weights(cls, where: str | Path, *, name: str = "", source: str | None = None, **options: Any) -> Self:
        """A model with weights that somebody else saved, in eval mode.

        Args:
            where: a safetensors file, a folder with one, or a repo's id on the hub.
            name: what the model is called in messages.
            source: the layout of the weights, of :attr:`official_keys`, or "foveate"; None: whichever fits.
            options: of the constructor; with another ``num_classes`` than the weights', the classifier is a fresh one.

        Raises:
            InvalidValue, InvalidType, UnknownName: see :func:`foveate.models.pretrained.with_weights`.
        """
        from .pretrained import with_weights

        return with_weights(cls, name or cls.__name__, where, options, source)  # type: ignore[return-value]

    def _identity(self) -> dict[str, Any]:
        """ "kind" and "system" of ``config.json``: what :meth:`_target` finds the class by."""
        if type(self).named_by_mixer:
            mixer: Any = self.mixer
            return {"kind": "mixer", "system": mixer if isinstance(mixer, str) else registered_name(mixer)[1]}
        kind, name = registered_name(type(self))
        return {"kind": kind, "system": name}

    @classmethod
    def _target(cls, folder: Path, config: dict[str, Any]) -> tuple[type[Model], dict[str, Any]]:
        """The class on record and options that follow from the record, for a caller who asked ``cls`` for the model.

        Raises:
            InvalidType: it is of another class.
            InvalidValue: it is of a class of the user's own, which must be called itself.
        """
        kind, name = config.get("kind"), config["system"]
        if kind == "custom":
            if cls is Model:
                raise InvalidValue(f"{folder} was saved from your own class {name}: pass it as load(..., system=...).")
            return cls, {}
        if kind == "mixer":
            from .build import network

            target, options = network(config["reads"]), {} if ":" in name else {"mixer": name}
        else:
            target, options = find(name, "model").load(), {}
        if issubclass(target, cls):
            return target, options
        if issubclass(cls, target):
            return cls, options
        raise InvalidType(f"{folder} holds {name!r}, a {target.__name__}, not a {cls.__name__}: open it as that.")

    def _record(self) -> dict[str, Any]:
        if self._not_plain:
            name, kind = next(iter(self._not_plain.items()))
            raise InvalidType(
                f"{type(self).__name__} cannot be saved: its option {name} holds a {kind}, which config.json cannot; "
                f"plain values (numbers, strings, lists and dictionaries of them) can be saved."
            )
        about, options, handed_in = self._identity(), dict(self._options), list(self._handed_in)
        if about["kind"] == "mixer":  # its name says which mixer, unless it is a class of the user's own
            options.pop("mixer", None)
            handed_in = [n for n in handed_in if n != "mixer" or ":" in about["system"]]
        parameters = sum(p.numel() for p in self.parameters())
        reads = getattr(self, "reads", self.spec.reads)
        return {**about, "options": options, "given": handed_in, "reads": reads, "parameters": parameters}

    @classmethod
    def _open(cls, folder: Path, config: dict[str, Any], given: dict[str, Any]) -> Self:
        if "task" in config:
            raise InvalidType(
                f"{folder} holds a model packed for the task {config['task']!r}, not a bare {cls.__name__}: open it "
                f"with foveate.load."
            )
        target, options = cls._target(folder, config)
        options = {**config["options"], **options, **given}
        for name in config.get("given", ()):
            if name not in options:
                raise InvalidType(
                    f"{folder} needs {name}=...: it was handed in when the model was made; call "
                    f"{target.__name__}.from_pretrained(..., {name}=...)."
                )
        check_options(config["system"], target, options)
        model = target(**options)
        fill(model, folder, config["system"])
        return model.eval()  # type: ignore[return-value]

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """A fresh streaming state; see :mod:`foveate.mixers.state`."""
        raise InvalidType(f"{type(self).__name__} has no streaming form.")

    def prefill(self, x: Any, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """Read a stretch of input after ``state``: tokens, frames, or events as the model documents them."""
        raise InvalidType(f"{type(self).__name__} has no streaming form.")

    def step(self, x_t: Any, state: Any) -> tuple[Tensor, Any]:
        """Read one token or frame. A model with more inputs takes them as keyword arguments."""
        raise InvalidType(f"{type(self).__name__} has no streaming form.")


def registered_name(cls: type) -> tuple[str, str]:
    """Kind and name that a class is registered under; "custom" and ``module:Class`` for any other."""
    if "registered_as" in vars(cls):
        kind, name, _ = vars(cls)["registered_as"]
        return kind, name
    return "custom", f"{cls.__module__}:{cls.__qualname__}"


def check_series(name: str, x: Tensor, length: int, channels: int) -> None:
    """Refuse anything but float ``(batch, length, channels)``; for models that read series."""
    if x.ndim != 3 or x.shape[1] != length or x.shape[2] != channels:
        raise InvalidValue(f"{name}: x has shape {tuple(x.shape)}; it must be (batch, {length}, {channels}).")
    if not x.is_floating_point():
        raise InvalidType(f"{name}: x must be floating point, not {x.dtype}.")
