"""``uapray query`` and ``uapray report``: asking and looking."""

import sys
from typing import Annotated, Literal

import typer

from uapray.cli import options


def query(
    sql: Annotated[
        str,
        typer.Argument(help="A SELECT over trials, controls, renderings, classes, images, …; SHOW TABLES names all."),
    ],
    store: options.Store,
    form: Annotated[
        Literal["table", "csv", "json", "parquet"], typer.Option("--format", help="How rows are written.")
    ] = "table",
) -> None:
    """Ask the results with SQL, in a folder or in S3; read-only.

    Example: uapray query --store results/ "SELECT rule, target, avg(fooling_rate) FROM trials GROUP BY ALL"
    """
    from uapray import query as asking
    from uapray.store.results import open_results

    results = open_results(store)
    answer = asking.query(results, sql)
    sys.stdout.buffer.write(asking.format_table(answer, form))
    sys.stdout.flush()
    if not answer.num_rows and not results.keys("trials"):
        typer.echo(f"{store}: no results yet", err=True)


def report(
    store: options.Store,
    out: Annotated[str, typer.Option(help="The .html to write.")] = "report.html",
    grid: Annotated[str | None, typer.Option(help="One grid only.", show_default=False)] = None,
) -> None:
    """Write one self-contained HTML page: the table, the pictures, the curves.

    Example: uapray report --store results/ --out report.html
    """
    from uapray.objects import write_uri
    from uapray.report.page import write_report
    from uapray.store.results import open_results

    write_uri(out, write_report(open_results(store), grid=grid).encode())
    typer.echo(out)
