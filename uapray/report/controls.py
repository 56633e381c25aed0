"""What chance does: each search beside draws of every kind of matched control."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from uapray.attack.control import matched_controls
from uapray.query import query
from uapray.store.results import Results
from uapray.trials_sql import MADE_HERE, each_trial

MAX_ROWS = 60
KINDS = list(matched_controls(2.0))
CHANCE = ("kind", "mean", "highest", "p_value")
LIKELY = 0.05  # above it the page warns


@dataclass(frozen=True, slots=True)
class Chance:
    """Draws of one kind, by the rate that the search was to raise; None where that is undefined."""

    kind: str
    mean: float | None
    highest: float | None
    p_value: float | None

    @property
    def likely(self) -> bool:
        """Whether chance may well have done it."""
        return self.p_value is not None and self.p_value > LIKELY


@dataclass(frozen=True, slots=True)
class ControlRow:
    """One search on one split.

    Attributes:
        rate: Of the perturbation on the images that the draws were judged on.
        kinds: The draws, by kind.
    """

    data: str
    classifier: str
    split: str
    norm: str
    zeta: float | None
    xi_grey: float
    target: str | None
    rule: str
    seed: int
    draws: int
    images: int
    rate: float | None
    kinds: dict[str, Chance]


def controls(results: Results, grid: str | None) -> tuple[ControlRow, ...]:
    """Return all rows; `MAX_ROWS` of them go on the page."""
    found = query(results, controls_sql(grid)).to_pylist()
    return tuple(_row(list(rows)) for _, rows in groupby(found, lambda row: row.pop("place")))


def controls_sql(grid: str | None) -> str:
    """Return the SQL for all of them, one row a kind; of several settings of controls the one with most draws."""
    return f"""\
WITH each AS (
  {each_trial(grid)}
), judged AS (
  SELECT DISTINCT ON (trial_id, split, kind) * FROM controls ORDER BY draws DESC, images DESC
)
SELECT dense_rank() OVER named AS place, data, classifier, split, norm, zeta, xi_grey, target, rule, seed,
  kind, draws, judged.images,
  CASE WHEN target IS NULL THEN judged.fooling_rate ELSE judged.targeted_success_rate_non_target END AS rate,
  CASE WHEN target IS NULL THEN control_fooling_rate
    ELSE control_targeted_success_rate_non_target END AS mean,
  CASE WHEN target IS NULL THEN control_fooling_rate_max
    ELSE control_targeted_success_rate_non_target_max END AS highest,
  p_value
FROM (FROM each WHERE {MADE_HERE}) JOIN judged USING (trial_id, split)
WINDOW named AS (ORDER BY data, classifier, classifier_sha256, split, norm, zeta NULLS LAST, xi,
  target NULLS FIRST, rule, seed, trial_id)
ORDER BY place, list_position({KINDS}, kind)"""


def rest_sql(grid: str | None) -> str:
    """Return the SQL for the rows after the first ones."""
    return f"SELECT * FROM (\n{controls_sql(grid)}\n) WHERE place > {MAX_ROWS}"


def _row(rows: list[dict[str, Any]]) -> ControlRow:
    kinds = {row["kind"]: Chance(*(row.pop(name) for name in CHANCE)) for row in rows}
    return ControlRow(**rows[0], kinds=kinds)
