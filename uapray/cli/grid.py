"""``uapray grid`` and ``uapray status``: many results, each made once."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from uapray.cli import options

if TYPE_CHECKING:
    from uapray.plan import Plan

app = typer.Typer(help="Plan and run grids of trials.", no_args_is_help=True)
GridFile = Annotated[str, typer.Argument(help="The grid: a YAML file, path or s3://…")]


@app.command(epilog="Example: uapray grid plan jobs/chest_xray.yaml --store results/")
def plan(
    grid: GridFile,
    store: Annotated[str | None, typer.Option(help="Where results may stand already.", show_default=False)] = None,
) -> None:
    """Show what would run and what already stands; nothing is written."""
    from uapray.cli import tables
    from uapray.store.results import open_results

    planned = load_plan(grid)
    standing = set() if store is None else open_results(store).judgements()
    nothing = set[tuple[str, str]]()
    judged, judged_left = (
        {(victim.key, source.key): len(trials) for victim, source, trials in planned.transfers(known)}
        for known in (nothing, standing)
    )
    rows = []
    for victim, source, trials in planned.groups():
        left, key = planned.missing(trials, standing), (victim.key, source.key)
        count, to_do = len(trials) + judged.get(key, 0), len(left) + judged_left.get(key, 0)
        gradients = f"{sum(trial.image_gradients() for trial in left):,}"
        rows.append([victim.name, source.name, str(count), str(count - to_do), str(to_do), gradients])
    columns = ["classifier", "data", "trials", "standing", "to do", "image-gradients to do"]
    tables.show(f"grid {planned.grid.name}: {planned.count} trials", columns, rows)


@app.command(epilog="Example: uapray grid run jobs/chest_xray.yaml --store s3://bucket/results --replicas 4")
def run(
    grid: GridFile,
    store: options.Store,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Model replicas of a classifier; a matter of speed alone. Default: all that there is room for.",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials that share a classifier's replicas at once. Default: two a replica.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers of a training.")] = 1,
    cpus: options.Cpus = 1.0,
    gpus: options.Gpus = 0.0,
    part: Annotated[
        str | None,
        typer.Option(help="Run a part of the grid, e.g. 3/8: eight drivers share it.", show_default=False),
    ] = None,
    drivers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Run the grid in so many processes, a part and --replicas each, on a cluster that they share: where "
            "one is the bottleneck, at 70 to 130 GPUs (docs/scale.md).",
            show_default=False,
        ),
    ] = None,
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds between two times that a search under way is kept in the store.")
    ] = 120.0,
    address: options.Address = None,
) -> None:
    """Run what is missing of a grid. Safe to repeat and to interrupt: finished trials are never run again."""
    from uapray.cli.drivers import as_words, check_drivers, run_drivers
    from uapray.cli.running import may_grow, run_with_progress
    from uapray.on_ray.session import knock
    from uapray.resources import Resources
    from uapray.store.results import open_results

    if drivers is not None:
        check_drivers(part=part, replicas=replicas, joined=may_grow(address))
        knock(address)
    results, planned = open_results(store), load_plan(grid)
    if drivers is None:
        resources = Resources(
            replicas=replicas,
            concurrency=concurrency,
            workers=workers,
            cpus=cpus,
            gpus=gpus,
            may_grow=may_grow(address),
        )
        mine = planned.part_named(part)
        summary = run_with_progress(mine, results, resources, address, save_every_s=save_every)
    else:
        each = {"store": store, "replicas": replicas, "concurrency": concurrency, "workers": workers, "cpus": cpus}
        each |= {"gpus": gpus, "save_every": save_every, "address": address}
        command = [sys.executable, "-m", "uapray", "grid", "run", grid, *as_words(each)]
        summary = run_drivers(planned, results, drivers, command)
    typer.echo(f"{summary.done} trials done, {summary.standing} stood already, {summary.failed} failed")
    if summary.failed:
        typer.echo(f"why: uapray query --store {store} 'SELECT * FROM failures'", err=True)
        raise typer.Exit(1)


def status(
    store: options.Store,
    grid: Annotated[
        str | None, typer.Option(help="Grid file, to tell what is still to do.", show_default=False)
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to ask as well: auto, ray://host:port or host:port.", show_default=False),
    ] = None,
) -> None:
    """Show what is done, running, failed and why, and to do, as of the latest run of each grid or part of it.

    All of it comes from the store; ``--address`` asks the cluster too.

    Example: uapray status --store results/ --grid jobs/chest_xray.yaml
    """
    from datetime import UTC, datetime

    from uapray.cli import tables
    from uapray.experiment import unmended
    from uapray.query import query
    from uapray.store.results import open_results
    from uapray.store.runs import latest_notes

    results = open_results(store)
    done = query(
        results,
        "SELECT grid, count(DISTINCT trial_id) AS trials, count(*) AS rows, max(finished_at) AS latest "
        "FROM trials GROUP BY grid",
    ).to_pylist()
    by_grid = {one["grid"]: one for one in done}
    failed = unmended(results)
    notes = latest_notes(results.objects, now := datetime.now(UTC))
    rows = []
    for name in sorted({*by_grid, *(note.grid for note in notes), *(one["grid"] for one in failed)}):
        one, mine = by_grid.get(name), [note for note in notes if note.grid == name]
        rows.append(
            [
                name,
                str(one["trials"] if one else 0),
                str(sum(note.under_way for note in mine if note.running(now))),
                str(sum(failure["grid"] == name for failure in failed)),
                str(sum(note.to_do for note in mine)) if mine else "–",
                f"{one['rows']}" if one else "0",
                f"{one['latest']:%Y-%m-%d %H:%M} UTC" if one else "–",
            ]
        )
    if rows:
        tables.show(store, ["grid", "trials done", "running", "failed", "to do", "rows", "latest"], rows)
    else:
        typer.echo(f"{store}: no results yet")
    if failed:
        why = [
            [one["trial_id"], one["step"], f"{one['error']}: {one['message'][:80]}", str(one["attempt"])]
            for one in failed[:20]
        ]
        tables.show(f"failed, the latest {len(why)} of {len(failed)}", ["step key", "step", "why", "attempt"], why)
    running_now = [
        [
            note.grid if note.of == 1 else f"{note.grid} {note.part}/{note.of}",
            f"{note.replicas.get('uapray_replicas', 0):.0f}",
            f"{note.replicas.get('uapray_replicas_busy_share', 0):.0%}",
            f"{note.image_gradients / max(note.seconds, 1):,.0f}",
            f"{note.replicas.get('uapray_replicas_lost', 0):.0f}",
            str(note.store_errors),
        ]
        for note in notes
        if note.running(now)
    ]
    if running_now:
        columns = ["grid", "replicas", "busy", "image-gradients/s", "replicas lost", "store errors"]
        tables.show("running", columns, running_now)
    if address is not None:
        from uapray.on_ray.session import session, usage

        with session(address):
            used = usage()
        rows_of = [[one.name, f"{one.used:g}", f"{one.held:g}"] for one in used]
        tables.show(f"cluster {address}", ["resource", "in use", "held"], rows_of)
    if grid is not None:
        planned = load_plan(grid)
        left = planned.to_do(results.judgements())
        typer.echo(f"to do of {planned.grid.name}: {left} of {planned.count} trials")


def load_plan(grid: str) -> "Plan":
    """Read a grid file and work out its steps."""
    with _no_collecting():
        from uapray.grid import parse_grid
        from uapray.objects import read_uri
        from uapray.plan import plan_grid

        return plan_grid(parse_grid(read_uri(grid), origin=grid), base=grid.rpartition("/")[0])


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Let nobody look for garbage among what stays: of 100,000 trials that is a tenth of the time."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()
