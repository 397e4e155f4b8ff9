"""The two formats: how a module is traced, written as bytes, and run from them without the module.

``pt2`` is PyTorch's own (:func:`torch.export.save`): ``torch.export.load(file).module()`` gives it back where there is
torch. ``onnx`` runs in onnxruntime and whatever else reads ONNX. Both carry what is known about them as JSON, under the
name ``foveate.json`` and as the metadata entry ``foveate``.
"""

from __future__ import annotations

import io
import json
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import InvalidValue, invalid, missing_extra
from ..ops import backend
from .subject import Subject

FORMATS = ("pt2", "onnx")
#: Where the facts stand in a file.
PT2_ENTRY, ONNX_ENTRY = "foveate.json", "foveate"
#: Bytes that an ONNX file can hold, with room for the graph.
ONNX_LIMIT = 2**31 - 2**24
#: Operations that every reader of a pt2 file knows; besides these, arithmetic with sizes.
_NAMESPACES = ("aten", "prims")
_EXTRA = ("onnx", "onnxscript", "onnxruntime")

Runner = Callable[[Mapping[str, Tensor]], Tensor]


def check_format(format: str) -> None:
    """Refuse an unknown format, and one whose packages are not installed.

    Raises:
        InvalidValue: no such format.
        MissingExtra: the packages for it are absent.
    """
    if format not in FORMATS:
        raise invalid("format", format, f"it must be {' or '.join(FORMATS)}")
    if format == "onnx":
        import importlib.util

        absent = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
        if absent:
            raise missing_extra(" and ".join(absent), "export", "export to ONNX")


@contextmanager
def as_shipped(model: nn.Module) -> Iterator[None]:
    """The module in eval mode and without gradients, as a file holds it; afterwards it is what it was."""
    training = {m: m.training for m in model.modules()}
    wanted = {p: p.requires_grad for p in model.parameters()}
    try:
        model.eval().requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, mode in wanted.items():
            parameter.requires_grad_(mode)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' talk about what they do inside."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def trace(subject: Subject, inputs: Mapping[str, Tensor], dynamic_batch: bool, dynamic_length: bool) -> ExportedProgram:
    """The module as a graph of aten operations.

    Args:
        subject: what is traced; its module is in eval mode and wants no gradients (:func:`as_shipped`).
        inputs: an example.
        dynamic_batch, dynamic_length: whether these sizes are left open.

    Raises:
        InvalidValue: an operation that only foveate knows is in the graph.
    """
    batch = Dim("batch", min=1) if dynamic_batch else None
    lengths: dict[int, Any] = {}
    if dynamic_length:
        axes = {axis for axes in subject.long.values() for axis in axes}
        names = {axis: "length" if len(axes) == 1 else f"length_{axis}" for axis in axes}
        lengths = {axis: _length(names[axis], subject) for axis in axes}
    shapes = {}
    for name in inputs:
        dims: dict[int, Any] = {} if batch is None else {0: batch}
        dims |= {axis: lengths[axis] for axis in subject.long.get(name, ()) if axis in lengths}
        shapes[name] = dims
    args, kwargs = subject.arguments(inputs)
    with backend("torch"), torch.no_grad(), _quiet():
        program = torch.export.export(subject.model, args, kwargs, dynamic_shapes=shapes, strict=False)
    _only_aten(program, subject.name)
    return program


def _length(name: str, subject: Subject) -> Any:
    """The dimension of a length that stays open: all that the grid allows."""
    rule = getattr(getattr(subject.model, "spec", None), "grid", None)
    step, least = (1, 1) if rule is None else (rule.multiple_of, rule.minimum)
    if step == 1:
        return Dim(name, min=max(1, least))
    return step * Dim(f"{name}_in_{step}", min=max(1, -(-least // step)))


def _only_aten(program: ExportedProgram, name: str) -> None:
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            if node.op != "call_function" or _known(node.target):
                continue
            raise InvalidValue(
                f"{name} cannot be exported: its graph holds {node.target}, which torch alone does not know; an op "
                f"needs a form for backend('torch')."
            )


def _known(target: Any) -> bool:
    """Whether torch alone knows an operation: aten, prims, and Python's arithmetic with sizes."""
    namespace = getattr(target, "namespace", None)
    if namespace is not None:
        return namespace in _NAMESPACES
    return target in vars(operator).values() or getattr(target, "__module__", "").split(".")[0] in (
        "math",
        "torch",
        "builtins",
        "_operator",
    )


def unused(program: ExportedProgram) -> set[str]:
    """Names of the inputs that have no influence on the answer."""
    graph = program.graph_module.graph
    reached, waiting = set(), [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            # The batch size may be read off any input: that alone is no influence.
            if node.target is not torch.ops.aten.sym_size.int:
                waiting.extend(node.all_input_nodes)
    idle = {node.name for node in graph.nodes if node.op == "placeholder" and node not in reached}
    return idle & set(program.graph_signature.user_inputs)


# pt2 ----------------------------------------------------------------------------------------------------------------


def pt2_bytes(program: ExportedProgram, facts: Mapping[str, Any]) -> bytes:
    """The file's content."""
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={PT2_ENTRY: json.dumps(facts, indent=1)})
    return buffer.getvalue()


def pt2_runner(content: bytes, subject: Subject) -> Runner:
    """What the file answers, read back from its bytes."""
    with _quiet():
        module = torch.export.load(io.BytesIO(content)).module()

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        args, kwargs = subject.arguments(inputs)
        with torch.no_grad():
            return module(*args, **kwargs)

    return run


# ONNX ---------------------------------------------------------------------------------------------------------------


def onnx_model(program: ExportedProgram, name: str) -> Any:
    """The program as an ``onnx.ModelProto``, without facts.

    Raises:
        InvalidValue: weights that do not fit into one file, or an operation that ONNX does not have.
    """
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if weights > ONNX_LIMIT:
        raise InvalidValue(
            f"{name} cannot be exported to ONNX: its weights take {weights / 2**30:.1f} GiB and an ONNX file holds 2; "
            f"export it as pt2."
        )
    from torch.onnx import OnnxExporterError

    with _quiet(), backend("torch"):
        try:
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False)
        except OnnxExporterError as error:
            raise InvalidValue(f"{name} cannot be exported to ONNX ({_reason(error)}): export it as pt2.") from error
    return made.model_proto


def _reason(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0][:200]


def onnx_bytes(model: Any, facts: Mapping[str, Any]) -> bytes:
    """The file's content: the model with its facts."""
    import onnx

    onnx.helper.set_model_props(model, {ONNX_ENTRY: json.dumps(facts)})
    return model.SerializeToString()


def onnx_runner(content: bytes) -> Runner:
    """What the file answers in onnxruntime, on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        given = {node.name: inputs[node.name].numpy() for node in session.get_inputs()}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def read_facts(file: str | Path) -> dict[str, Any]:
    """What an exported file says about itself, see :func:`foveate.export`.

    Raises:
        InvalidValue: it is no file that foveate exported.
    """
    import zipfile

    file = Path(file)
    if not file.is_file():
        raise InvalidValue(f"{file} is not there: give a file that foveate exported.")
    text = None
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = [n for n in archive.namelist() if n.endswith(f"/{PT2_ENTRY}")]
            text = archive.read(names[0]).decode("utf-8") if names else None
    elif file.suffix == ".onnx":
        check_format("onnx")
        import onnx

        props = {p.key: p.value for p in onnx.load(str(file)).metadata_props}
        text = props.get(ONNX_ENTRY)
    if text is None:
        raise InvalidValue(f"{file} was not exported by foveate: it has no {PT2_ENTRY} in it.")
    return json.loads(text)
