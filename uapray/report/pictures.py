"""Pictures: clean, perturbation, perturbed, with what the classifier made of them."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from uapray.query import query
from uapray.report.best import COLUMNS, MAX_SHOWN, Best, best_sql
from uapray.store.results import Results

MAX_PICTURES = 4
SHOWN_WIDTH = 160  # in the template's style sheet
MAX_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Pair:
    """An image before and after; pictures as ``data:`` URIs, classes by name."""

    id: str
    label: str
    clean: str
    perturbed: str
    clean_class: str
    perturbed_class: str

    @property
    def fooled(self) -> bool:
        """Whether the predicted class changed."""
        return self.clean_class != self.perturbed_class


@dataclass(frozen=True, slots=True)
class Panel:
    """Some images under one perturbation, which is a ``data:`` URI like them; width and height in pixels."""

    best: Best
    perturbation: str
    width: int
    height: int
    pairs: tuple[Pair, ...]

    @property
    def pixelated(self) -> bool:
        """Whether the page enlarges the pictures, so that single pixels ought to be seen."""
        return self.width <= SHOWN_WIDTH


def panels(results: Results, grid: str | None) -> tuple[Panel, ...]:
    """Return the panels that go on the page: the first `MAX_SHOWN`, as far as they make `MAX_BYTES`.

    Images come in turn from each class they were predicted as, fooled ones first.
    """
    found = query(results, _pictures_sql(grid)).to_pylist()
    shown: list[Panel] = []
    size = 0
    for _, rows in groupby(found, lambda row: row["place"]):
        panel, bytes_of = _panel(list(rows))
        size += bytes_of
        if shown and size > MAX_BYTES:
            break
        shown.append(panel)
    return tuple(shown)


def rest_sql(grid: str | None, shown: int) -> str:
    """Return the SQL for the pictures of the settings after the first ones."""
    return f"""{best_sql(grid, "examples")}
SELECT place, data, classifier, norm, zeta, target, rule, seed, split, examples.* EXCLUDE (grid, split)
FROM best JOIN examples USING (trial_id, split) WHERE place > {shown} ORDER BY place"""


def class_name(names: Sequence[str], index: int) -> str:
    """Return the name of a class, or its number if it has none."""
    return names[index] if 0 <= index < len(names) else f"class {index}"


def _pictures_sql(grid: str | None) -> str:
    return f"""{best_sql(grid, "examples")}, seen AS (
  SELECT DISTINCT ON (trial_id, split, id) * EXCLUDE (grid)
  FROM examples SEMI JOIN (SELECT trial_id, split FROM best WHERE place <= {MAX_SHOWN}) USING (trial_id, split)
), turns AS (
  SELECT *, row_number() OVER (PARTITION BY trial_id, split, clean_prediction
    ORDER BY clean_prediction = perturbed_prediction, id) AS turn FROM seen
)
SELECT {COLUMNS}, id, label, clean_prediction, perturbed_prediction,
  clean_png, perturbed_png, perturbation_png, class_names
FROM best JOIN turns USING (trial_id, split) WHERE place <= {MAX_SHOWN}
QUALIFY row_number() OVER (PARTITION BY place ORDER BY turn, clean_prediction) <= {MAX_PICTURES}
ORDER BY place, turn, clean_prediction"""


def _panel(rows: Sequence[Mapping[str, Any]]) -> tuple[Panel, int]:
    """Return a panel and how many bytes its pictures take."""
    first = rows[0]
    width, height = _size(first["perturbation_png"])
    panel = Panel(
        best=Best(**{name: first[name] for name in COLUMNS.split(", ")}),
        perturbation=_data_uri(first["perturbation_png"]),
        width=width,
        height=height,
        pairs=tuple(map(_pair, rows)),
    )
    pictures = [panel.perturbation, *(pair.clean + pair.perturbed for pair in panel.pairs)]
    return panel, sum(map(len, pictures))


def _pair(row: Mapping[str, Any]) -> Pair:
    names = row["class_names"] or ()
    return Pair(
        id=row["id"],
        label=class_name(names, row["label"]),
        clean=_data_uri(row["clean_png"]),
        perturbed=_data_uri(row["perturbed_png"]),
        clean_class=class_name(names, row["clean_prediction"]),
        perturbed_class=class_name(names, row["perturbed_prediction"]),
    )


def _size(png: bytes) -> tuple[int, int]:
    """Return width and height as the header of a PNG says (its IHDR chunk comes first)."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + b64encode(png).decode()
