"""How the searches went: the best rate so far against the image-gradients spent."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uapray.query import query
from uapray.store.results import Results
from uapray.trials_sql import each_trial

MAX_FIGURES = 12
MAX_LINES = 12

Kind = tuple[str | None, str, float | None, str | None]  # target, rule, step in grey levels, source
Course = tuple[NDArray[np.int64], NDArray[np.float64]]  # image-gradients, best rate so far


@dataclass(frozen=True, slots=True)
class Line:
    """The searches of one rule towards one target, from one set of images.

    Attributes:
        rule: Update rule.
        step_grey: Length of one step in grey levels where that tells lines apart, else None.
        source: What the searches were made from where that tells lines apart, else None.
        target: Class name; None: nontargeted.
        searches: How many there are.
        image_gradients: int64 ``(n,)``.
        median: Best rate so far, over searches, ``(n,)``.
        low: The lowest of the searches, ``(n,)``.
        high: The highest of the searches, ``(n,)``.
    """

    rule: str
    step_grey: float | None
    source: str | None
    target: str | None
    searches: int
    image_gradients: NDArray[np.int64]
    median: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curves:
    """The lines of one data set, classifier, norm and radius, either nontargeted or targeted.

    Attributes:
        place: From 1, in the order of settings.
        places: How many such figures there are.
        left_out: Lines that are not shown.
    """

    place: int
    places: int
    data: str
    classifier: str
    norm: str
    zeta: float | None
    xi_grey: float
    targeted: bool
    lines: tuple[Line, ...]
    left_out: int


def curves(results: Results, grid: str | None) -> tuple[Curves, ...]:
    """Return the figures that go on the page."""
    found = query(results, _courses_sql(grid, f"place <= {MAX_FIGURES}")).to_pylist()
    return tuple(_curves(list(rows)) for _, rows in groupby(found, lambda row: row["place"]))


def rest_sql(grid: str | None, shown: int) -> str:
    """Return the SQL for the courses of the figures after the first ones."""
    return _courses_sql(grid, f"place > {shown}")


def over_searches(courses: Sequence[Course]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Put courses on one axis, from where all have begun; a rate holds until the next measurement.

    Args:
        courses: Image-gradients, rising, and the best rate so far; one pair a search.

    Returns:
        Image-gradients ``(n,)`` and the rates ``(searches, n)``.
    """
    begun = max(gradients[0] for gradients, _ in courses)
    axis = np.unique(np.concatenate([gradients for gradients, _ in courses]))
    axis = axis[axis >= begun]
    held = [rates[np.searchsorted(gradients, axis, side="right") - 1] for gradients, rates in courses]
    return axis, np.stack(held)


def _courses_sql(grid: str | None, which: str) -> str:
    """Return the SQL for the course of every search that took gradients, by figure."""
    return f"""\
WITH each AS (
  {each_trial(grid)}
), searches AS (  -- judged on several splits or classifiers, a search still went once, where it was made
  SELECT DISTINCT ON (trial_id) * EXCLUDE (image_gradients, fooling_rate) FROM each WHERE rule <> 'random'
  ORDER BY made_on IS DISTINCT FROM classifier
), measured AS (
  SELECT trial_id, image_gradients, max(coalesce(targeted_success_rate, fooling_rate)) AS rate
  FROM history WHERE image_gradients > 0 GROUP BY ALL HAVING rate IS NOT NULL
), courses AS (
  SELECT *, max(rate) OVER (PARTITION BY trial_id ORDER BY image_gradients) AS best_so_far,
    dense_rank() OVER (ORDER BY data, classifier, classifier_sha256, norm, zeta NULLS LAST, setting.xi,
      setting.xi_from, target IS NOT NULL) AS place
  FROM searches JOIN measured USING (trial_id)
)
SELECT place, (SELECT max(place) FROM courses) AS places, data, classifier, norm, zeta, xi_grey, target, rule,
  255 * epsilon AS step_grey, source, seed, trial_id, image_gradients, best_so_far
FROM courses WHERE {which}
ORDER BY place, target NULLS FIRST, rule, epsilon, source, trial_id, image_gradients"""


def _curves(rows: Sequence[Mapping[str, Any]]) -> Curves:
    first = rows[0]
    kinds = [(kind, list(of_kind)) for kind, of_kind in groupby(rows, _kind)]
    steps = Counter((target, rule) for target, rule, _ in {kind[:3] for kind, _ in kinds})
    sources = Counter((target, rule) for target, rule, _ in {(*kind[:2], kind[3]) for kind, _ in kinds})
    lines = [
        _line(kind, of_kind, step=steps[kind[:2]] > 1, source=sources[kind[:2]] > 1)
        for kind, of_kind in kinds[:MAX_LINES]
    ]
    return Curves(
        place=first["place"],
        places=first["places"],
        data=first["data"],
        classifier=first["classifier"],
        norm=first["norm"],
        zeta=first["zeta"],
        xi_grey=first["xi_grey"],
        targeted=first["target"] is not None,
        lines=tuple(lines),
        left_out=len(kinds) - len(lines),
    )


def _kind(row: Mapping[str, Any]) -> Kind:
    return row["target"], row["rule"], row["step_grey"], row["source"]


def _line(kind: Kind, rows: Sequence[Mapping[str, Any]], *, step: bool, source: bool) -> Line:
    target, rule, step_grey, made_from = kind
    courses = []
    for _, of_search in groupby(rows, lambda row: row["trial_id"]):
        course = [(row["image_gradients"], row["best_so_far"]) for row in of_search]
        courses.append((np.array([at for at, _ in course]), np.array([rate for _, rate in course])))
    axis, rates = over_searches(courses)
    return Line(
        rule=rule,
        step_grey=step_grey if step else None,
        source=made_from if source else None,
        target=target,
        searches=len(courses),
        image_gradients=axis,
        median=np.median(rates, axis=0),
        low=rates.min(axis=0),
        high=rates.max(axis=0),
    )
