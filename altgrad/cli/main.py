"""The program `altgrad`: its commands, each in a file of its own, imported without torch.

Only what a command needs is loaded when it runs, so that help, completion and `formats` answer at once.
"""

import os
import signal
import threading
from types import FrameType
from typing import Annotated, NoReturn

import typer

from altgrad import __version__
from altgrad.cli import console, formats, recipes, runs, schema
from altgrad.cli.compare import compare
from altgrad.cli.diagnose import diagnose
from altgrad.cli.doctor import doctor
from altgrad.cli.evaluate import evaluate
from altgrad.cli.export import export
from altgrad.cli.init import init
from altgrad.cli.kinds import kinds
from altgrad.cli.mismatch import mismatch
from altgrad.cli.policy import policy
from altgrad.cli.progress import shown
from altgrad.cli.quantize_model import quantize_model
from altgrad.cli.report import report
from altgrad.cli.sweep import sweep
from altgrad.cli.sync import sync
from altgrad.cli.train import train
from altgrad.cli.usage import Commands, Program
from altgrad.cli.watch import watch

app = Program(
    cls=Commands,
    help="A wind tunnel for low-precision training: any ExMy format, any place a tensor enters it, watched bit by bit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich is a third of what `--help` may take
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(init)
app.command()(train)
app.command()(sweep)
app.command()(watch)
app.command()(evaluate)
app.command()(mismatch)
app.command()(export)
app.command()(policy)
app.command("quantize-model")(quantize_model)
app.command()(compare)
app.command()(report)
app.command()(diagnose)
app.command()(sync)
app.command()(kinds)
app.command()(doctor)
app.add_typer(runs.app, name="runs")
app.add_typer(formats.app, name="formats")
app.add_typer(recipes.app, name="recipes")
app.add_typer(schema.app, name="schema")


def _version(wanted: bool) -> None:
    if wanted:
        console.say(f"altgrad {__version__}")
        raise typer.Exit


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Out at once, by way of every `finally`; a training run and a sweep have better manners of their own."""
    console.fail("stopped by SIGTERM.", 75)


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A wind tunnel for low-precision training."""
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, _end)
        context.call_on_close(lambda: signal.signal(signal.SIGTERM, before))
    context.with_resource(shown(f"altgrad {context.invoked_subcommand}"))


def main() -> None:
    """Entry point of the console script."""
    if "_ALTGRAD_COMPLETE" in os.environ:  # the tab key: whoever gives up waiting wants no traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    app()


if __name__ == "__main__":
    main()
