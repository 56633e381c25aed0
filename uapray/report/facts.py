"""What a report is about: grids, data sets, classifiers, how many perturbations, which versions, what failed."""

from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from uapray.query import query
from uapray.store.results import Results
from uapray.trials_sql import of_grid

MAX_FAILURES = 50


@dataclass(frozen=True, slots=True)
class DataFacts:
    """A data set, and how many images each of its splits has."""

    name: str
    sha256: str
    splits: dict[str, int]


@dataclass(frozen=True, slots=True)
class ClassifierFacts:
    """A classifier that was judged."""

    classifier: str
    classifier_sha256: str
    architecture: str | None
    initial_weights: str | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a report is about; times in UTC."""

    grids: list[str]
    searches: int
    draws: int
    began: datetime
    ended: datetime
    versions: list[str]
    devices: list[str]
    sources: list[str]
    data: tuple[DataFacts, ...]
    classifiers: tuple[ClassifierFacts, ...]

    @property
    def synthetic(self) -> list[str]:
        """The data sets that call themselves synthetic."""
        # a source is a data set and its split
        names = dict.fromkeys([*(one.name for one in self.data), *(name.rpartition("/")[0] for name in self.sources)])
        return [name for name in names if name.casefold().startswith("synthetic")]


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that failed, as of its last attempt.

    Attributes:
        mended: Whether its trial is there by now.
        steps: How many steps failed altogether.
    """

    trial_id: str
    step: str
    error: str
    message: str
    attempts: int
    last: datetime
    mended: bool
    steps: int


def facts(results: Results, grid: str | None) -> Facts:
    """Return what a grid, or the whole store, holds; there must be a trial."""
    of = of_grid(grid)
    counted = "SELECT data, data_sha256, split, max(images) AS images FROM trials"
    splits = query(results, f"{counted}{of} GROUP BY ALL ORDER BY ALL").to_pylist()
    named = "SELECT DISTINCT classifier, classifier_sha256, architecture, initial_weights FROM trials"
    return Facts(
        **query(results, _summary_sql(of)).to_pylist()[0],
        data=tuple(
            DataFacts(name, sha256, {row["split"]: row["images"] for row in rows})
            for (name, sha256), rows in groupby(splits, lambda row: (row["data"], row["data_sha256"]))
        ),
        classifiers=tuple(ClassifierFacts(**row) for row in query(results, f"{named}{of} ORDER BY ALL").to_pylist()),
    )


def failures(results: Results, grid: str | None) -> tuple[Failure, ...]:
    """Return the steps that failed, the latest `MAX_FAILURES`."""
    return tuple(Failure(**row) for row in query(results, f"{failures_sql(grid)} LIMIT {MAX_FAILURES}").to_pylist())


def failures_sql(grid: str | None) -> str:
    """Return the SQL for the steps that failed, the latest first."""
    return f"""\
SELECT trial_id, step, arg_max(error, attempt) AS error, arg_max(message, attempt) AS message,
  max(attempt) AS attempts, max("at") AS last, trial_id IN (SELECT trial_id FROM trials) AS mended,
  count(*) OVER () AS steps
FROM failures{of_grid(grid)} GROUP BY trial_id, step ORDER BY last DESC, trial_id"""


def _summary_sql(of: str) -> str:
    return f"""
SELECT list_sort(list(DISTINCT grid)) AS grids, count(DISTINCT trial_id) FILTER (rule <> 'random') AS searches,
  count(DISTINCT trial_id) FILTER (rule = 'random') AS draws, min(finished_at) AS began, max(finished_at) AS ended,
  list_sort(list(DISTINCT uapray_version)) AS versions, list_sort(list(DISTINCT device)) AS devices,
  coalesce(list_sort(list(DISTINCT source) FILTER (source IS NOT NULL)), []) AS sources
FROM trials{of}"""
