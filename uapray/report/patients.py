"""What the best perturbations mean for patients."""

from dataclasses import dataclass, fields
from itertools import groupby

from uapray.query import query
from uapray.report.best import COLUMNS, Best, best_sql
from uapray.store.results import Results

MAX_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """One measure clean, perturbed and by how much it changed, with limits at 95 %; None where it is undefined."""

    measure: str
    class_name: str | None
    clean: float | None
    clean_low: float | None
    clean_high: float | None
    perturbed: float | None
    perturbed_low: float | None
    perturbed_high: float | None
    change: float | None
    change_low: float | None
    change_high: float | None

    @property
    def name(self) -> str:
        """What a reader calls it."""
        said = {
            "ppv": "positive predictive value",
            "auc": "AUC",
            "calibration_error": "calibration error",
            "called_healthy": "diseased who are called healthy",
            "referable_sensitivity": "referable who are referred",
            "referable_specificity": "others who are not referred",
        }
        return said.get(self.measure, self.measure)


READ = tuple(field.name for field in fields(Reading))


@dataclass(frozen=True, slots=True)
class Patients:
    """The readings of one perturbation, those of all classes first."""

    best: Best
    readings: tuple[Reading, ...]


def patients(results: Results, grid: str | None) -> tuple[Patients, ...]:
    """Return the readings that go on the page."""
    found = query(results, _patients_sql(grid, f"place <= {MAX_SHOWN}")).to_pylist()
    each = [list(rows) for _, rows in groupby(found, key=lambda row: row["place"])]
    return tuple(
        Patients(
            Best(**{name: rows[0][name] for name in COLUMNS.split(", ")}),
            tuple(Reading(**{name: row[name] for name in READ}) for row in rows),
        )
        for rows in each
    )


def rest_sql(grid: str | None, shown: int) -> str:
    """Return the SQL for the settings after the first ones."""
    return _patients_sql(grid, f"place > {shown}")


def _patients_sql(grid: str | None, which: str) -> str:
    return f"""\
{best_sql(grid, "clinical")}
SELECT {COLUMNS}, {", ".join(READ)}
FROM best JOIN (SELECT DISTINCT ON (trial_id, split, measure, class_name) * FROM clinical) USING (trial_id, split)
WHERE {which}
ORDER BY place, class_name NULLS FIRST, measure"""
