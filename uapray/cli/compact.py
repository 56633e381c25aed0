"""``uapray compact``: many small objects into few large ones."""

from typing import Annotated

import typer

from uapray.cli import options


def compact(
    store: options.Store,
    grid: Annotated[str | None, typer.Option(help="One grid only.", show_default=False)] = None,
) -> None:
    """Fold the many small objects of a store into few large ones; every row is kept.

    Runs, queries and other compactions may go on meanwhile, and it may be killed at any time and be called again.
    Readers other than uapray may see rows twice until it has ended.

    Example: uapray compact --store s3://bucket/results
    """
    from uapray.cli import tables
    from uapray.errors import StoreError
    from uapray.store.compaction import compact, grids
    from uapray.store.results import open_results

    objects = open_results(store).objects
    there = grids(objects)
    if grid is not None and grid not in there:
        raise StoreError(f"{store}: no grid {grid!r}; there are: {', '.join(sorted(there)) or 'none'}")
    if not there:
        typer.echo(f"{store}: no results yet")
        return
    objects.check()
    done = [tally for tally in compact(objects, grid) if tally.before]
    rows = [[tally.table, str(tally.steps), str(tally.before), str(tally.after)] for tally in done]
    tables.show(store, ["table", "steps", "objects before", "objects after"], rows)
