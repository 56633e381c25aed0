"""``uapray demo``: the whole chain on synthetic images, in minutes on a laptop."""

from typing import Annotated

import typer

from uapray.cli import options

GRID = """
name: demo
data:
  - uri: phantom:chest
classifiers:
  - architecture: tiny-cnn
    initial_weights: random
    recipe: {base: quick, epochs: 12}
targets: [nontargeted, all]
splits: [test]
"""


def demo(
    out: Annotated[str, typer.Option(help="Folder for the results and the report.")] = "uapray-demo",
    replicas: options.Replicas = 2,
    address: options.Address = None,
) -> None:
    """Train, perturb, control, judge, store and report, on synthetic chest-radiograph phantoms.

    Example: uapray demo
    """
    from uapray.cli.running import run_with_progress
    from uapray.cli.tables import interval, percent, show
    from uapray.grid import parse_grid
    from uapray.objects import write_uri
    from uapray.plan import plan_grid
    from uapray.query import query
    from uapray.report.page import write_report
    from uapray.resources import Resources
    from uapray.store.results import open_results

    store = f"{out}/store"
    results = open_results(store)
    run_with_progress(plan_grid(parse_grid(GRID, origin="demo")), results, Resources(replicas=replicas), address)
    write_uri(f"{out}/report.html", write_report(results, grid="demo").encode())
    asked = query(
        results, "SELECT * FROM trials WHERE grid = 'demo' ORDER BY target NULLS FIRST, rule = 'random'"
    ).to_pylist()
    rows = [
        [
            ("random control" if one["rule"] == "random" else one["rule"])
            + (f" → {one['target']}" if one["target"] else ""),
            interval(one["fooling_rate"], (one["fooling_rate_low"], one["fooling_rate_high"])),
            percent(one["fooling_rate_ceiling"]),
            percent(one["targeted_success_rate"]),
            percent(one["targeted_success_rate_non_target"]),
            percent(one["robust_accuracy"]),
        ]
        for one in asked
    ]
    first = asked[0]
    columns = ["perturbation", "fooling rate [95 %]", "ceiling", "targeted", "of non-targets", "accuracy"]
    note = (
        f"SYNTHETIC images; clean accuracy {percent(first['clean_accuracy'])} on {first['images']} test images; "
        f"linf, zeta {first['zeta']:g} = {first['xi_grey']:.1f} grey levels"
    )
    show("demo: one perturbation for all images", columns, rows, note)
    typer.echo(f"report  {out}/report.html\nstore   {store}")
    typer.echo(f'ask it  uapray query --store {store} "SELECT rule, target, fooling_rate FROM trials"')
