"""The report: one page of HTML that needs nothing but itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from itertools import groupby

from jinja2 import Environment, StrictUndefined, Template

from uapray import __version__
from uapray.defence import defences
from uapray.report import controls, curves, facts, flows, patients, pictures, plots, wording, zetas
from uapray.report.rates import RateRow, rates, rates_sql
from uapray.report.snapshot import snapshot
from uapray.store.results import Results
from uapray.verdict import verdicts

MAX_ROWS = 1000


@dataclass(frozen=True, slots=True)
class RateGroup:
    """Rows of the table that share a data set, a split and a classifier."""

    data: str
    split: str
    images: int
    classifier: str
    rows: tuple[RateRow, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves, how each line is drawn, and the drawing."""

    curves: curves.Curves
    rate_name: str
    strokes: tuple[plots.Stroke, ...]
    svg: str


def write_report(results: Results, *, grid: str | None = None) -> str:
    """Return one page of HTML about a grid, or about all: rates, claims, pictures, curves, patients, flows, failures.

    The page asks for nothing from anywhere: pictures and plots are inside, there is no script and no font.

    Args:
        results: The store.
        grid: One grid only.

    Raises:
        StoreError: If there is no trial, or the store cannot be read.
    """
    results = snapshot(results)
    results.expect_trials("to report on", grid)
    rows = rates(results, grid)
    panels, flows_shown = pictures.panels(results, grid), flows.flows(results, grid)
    zetas_shown = zetas.zetas(results, grid)
    claims = verdicts(results, grid=grid)
    patients_shown = patients.patients(results, grid)
    plots_shown = [_plot(index, one) for index, one in enumerate(curves.curves(results, grid))]
    return _template().render(
        written=datetime.now(UTC),
        version=__version__,
        store=results.objects.uri,
        grid=grid,
        facts=facts.facts(results, grid),
        rows=len(rows),
        groups=_grouped(rows[:MAX_ROWS]),
        max_rows=MAX_ROWS,
        sql=rates_sql(grid),
        controls=controls.controls(results, grid),
        max_controls=controls.MAX_ROWS,
        controls_rest=controls.rest_sql(grid),
        panels=panels,
        panels_rest=pictures.rest_sql(grid, len(panels)),
        zetas=zetas_shown,
        zetas_rest=zetas.rest_sql(grid, len(zetas_shown)),
        zeta_strokes=tuple(map(plots.stroke, range(zetas.MAX_LINES))),
        plots=plots_shown,
        plots_rest=curves.rest_sql(grid, len(plots_shown)),
        verdicts=claims,
        answered=any(one.left_out or one.answer != "not enough data" for one in claims),
        patients=patients_shown,
        patients_rest=patients.rest_sql(grid, len(patients_shown)),
        defences=defences(results, grid=grid),
        flows=flows_shown,
        flows_rest=flows.rest_sql(grid, len(flows_shown)),
        failures=facts.failures(results, grid),
        failures_sql=facts.failures_sql(grid),
    )


def _grouped(rows: Sequence[RateRow]) -> list[RateGroup]:
    groups = []
    for _, some in groupby(rows, lambda row: (row.data, row.classifier, row.classifier_sha256, row.split)):
        of_group = tuple(some)
        first = of_group[0]
        groups.append(RateGroup(first.data, first.split, first.images, first.classifier, of_group))
    return groups


def _plot(index: int, drawn: curves.Curves) -> Plot:
    rate_name = "targeted success rate" if drawn.targeted else "fooling rate"
    return Plot(
        curves=drawn,
        rate_name=rate_name,
        strokes=tuple(map(plots.stroke, range(len(drawn.lines)))),
        svg=plots.curve_svg(drawn.lines, rate_name=rate_name, prefix=f"plot{index}-"),
    )


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=wording.percent, css=wording.css, count=wording.count, plural=wording.plural)
    environment.globals.update(
        radius=wording.radius, grey_levels=wording.grey_levels, between=wording.between, change=wording.change
    )
    return environment.from_string(files(__package__).joinpath("template.html").read_text(encoding="utf-8"))
