"""The command line. Nothing heavy is imported before a verb runs, so that ``--help`` is quick."""

import sys
from typing import Annotated

import typer

from uapray.cli import compact, compare, curve, data, demo, doctor, grid, harden, perturb, results, train, verdict
from uapray.errors import UaprayError

app = typer.Typer(
    name="uapray",
    help="Measure how easily one universal perturbation fools a medical-image classifier, on Ray.",
    epilog="Begin with: uapray demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("harden")(harden.harden)
app.command("perturb")(perturb.perturb)
app.command("curve")(curve.curve)
app.command("evaluate")(perturb.evaluate)
app.add_typer(grid.app, name="grid")
app.command("status")(grid.status)
app.command("compare")(compare.compare)
app.command("query")(results.query)
app.command("verdict")(verdict.verdict)
app.command("report")(results.report)
app.command("compact")(compact.compact)
app.command("doctor")(doctor.doctor)

_debug = False


def _version(asked: bool) -> None:
    if asked:
        from uapray import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def settings(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Measure how easily one universal perturbation fools a medical-image classifier, on Ray."""
    global _debug
    _debug = debug
    assert not version, "it stops before"


def main() -> None:
    """Run the command line; the exit code is 0, 1 for a failed run, 2 for a mistake in the request."""
    try:
        app()
    except UaprayError as error:
        if _debug:
            raise
        _end(str(error), error.exit_code)
    except Exception as error:
        if _debug:
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        _end(f"unexpected {type(error).__name__}: {first}\nuapray --debug … shows where", 1)


def _end(message: str, code: int) -> None:
    typer.echo(f"uapray: {message}", err=True)
    sys.exit(code)
