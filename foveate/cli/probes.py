"""Options of the probes, whose samples are drawn: declared as those of other tasks are (:mod:`foveate.cli.options`)."""

from __future__ import annotations

from typing import Annotated

import typer


def drawn(
    test_lengths: Annotated[
        str | None, typer.Option(help="Repeat the test at these lengths, by commas, or none.", show_default="multiples")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Training samples.", show_default="by scale")] = None,
    held_out: Annotated[
        int | None, typer.Option(help="Validation samples, and as many test samples.", show_default="by scale")
    ] = None,
    data_seed: Annotated[int | None, typer.Option(help="Draws the samples.", show_default="0")] = None,
    scale: Annotated[
        str | None, typer.Option(help="Sizes that are not given: small or published.", show_default="small")
    ] = None,
) -> None:
    """What every probe is told."""


def recall_data(
    form: Annotated[str | None, typer.Option(help="mqar (many queries) or single (one).", show_default="mqar")] = None,
    pairs: Annotated[int | None, typer.Option(help="Keys of an MQAR sample.", show_default="by scale")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a sample.", show_default="by scale")] = None,
    vocabulary: Annotated[int | None, typer.Option(help="Different tokens.", show_default="by scale")] = None,
    power: Annotated[
        float | None, typer.Option(help="Law of the distances; 1 is uniform.", show_default="0.01")
    ] = None,
    fill: Annotated[
        str | None, typer.Option(help="zeros or random tokens between queries.", show_default="zeros")
    ] = None,
    stream: Annotated[
        str | None, typer.Option(help="fast, or zoology: the official generator's samples.", show_default="fast")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="Train on answers or everything.", show_default="as published")
    ] = None,
) -> None:
    """What `recall` draws."""


def copying_data(
    form: Annotated[str | None, typer.Option(help="string or delay.", show_default="string")] = None,
    length: Annotated[
        int | None, typer.Option(help="Letters of the longest string, or the delay.", show_default="by scale")
    ] = None,
    shortest: Annotated[int | None, typer.Option(help="Letters of the shortest.", show_default="by scale")] = None,
    count: Annotated[int | None, typer.Option(help="Data tokens before the delay.", show_default="by scale")] = None,
    letters: Annotated[int | None, typer.Option(help="Kinds of data tokens.", show_default="by scale")] = None,
) -> None:
    """What `copying` draws."""


def selective_copying_data(
    length: Annotated[int | None, typer.Option(help="Tokens, noise and data.", show_default="by scale")] = None,
    count: Annotated[int | None, typer.Option(help="Data tokens among them.", show_default="by scale")] = None,
    vocabulary: Annotated[int | None, typer.Option(help="Different tokens.", show_default="16")] = None,
) -> None:
    """What `selective-copying` draws."""


def induction_data(
    length: Annotated[int | None, typer.Option(help="Tokens of a sample.", show_default="by scale")] = None,
    vocabulary: Annotated[int | None, typer.Option(help="Different tokens.", show_default="16")] = None,
) -> None:
    """What `induction` draws."""


def passkey_data(
    form: Annotated[
        str | None, typer.Option(help="tokens (random filler) or text (the published prompt).", show_default="tokens")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a sample.", show_default="by scale")] = None,
    digits: Annotated[int | None, typer.Option(help="Digits of the key.", show_default="by scale")] = None,
    vocabulary: Annotated[
        int | None, typer.Option(help="Different tokens, without text.", show_default="by scale")
    ] = None,
    depths: Annotated[int | None, typer.Option(help="Places of the key in tests.", show_default="by scale")] = None,
) -> None:
    """What `passkey` draws."""


def listops_data(
    length: Annotated[int | None, typer.Option(help="Expressions have fewer tokens.", show_default="by scale")] = None,
    shortest: Annotated[int | None, typer.Option(help="And more than this.", show_default="by scale")] = None,
    max_depth: Annotated[int | None, typer.Option(help="Levels of a tree.", show_default="10")] = None,
    max_args: Annotated[int | None, typer.Option(help="Operands of an operator, at most.", show_default="10")] = None,
) -> None:
    """What `listops` draws."""


def pathfinder_data(
    length: Annotated[
        int | None, typer.Option(help="Edge of an image; its square is read.", show_default="by scale")
    ] = None,
    contour: Annotated[int | None, typer.Option(help="Dashes of a long curve.", show_default="by scale")] = None,
    distractors: Annotated[int | None, typer.Option(help="Short curves.", show_default="by scale")] = None,
) -> None:
    """What `pathfinder` draws."""


def state_tracking_data(
    group: Annotated[str | None, typer.Option(help="parity, s3, a5 or s5.", show_default="s5")] = None,
    length: Annotated[int | None, typer.Option(help="Elements of a sample.", show_default="by scale")] = None,
) -> None:
    """What `state-tracking` draws."""


#: Task to (what its command is about, its options).
PROBES = {
    "recall": ("Recall the values of keys that were read before.", recall_data),
    "copying": ("Say again what was read.", copying_data),
    "selective-copying": ("Say the tokens that stood among noise.", selective_copying_data),
    "induction": ("Say what followed a sign when it was read before.", induction_data),
    "passkey": ("Find a key in a long filler, over depth and length.", passkey_data),
    "listops": ("Compute nested expressions.", listops_data),
    "pathfinder": ("Tell whether two ends belong to one dashed curve.", pathfinder_data),
    "state-tracking": ("Multiply the elements of a group.", state_tracking_data),
}
