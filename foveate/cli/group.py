"""Groups of commands that name the nearest one when the name is unknown."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import unknown_name


class Verbs(TyperGroup):
    """Commands; an unknown one ends in a sentence with the nearest names."""

    what = "command"

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise unknown_name(self.what, name, self.list_commands(ctx))
        return super().resolve_command(ctx, args)


class Tasks(Verbs):
    """Commands named after tasks."""

    what = "task"


def tasks_app(help: str) -> typer.Typer:
    """A group whose commands are tasks: ``foveate compare forecast ...``."""
    return typer.Typer(cls=Tasks, help=help, no_args_is_help=True, rich_markup_mode=None)
