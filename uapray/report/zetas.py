"""Curves over zeta: how large a perturbation must be to fool half."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from uapray.query import query
from uapray.report.zeta_plot import zeta_svg
from uapray.store.results import Results
from uapray.trials_sql import of_grid

MAX_FIGURES = 12
MAX_LINES = 12


@dataclass(frozen=True, slots=True)
class ZetaLine:
    """One curve; zetas are shares, rates of all images."""

    classifier: str
    target: str | None
    rule: str
    seed: int
    xi_from: str | None  # None: from whole images
    zetas: list[float]
    rates: list[float]
    zeta50: float | None
    zeta50_low: float
    zeta50_high: float | None
    zeta50_of_ceiling: float | None


@dataclass(frozen=True, slots=True)
class ZetaFigure:
    """The curves of one data set, split and norm.

    Attributes:
        left_out: Curves that are not shown.
        places: How many such figures there are.
        svg: The drawing.
    """

    data: str
    split: str
    norm: str
    lines: tuple[ZetaLine, ...]
    left_out: int
    places: int
    svg: str


def zetas(results: Results, grid: str | None) -> tuple[ZetaFigure, ...]:
    """Return the figures that go on the page, the controls' curves last."""
    found = query(results, _sql(grid, f"place <= {MAX_FIGURES}")).to_pylist()
    return tuple(_figure(place, list(rows)) for place, rows in groupby(found, lambda row: row["place"]))


def rest_sql(grid: str | None, shown: int) -> str:
    """Return the SQL for the curves of the figures after the first ones."""
    return _sql(grid, f"place > {shown}")


def _sql(grid: str | None, which: str) -> str:
    return f"""\
WITH each AS (
  SELECT DISTINCT ON (trial_ids, classifier_sha256, data_sha256, split) *
  FROM curves{of_grid(grid)} ORDER BY finished_at DESC
), placed AS (
  SELECT *, dense_rank() OVER (ORDER BY data, data_sha256, split, norm) AS place FROM each
)
SELECT place, (SELECT max(place) FROM placed) AS places, data, split, norm, classifier, target, rule, seed,
  nullif(xi_from, 'whole-images') AS xi_from, zetas, rates, zeta50, zeta50_low, zeta50_high, zeta50_of_ceiling
FROM placed WHERE {which}
ORDER BY place, rule = 'random', classifier, target NULLS FIRST, rule, seed, xi_from NULLS FIRST, trial_ids"""


def _figure(place: int, rows: list[dict[str, Any]]) -> ZetaFigure:
    names = ZetaLine.__dataclass_fields__
    lines = tuple(ZetaLine(**{name: row[name] for name in names}) for row in rows[:MAX_LINES])
    return ZetaFigure(
        data=rows[0]["data"],
        split=rows[0]["split"],
        norm=rows[0]["norm"],
        lines=lines,
        left_out=len(rows) - len(lines),
        places=rows[0]["places"],
        svg=zeta_svg([(line.zetas, line.rates, line.zeta50) for line in lines], prefix=f"zeta{place}-"),
    )
