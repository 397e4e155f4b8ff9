"""Recorded cases of official code: what they are, where they lie, how an answer is compared with them.

A case is one file ``<root>/<slug>/<name>.safetensors`` with a JSON ``meta`` and the tensors ``param/*``, ``buffer/*``,
``input/*``, ``output/*`` and ``grad/*``. The root is ``$FOVEATE_REFERENCE_VECTORS``, by default
``../shared/reference_vectors`` beside the repository.

An adapter
----------
One file per system, ``tests/reference/adapters/<slug>.py``, with one function that builds the system from *any* case of
that system (more cases than the visible ones are run through it, with other configurations) and returns its answers
under the recorded names::

    from cases import Answer, Case

    TOLERANCE = 1e-5  # optional, of the whole adapter: 1e-4 is the default, 1e-5 where nothing long accumulates

    def run(case: Case) -> Answer:
        model = MyModel(width=case.config["d_model"], bias=case.has_param(r"proj\\.bias"))
        load_official(model, case.params)
        x = case.inputs["x"].requires_grad_()
        y = model(x)
        gradients = case.gradients(y.square().mean(), {"x": x, **official_names(model)})
        return {"y": y}, gradients

- ``case.params`` has the official keys without ``param/``; ``case.inputs`` the inputs without ``input/``, and so on.
  Each access gives fresh tensors, so an adapter may change them or ask for their gradient.
- ``case.gradients(loss, tensors)`` differentiates with respect to those of ``tensors`` that the case has a gradient of.
- Every recorded output and gradient is compared: shape and, normalised by the largest recorded magnitude, value;
  integers and bools must be equal. A recorded name that the adapter does not return fails; extra names are ignored.
- Nothing may depend on ``case.name``, and no tolerance on the case. Read the configuration, the official class
  (``case.official_class``), the notes, and the names and shapes of the parameters. An official class that is not built
  yet is refused with ``pytest.skip("<class> is not built")``.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

HERE = Path(__file__).parent
VARIABLE = "FOVEATE_REFERENCE_VECTORS"
DEFAULT_TOLERANCE = 1e-4

#: What an adapter returns: outputs and gradients by recorded name.
Answer = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


def root() -> Path:
    """The folder of all recorded vectors; it may not exist."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else HERE.parents[2] / "shared" / "reference_vectors"


@dataclass(frozen=True)
class Case:
    """One recorded case.

    Attributes:
        slug: the system.
        name: the file's stem; for messages only.
        file: where it was read from.
        meta: the recording's own description.
        tensors: everything recorded, with its prefix.
    """

    slug: str
    name: str
    file: Path
    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, file: Path) -> Case:
        """Read a recorded file."""
        with safe_open(file, "pt") as opened:
            meta = json.loads((opened.metadata() or {}).get("meta", "{}"))
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  (not a mapping)
        return cls(file.parent.name, file.stem, file, meta, tensors)

    def _group(self, prefix: str) -> dict[str, Tensor]:
        start = prefix + "/"
        return {key[len(start) :]: value.clone() for key, value in self.tensors.items() if key.startswith(start)}

    @property
    def config(self) -> dict[str, Any]:
        """The official configuration."""
        return copy.deepcopy(self.meta.get("config", {}))

    @property
    def notes(self) -> str:
        """What the recording says about itself in words."""
        return self.meta.get("notes", "")

    @property
    def official_class(self) -> str:
        """The official class or function that was recorded, as a dotted path."""
        return self.meta.get("class", "")

    @property
    def params(self) -> dict[str, Tensor]:
        """Official state dict."""
        return self._group("param")

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Recorded buffers that are not in the official state dict."""
        return self._group("buffer")

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Inputs by name."""
        return self._group("input")

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Outputs by name."""
        return self._group("output")

    @property
    def grads(self) -> dict[str, Tensor]:
        """Gradients by the name of what was differentiated."""
        return self._group("grad")

    def has_param(self, pattern: str) -> bool:
        """Whether a parameter's official key contains this regular expression."""
        return any(re.search(pattern, key) for key in self.params)

    def gradients(self, loss: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of ``loss`` with respect to those of ``tensors`` that were recorded.

        Args:
            loss: a scalar.
            tensors: by recorded name; each requires a gradient.
        """
        wanted = [name for name in self.grads if name in tensors]
        found = torch.autograd.grad(loss, [tensors[name] for name in wanted]) if wanted else ()
        return dict(zip(wanted, found, strict=True))


def mismatches(kind: str, recorded: Mapping[str, Tensor], given: Mapping[str, Tensor], tolerance: float) -> list[str]:
    """One sentence for every recorded tensor that ``given`` lacks or that differs."""
    found = []
    for name, want in recorded.items():
        if name not in given:
            found.append(f"{kind} {name!r} was recorded, but the adapter did not return it")
            continue
        have = given[name].detach()
        if have.shape != want.shape:
            found.append(f"{kind} {name!r} has shape {tuple(have.shape)}, recorded {tuple(want.shape)}")
        elif not (want.is_floating_point() or want.is_complex()):
            if not torch.equal(have.to(want.dtype), want):
                found.append(f"{kind} {name!r} differs in {int((have != want).sum())} of {want.numel()} entries")
        elif want.numel():
            want = want.to(torch.complex128 if want.is_complex() else torch.float64)
            scale = float(want.abs().max()) or 1.0
            error = float((have.to(want.dtype) - want).abs().max()) / scale
            if not error <= tolerance:
                found.append(f"{kind} {name!r} differs by {error:.2e} of its largest magnitude, allowed {tolerance:g}")
    return found


def adapters() -> dict[str, Path]:
    """The adapter file of every system that has one."""
    return {file.stem: file for file in sorted((HERE / "adapters").glob("*.py")) if file.stem != "__init__"}


def load_adapter(file: Path) -> ModuleType:
    """Import an adapter from its file (slugs may begin with an underscore and be names of packages)."""
    found = importlib.util.spec_from_file_location(f"reference_adapter_{file.stem}", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


# Recordings without tensors ------------------------------------------------------------------------------------------


def disagreements(adapter: ModuleType, file: Path) -> list[str]:
    """One sentence for every recorded value of a JSON recording that ours is not equal to.

    The adapter's function ``answers(recorded, data)`` gets what the file holds and the folder of the data that it may
    name, and yields (what it is, recorded value, our value) for everything that was recorded: values that a machine
    printed must be equal to the last digit. Nothing may depend on the file's name.
    """
    compared = list(adapter.answers(json.loads(file.read_text(encoding="utf-8")), root().parent / "data"))
    assert compared, f"{file} was not compared with anything"
    return [f"{what} is {ours!r}, recorded {recorded!r}" for what, recorded, ours in compared if ours != recorded]
