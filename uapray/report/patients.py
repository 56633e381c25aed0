"""What the best perturbations mean for patients."""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Patients:
    """The readings of one perturbation, those of all classes first."""

    best: Best
    readings: tuple[Reading, ...]


def patients(results: Results, grid: str | None) -> tuple[Patients, ...]:
    """Return the readings that go on the page."""
    rows = query(results, patients_sql(grid, f"place <= {MAX_SHOWN}")).to_pylist()
    return tuple(
        Patients(Best(**each[0]["best"]), tuple(Reading(**row["reading"]) for row in each))
        for each in (list(some) for _, some in groupby(rows, key=lambda row: row["place"]))
    )


def rest_sql(grid: str | None, shown: int) -> str:
    """Return the SQL for the settings after the first ones."""
    return patients_sql(grid, f"place > {shown}")


def patients_sql(grid: str | None, which: str) -> str:
    """Return the SQL for the readings of some of the best perturbations."""
    best = ", ".join(f"'{name.strip()}': best.{name.strip()}" for name in COLUMNS.split(","))
    read = ", ".join(f"'{name}': clinical.{name}" for name in Reading.__dataclass_fields__)
    return f"""\
{best_sql(grid, "clinical")}
SELECT place, {{{best}}} AS best, {{{read}}} AS reading
FROM best JOIN (SELECT DISTINCT ON (trial_id, split, measure, class_name) * FROM clinical) AS clinical
  USING (trial_id, split)
WHERE {which}
ORDER BY place, class_name NULLS FIRST, measure"""
