"""The contracts of controls, adapters and editors: changes to a model the user already has.

A control changes how an existing network attends, for as long as it is attached::

    with control.attached(pipeline) as attachment:
        print(attachment.changes)
        video = pipeline(prompt)

    attachment = control.attach(model)
    attachment.remove()

An :class:`Adapter` is a control with parameters of its own. An :class:`Editor` owns the sampling loop and attaches
controls inside it.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ..errors import InvalidType
from .attachment import Attachment


class Control(abc.ABC):
    """A change to a network, made and taken back.

    A subclass names the networks it knows in :attr:`accepts` and implements :meth:`install`. A control holds options
    only: whatever it counts or remembers while attached lives on the attachment, so that one control can be attached
    to several models.
    """

    #: Class names of the networks that it knows, or of their bases: names, so that nothing heavy is imported.
    accepts: ClassVar[tuple[str, ...]] = ()
    #: Where the network sits in a pipeline, the first that exists.
    components: ClassVar[tuple[str, ...]] = ("transformer", "unet", "model")

    @abc.abstractmethod
    def install(self, attachment: Attachment) -> None:
        """Change ``attachment.model`` through the attachment's methods, and by nothing else."""

    def check(self, model: nn.Module) -> None:  # noqa: B027 (nothing to refuse is a fine answer)
        """Refuse what fits the class but not this control: too few layers, another attention.

        Raises:
            InvalidValue: with what is missing.
        """

    def find_network(self, model_or_pipeline: Any) -> nn.Module:
        """The network to change: the one given, or the pipeline's component.

        Raises:
            InvalidType: neither a network nor a pipeline that holds one, or not of a kind that this control knows.
        """
        name, network = type(self).__name__, model_or_pipeline
        if not isinstance(network, nn.Module):
            network = next((m for c in self.components if isinstance(m := getattr(network, c, None), nn.Module)), None)
        if network is None:
            given = type(model_or_pipeline).__name__
            raise InvalidType(f"{name} attaches to a network or to a pipeline that holds one; {given} is neither.")
        kinds = {kind.__name__ for kind in type(network).__mro__}
        if not kinds.intersection(self.accepts):
            raise InvalidType(
                f"{name} does not know {type(network).__name__}: it attaches to {', '.join(self.accepts)}."
            )
        return network

    def attach(self, model_or_pipeline: Any) -> Attachment:
        """Put the control in force.

        Returns:
            The attachment: what was changed, the counters, and ``remove()``.

        Raises:
            InvalidType: this control does not know this kind of model.
            InvalidValue: the model lacks what it needs, or another control already changes the same part. The model is
                left as it was.
        """
        network = self.find_network(model_or_pipeline)
        self.check(network)
        attachment = Attachment(self, network)
        try:
            self.install(attachment)
        except BaseException:
            attachment.remove()
            raise
        return attachment

    @contextmanager
    def attached(self, model_or_pipeline: Any) -> Iterator[Attachment]:
        """Attach for the length of a ``with`` block."""
        attachment = self.attach(model_or_pipeline)
        try:
            yield attachment
        finally:
            attachment.remove()


class Adapter(Control, nn.Module, PyTorchModelHubMixin, library_name="foveate"):
    """A control with parameters, trained and saved by itself.

    While it is attached the model's own parameters are frozen (``freeze_model``), its state dict has no key of the
    adapter's, and ``adapter.parameters()`` is all there is to train. ``save_pretrained`` writes the adapter alone.
    Parts that it puts into the model must therefore be its own sub-modules, reached by hooks, or replacements that
    come out again. Constructor options are plain values.
    """

    #: Whether the model's own parameters get no gradients while the adapter is attached.
    freeze_model: bool = True

    def __init__(self) -> None:
        nn.Module.__init__(self)

    @classmethod
    def for_model(cls, model_or_pipeline: Any, **options: Any) -> Self:
        """Build the adapter with the widths that this model needs."""
        raise InvalidType(f"{cls.__name__} cannot read its sizes from a model: give them as options.")

    def attach(self, model_or_pipeline: Any) -> Attachment:
        """Put the adapter in force; see :meth:`Control.attach`."""
        attachment = super().attach(model_or_pipeline)
        if self.freeze_model:
            mine = [p for p in self.parameters() if p.requires_grad]
            attachment.freeze()
            # A replacement may hold the adapter's own parameters inside the model: those keep learning.
            for parameter in mine:
                parameter.requires_grad_(True)
        return attachment

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """An adapter is not called: attach it and call the model."""
        raise InvalidType(f"{type(self).__name__} is not called: attach it to a model and call that.")


class Editor(abc.ABC):
    """Edits with a pipeline: owns the sampling loop, and attaches controls inside it."""

    @abc.abstractmethod
    def edit(self, pipeline: Any, inputs: Any, *, generator: torch.Generator | None = None, **options: Any) -> Any:
        """Run the edit.

        Args:
            pipeline: the user's pipeline; unchanged afterwards.
            inputs: what is edited or asked for: a video, a list of prompts.
            generator: source of all randomness.
            options: of this editor.
        """
