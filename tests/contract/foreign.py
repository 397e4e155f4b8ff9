"""Exported files run where there is no foveate: in one process that cannot import it, kept for the whole session."""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from .checking import Broken

#: What the process runs: it reads one request per line and answers with one line.
_CHILD = """
import json, sys

class NoFoveate:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "foveate":
            raise ImportError("this process has no foveate")

sys.meta_path.insert(0, NoFoveate())
import torch
from safetensors.torch import load_file, save_file

def pt2(file):
    module = torch.export.load(file).module()
    return lambda first, named: module(first[1], **named)

def onnx(file):
    import onnxruntime
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    def run(first, named):
        given = {first[0]: first[1], **named}
        return torch.from_numpy(session.run(None, {name: given[name].numpy() for name in names})[0])
    return run

for line in sys.stdin:
    asked = json.loads(line)
    try:
        run = (onnx if asked["file"].endswith(".onnx") else pt2)(asked["file"])
        for inputs, answer in zip(asked["inputs"], asked["answers"]):
            given = load_file(inputs)
            first, *others = asked["names"]
            with torch.no_grad():
                y = run((first, given[first]), {name: given[name] for name in others})
            save_file({"y": y.contiguous()}, answer)
        said = {}
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error}"[:600]}
    print(json.dumps({**said, "foveate": "foveate" in sys.modules}), flush=True)
"""


class Foreign:
    """A process without foveate that runs exported files."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.noise = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-W", "ignore", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.noise,
            text=True,
        )

    def run(self, file: Path, calls: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """The file's answers to named inputs, the first by place."""
        place = Path(self.folder.name)
        inputs = [str(place / f"in{i}.safetensors") for i in range(len(calls))]
        answers = [str(place / f"out{i}.safetensors") for i in range(len(calls))]
        for path, call in zip(inputs, calls, strict=True):
            save_file({name: x.contiguous() for name, x in call.items()}, path)
        asked = {"file": str(file), "names": list(calls[0]), "inputs": inputs, "answers": answers}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.noise.seek(0)
            raise Broken(f"the process that runs exported files ended: {self.noise.read()[-600:]!r}")
        said = json.loads(line)
        if said["foveate"]:
            raise Broken("the exported file brought foveate into a process that has none")
        if "error" in said:
            raise Broken(f"without foveate the exported file fails: {said['error']}")
        return [load_file(answer)["y"] for answer in answers]

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


@functools.cache
def foreign() -> Foreign:
    """The process of this session."""
    made = Foreign()
    atexit.register(made.end)
    return made
