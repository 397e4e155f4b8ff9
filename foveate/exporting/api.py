"""``foveate.export``: from a model to a file that runs without foveate."""

from __future__ import annotations

import inspect
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import load
from ..errors import InvalidValue, invalid
from ..files import atomic_write
from ..mixers.base import Mixer
from ..models.base import Model
from . import formats
from .calibration import calibrate
from .facts import facts_of
from .promises import alternatives, calibrated, name_of, promises_of
from .subject import Example, Subject, subject_of
from .verify import BATCHES, grids_to_try, verify


@dataclass(frozen=True, slots=True)
class Exported:
    """What :func:`export` wrote.

    Attributes:
        file: the file.
        facts: what stands in it as JSON: "inputs" (name, shape, dtype, meaning), "output", "systems" with licence and
            citation, "task", "package" (columns, sizes), "verified", "calibration", versions.
    """

    file: Path
    facts: dict[str, Any]


def export(
    model: nn.Module | str | Path,
    file: str | Path,
    *,
    format: str | None = None,
    example: Example | None = None,
    length: int | None = None,
    dynamic_length: bool | None = None,
    batch_size: int | None = None,
    calibration: Any = None,
    system: type[Model] | type[Mixer] | None = None,
    time: str | None = None,
    id: str | None = None,
    force: bool = False,
) -> Exported:
    """Write a model as a file that runs where there is no foveate.

    The graph holds aten operations only (it is traced under ``backend("torch")``). Before anything is written, the
    file's answers are compared with the model's on random inputs: several batch sizes, and several lengths where these
    are open.

    Args:
        model: a mixer, a model, a packaged one (what :func:`foveate.load` returns), any module that answers with one
            tensor; or a folder: ``OUT/best``, or of ``save_pretrained``.
        file: where to.
        format: "pt2" (``torch.export.load(file).module()``) or "onnx" (onnxruntime); None: by the file's ending.
        example: inputs as ``forward`` takes them: one tensor, a tuple, or by name, the batch first. Needed only where
            the module does not say what it reads. What is given is what the file reads; inputs that have no influence
            and a default are left out.
        length: tokens, for a mixer or a model of tokens; the file then serves no other number.
        dynamic_length: whether the file serves every length; None: as the spec promises, unless a length was given.
        batch_size: the one batch size of the file; None: any.
        calibration: data that freezes what follows the data (TimesNet's periods): a table as ``foveate predict`` reads,
            or inputs of the module. None: the training data, where the comparison's folder still holds it.
        system: your own class, if the folder's model was made from one.
        time, id: names of the time and id columns of the calibration table.
        force: replace a file that exists.

    Raises:
        InvalidType: the system does not promise this, with the reason and what can be exported instead; or an example
            is needed.
        InvalidValue: no model in the folder, an unknown format, a target that cannot be written or exists, sizes that
            are fixed, calibration data that does not fit, or a file that does not answer as the model does.
        MissingExtra: ONNX without its packages.
    """
    file = Path(file)
    format = file.suffix.removeprefix(".") if format is None else format
    formats.check_format(format)
    if batch_size is not None and batch_size < 1:
        raise invalid("batch_size", batch_size, "it must be at least 1")
    if length is not None and length < 1:
        raise invalid("length", length, "it must be at least 1")
    check_target(file, force)
    folder = None if isinstance(model, nn.Module) else Path(model)
    model = model if isinstance(model, nn.Module) else load(model, system=system)
    model, frozen = calibrate(model, calibration, folder, time=time, id=id)
    dynamic = _check_promises(model, format, length, dynamic_length)
    subject = subject_of(model, example, length, dynamic)
    dynamic = dynamic and bool(subject.long)
    with formats.as_shipped(model):
        subject, program = _traced(subject, batch_size, dynamic)
        if format == "pt2":
            run = formats.pt2_runner(formats.pt2_bytes(program, {}), subject)
        else:
            made = formats.onnx_model(program, subject.name)
            run = formats.onnx_runner(formats.onnx_bytes(made, {}))
        batches = BATCHES if batch_size is None else (batch_size,)
        verified = verify(run, subject, batches, grids_to_try(subject, dynamic))
        shapes = _shapes(subject, batch_size, dynamic)
        facts = facts_of(subject, format, shapes, subject.run(subject.example), verified, frozen)
    atomic_write(file, formats.pt2_bytes(program, facts) if format == "pt2" else formats.onnx_bytes(made, facts))
    return Exported(file, facts)


def check_target(file: Path, force: bool) -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Raises:
        InvalidValue: it exists, its folder does not, or writing there fails.
    """
    if file.is_dir():
        raise InvalidValue(f"{file} cannot be written: it is a folder; give the name of a file.")
    if file.exists() and not force:
        raise InvalidValue(f"{file} exists: choose another name, or replace it with force.")
    if not file.parent.is_dir():
        raise InvalidValue(f"{file} cannot be written: the folder {file.parent} does not exist.")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise InvalidValue(f"{file} cannot be written: {error.strerror}; choose another place.") from error


def _check_promises(model: nn.Module, format: str, length: int | None, dynamic_length: bool | None) -> bool:
    """Refuse what the specs in a model do not promise; returns whether the length stays open."""
    promises, name = promises_of(model), name_of(model)
    task = getattr(getattr(model, "info", None), "task", None)
    if calibrated(model) is not None:
        instead = "give a table or inputs as calibration (--calibration DATA), or call freeze_periods first"
    else:
        instead = alternatives(task)
    promises.refuse(name, "export", instead)
    if format == "onnx":
        promises.refuse(name, "onnx", "export it as pt2")
    if dynamic_length:
        if length is not None:
            raise InvalidValue(f"length={length} is not possible with dynamic_length=True: leave one of them out.")
        if promises.known:
            promises.refuse(name, "dynamic_length", "leave dynamic_length out, and give the length or an example")
    if dynamic_length is not None:
        return dynamic_length
    return length is None and promises.known and "dynamic_length" not in promises.missing


def _traced(subject: Subject, batch_size: int | None, dynamic: bool) -> tuple[Subject, Any]:
    """The traced program, once more without the inputs that do nothing and need not be given."""
    for _ in range(2):
        inputs = subject.inputs(batch_size or max(2, *BATCHES), subject.grid)
        program = _trace(subject, inputs, batch_size is None, dynamic)
        parameters = inspect.signature(subject.model.forward).parameters
        idle = {n for n in formats.unused(program) if parameters[n].default is None}
        if not idle:
            break
        subject = replace(subject, example={n: x for n, x in subject.example.items() if n not in idle})
    return subject, program


def _trace(subject: Subject, inputs: dict[str, torch.Tensor], dynamic_batch: bool, dynamic_length: bool) -> Any:
    if promises_of(subject.model).known:
        return formats.trace(subject, inputs, dynamic_batch, dynamic_length)
    try:
        return formats.trace(subject, inputs, dynamic_batch, dynamic_length)
    except InvalidValue:
        raise
    except Exception as error:  # whatever a stranger's module does, it is told as what it is
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InvalidValue(f"torch.export cannot follow {subject.name}: {reason}") from error


def _shapes(subject: Subject, batch_size: int | None, dynamic: bool) -> dict[str, list[int | str]]:
    """Sizes of the inputs; names for those that are open."""
    found: dict[str, list[int | str]] = {}
    for name, x in subject.example.items():
        sizes: list[int | str] = list(x.shape)
        sizes[0] = "batch" if batch_size is None else batch_size
        axes = subject.long.get(name, ()) if dynamic else ()
        for axis in axes:
            sizes[axis] = "length" if len(axes) == 1 else f"length_{axis}"
        found[name] = sizes
    return found
