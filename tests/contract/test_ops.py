"""Every registered op says what it computes, has a readable definition, and answers alike on every backend.

Values are held against the definition through the mixers (``backends_agree``) and in the ops' own unit tests.
"""

from __future__ import annotations

import ast
import inspect

import pytest

import foveate
from foveate.errors import InvalidType
from foveate.registry import Entry, entries

OPS = entries("op")
each_op = pytest.mark.parametrize("entry", OPS, ids=lambda entry: entry.name)


@each_op
def test_docstring_has_what_a_user_needs(entry: Entry) -> None:
    op = entry.load()
    doc = inspect.getdoc(op) or ""
    for section in ("Args:", "Returns:"):
        assert section in doc, f"{entry.name}: the docstring has no {section}"
    unnamed = [name for name in inspect.signature(op).parameters if not _names(doc, name)]
    assert not unnamed, f"{entry.name}: the docstring does not say what {', '.join(unnamed)} is"


def _names(doc: str, parameter: str) -> bool:
    arguments = doc.partition("Args:")[2].partition("Returns:")[0]
    heads = (line.strip().split(":")[0] + " " + line for line in arguments.splitlines() if ":" in line)
    return any(parameter in head.replace(",", " ").replace("`", " ").replace(";", " ").split() for head in heads)


@each_op
def test_has_a_readable_definition(entry: Entry) -> None:
    tree = ast.parse(entry.file.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    chooses = any(
        isinstance(node, ast.Call) and getattr(node.func, "id", "") == "choose"
        for function in functions
        if function.name == entry.attribute
        for node in ast.walk(function)
    )
    reference = [f.name for f in functions if "reference" in f.name]
    assert reference or not chooses, f"{entry.name} has fast forms, but {entry.file.name} defines no reference"


@each_op
def test_is_created_as_the_function_itself(entry: Entry) -> None:
    assert foveate.create(entry.name, kind="op") is entry.load()
    with pytest.raises(InvalidType, match=f"'{entry.name}' takes tensors"):
        foveate.create(entry.name, kind="op", scale=1.0)


def test_ops_are_stateless_functions() -> None:
    for entry in OPS:
        op = entry.load()
        assert inspect.isfunction(op), f"{entry.name} is a {type(op).__name__}, not a function"
