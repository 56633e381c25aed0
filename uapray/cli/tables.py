"""Tables for people."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def percent(share: float | None) -> str:
    """Return a share as per cent, a dash for none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def interval(share: float, limits: tuple[float, float]) -> str:
    """Return a share with its interval."""
    return f"{100 * share:.1f} % [{100 * limits[0]:.1f}, {100 * limits[1]:.1f}]"


def p_value(p: float | None) -> str:
    """Return a p-value, a dash for none."""
    return "–" if p is None else f"{p:.2g}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Print a table on standard output, with a line under it."""
    table = Table(header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(width=None if Console().is_terminal else 130)
    console.print(f"[bold]{escape(title)}[/bold]")
    console.print(table)
    if note:
        console.print(escape(note), style="dim")
