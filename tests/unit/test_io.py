"""Files that survive a kill: what is on the disk is the old content or the new one, whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate import files
from foveate.errors import InvalidType, InvalidValue
from foveate.files import append_line, atomic_write, plain, read_json, read_jsonl, write_json, write_jsonl
from foveate.tasks.io import flatten, load_tensors, save_tensors, unflatten


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(file, {"a": float("nan")})

    def full(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_json(file, {"a": 2})
    assert read_json(file) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"], "no temporary file stays"


def test_content_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut leaves an empty file under the right name."""
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    atomic_write(tmp_path / "a", "text")
    assert order == ["fsync", "replace", "fsync"]
    order.clear()
    append_line(tmp_path / "b", {"x": 1})
    assert order == ["fsync"]


def test_lines_and_a_torn_one(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    assert read_jsonl(file) == []
    for i in range(3):
        append_line(file, {"i": i})
    with file.open("ab") as stream:
        stream.write(b'{"i": 3')
    assert [r["i"] for r in read_jsonl(file)] == [0, 1, 2]
    assert file.read_bytes().endswith(b'{"i": 3'), "reading alone repairs nothing"
    read_jsonl(file, repair=True)
    append_line(file, {"i": 4})
    assert [r["i"] for r in read_jsonl(file)] == [0, 1, 2, 4]
    write_jsonl(file, [{"i": 9}])
    assert read_jsonl(file) == [{"i": 9}]
    file.write_bytes(b'{"i": 0}\n{"i"\n{"i": 2}\n')
    with pytest.raises(InvalidValue, match=r"log\.jsonl is damaged: line 2 is not JSON"):
        read_jsonl(file)


def test_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    given = {
        "whole": base,
        "tied": base,
        "view": base[1:3],
        "transposed": base.t(),
        "half": torch.randn(3).bfloat16(),
        "empty": torch.empty(0, 2),
        "scalar": torch.tensor(3),
        "bool": torch.tensor([True, False]),
    }
    about = {"x": 0.1 + 0.2, "list": [1, None, "text"], "nan": float("inf")}
    save_tensors(tmp_path / "t.safetensors", given, about)
    back, metadata = load_tensors(tmp_path / "t.safetensors")
    assert back.keys() == given.keys()
    for name, tensor in given.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
        assert back[name].data_ptr() % 64 == 0 or not tensor.numel(), "aligned as torch aligns"
    assert metadata == about
    assert (tmp_path / "t.safetensors").stat().st_size < 4096, "a view is stored without its base"


def test_what_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with pytest.raises(InvalidValue, match=r"x\.safetensors is missing"):
        load_tensors(file)
    torch.save({"a": torch.zeros(2)}, file)
    with pytest.raises(InvalidValue, match=r"x\.safetensors is not a safetensors file, or it is damaged"):
        load_tensors(file)
    with pytest.raises(InvalidValue, match=r"nothing\.json cannot be read: No such file"):
        read_json(tmp_path / "nothing.json")


def test_optimiser_state_is_flattened_without_pickle() -> None:
    weight = torch.nn.Parameter(torch.randn(3))
    for optimizer in (
        torch.optim.AdamW([weight]),
        torch.optim.SGD([weight], 0.1, momentum=0.9),
        torch.optim.LBFGS([weight]),
    ):
        for _ in range(3):
            optimizer.zero_grad()
            weight.square().sum().backward()
            optimizer.step(lambda: weight.square().sum())  # type: ignore[arg-type]
        state = optimizer.state_dict()
        tensors: dict[str, torch.Tensor] = {}
        structure = json.loads(json.dumps(flatten(state, tensors, "o")))
        back = unflatten(structure, tensors)
        assert str(back) == str(state)
        optimizer.load_state_dict(back)


def test_what_cannot_be_stored_is_named() -> None:
    with pytest.raises(InvalidType, match="state/a/1 is a set, which cannot be stored: tensors and plain values can"):
        flatten({"a": [1, {2}]}, {}, "state")
    value = {"t": (1, (2.5, None)), 3: "x", "empty": {}}
    assert unflatten(json.loads(json.dumps(flatten(value, {}, "p"))), {}) == value


def test_plain_values() -> None:
    assert plain({"a": torch.tensor([1.0, float("nan")]), 2: (1, float("inf")), "p": Path("x")}) == {
        "a": [1.0, None],
        "2": [1, None],
        "p": "x",
    }
    assert files.plain(True) is True
