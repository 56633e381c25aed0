"""Who goes where: of the images predicted as one class, how many end as each class."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from uapray.query import query
from uapray.report.best import COLUMNS, MAX_SHOWN, Best, best_sql
from uapray.report.pictures import class_name
from uapray.store.results import Results

MAX_CLASSES = 12


@dataclass(frozen=True, slots=True)
class FlowRow:
    """Images predicted as one class when clean.

    Attributes:
        name: That class.
        images: How many there are.
        shares: Of them, by class predicted when perturbed.
        stay: Which of the shares is that of the class itself.
    """

    name: str
    images: int
    shares: tuple[float, ...]
    stay: int | None


@dataclass(frozen=True, slots=True)
class Flow:
    """The flows of one perturbation on one split; rows are clean classes, columns perturbed ones."""

    best: Best
    names: tuple[str, ...]
    rows: tuple[FlowRow, ...]


def flows(results: Results, grid: str | None) -> tuple[Flow, ...]:
    """Return the flows that go on the page."""
    names = {row["data_sha256"]: row["class_names"] for row in query(results, _names_sql()).to_pylist()}
    found = query(results, _flows_sql(grid)).to_pylist()
    each = [list(rows) for _, rows in groupby(found, lambda row: row["place"])]
    return tuple(_flow(rows, names.get(rows[0]["data_sha256"]) or ()) for rows in each)


def rest_sql(grid: str | None, shown: int) -> str:
    """Return the SQL for the flows of the settings after the first ones."""
    return f"""{best_sql(grid, "flows")}
SELECT place, data, classifier, norm, zeta, target, rule, seed, split, flows.* EXCLUDE (grid, split)
FROM best JOIN flows USING (trial_id, split) WHERE place > {shown} ORDER BY place"""


def _names_sql() -> str:
    return """
SELECT DISTINCT ON (data_sha256) data_sha256, class_names
FROM trials JOIN examples USING (trial_id, split) WHERE class_names IS NOT NULL"""


def _flows_sql(grid: str | None) -> str:
    return f"""{best_sql(grid, "flows")}, ways AS (
  SELECT DISTINCT trial_id, split, label, clean_prediction, perturbed_prediction, images AS moved FROM flows
)
SELECT {COLUMNS}, clean_prediction, perturbed_prediction, sum(moved) AS moved
FROM best JOIN ways USING (trial_id, split) WHERE place <= {MAX_SHOWN}
GROUP BY ALL ORDER BY place"""


def _flow(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Flow:
    ways = Counter({(row["clean_prediction"], row["perturbed_prediction"]): row["moved"] for row in rows})
    size: Counter[int] = Counter()
    for (clean, perturbed), images in ways.items():
        size[clean] += images
        size[perturbed] += images
    classes = list(range(len(names))) if 0 < len(names) <= MAX_CLASSES else []
    classes = sorted({*classes, *size})
    if len(classes) > MAX_CLASSES:
        classes = sorted(sorted(classes, key=lambda index: (-size[index], index))[: MAX_CLASSES - 1])
    others = len({*size} - {*classes})
    columns = [class_name(names, index) for index in classes] + ([f"{others} others"] if others else [])
    flow_rows = [_row(class_name(names, clean), clean, classes, ways, bool(others)) for clean in classes]
    return Flow(
        best=Best(**{name: rows[0][name] for name in COLUMNS.split(", ")}),
        names=tuple(columns),
        rows=tuple(row for row in flow_rows if row.images),
    )


def _row(name: str, clean: int, classes: Sequence[int], ways: Mapping[tuple[int, int], int], others: bool) -> FlowRow:
    images = sum(count for (origin, _), count in ways.items() if origin == clean)
    counts = [ways.get((clean, perturbed), 0) for perturbed in classes]
    if others:
        counts.append(images - sum(counts))
    shares = tuple(count / images for count in counts) if images else ()
    return FlowRow(name, images, shares, classes.index(clean))
