"""``foveate``: entry point, verbs, and how errors end."""

from __future__ import annotations

import gc
import sys
import warnings
from typing import Annotated, Any

import typer

from ..errors import FoveateError
from ..sources import PluginWarning
from . import ask, bench, browse, compare, predict, probe_video, verify
from . import export as export_
from . import generate as generate_
from . import look as look_
from . import score as score_
from .group import Verbs

app = typer.Typer(
    cls=Verbs,
    name="foveate",
    help="Attention over time and space: published systems, compared honestly on your own data.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"foveate {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


app.add_typer(compare.compare_app, name="compare")
app.add_typer(compare.train_app, name="train")
app.command("predict")(predict.predict)
app.command("generate")(generate_.generate)
app.command("export")(export_.export)
app.command("look")(look_.look)
app.command("push")(predict.push)
app.command("leaderboard")(compare.leaderboard)
app.command("list")(browse.list_)
app.command("show")(browse.show)
app.command("cite")(browse.cite)
app.command("verify")(verify.verify)
app.command("score")(score_.score)
app.command("ask")(ask.ask)
app.command("probe-video")(probe_video.probe_video)
app.command("bench")(bench.bench)
app.command("doctor")(browse.doctor)


def _warn(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """What is wrong with a plug-in is one sentence; any other warning looks as usual."""
    if issubclass(category, PluginWarning):
        print(f"foveate: warning: {message}", file=sys.stderr)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, *place[:2]))


def main() -> None:
    """Run the command line; what the user got wrong ends in one sentence and exit status 2, never a traceback."""
    warnings.showwarning = _warn
    try:
        app()
    except FoveateError as error:
        print(f"foveate: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("foveate: interrupted; the same command goes on where it stopped.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away: head, less
        sys.stderr.close()
        sys.exit(141)
    finally:
        gc.freeze()  # a third of a second less: the interpreter does not look through torch for garbage when it ends


if __name__ == "__main__":
    main()
