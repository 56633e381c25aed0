"""One figure for each kind of experiment, of what the trials of a grid gave."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from uapray.defence import defences
from uapray.errors import ConfigError, StoreError
from uapray.over_seeds import mean_over_seeds
from uapray.query import query
from uapray.report.charts import ENDINGS, Chart, Form, Panel, Point
from uapray.report.controls import KINDS as CHANCE_KINDS
from uapray.store.results import Results
from uapray.trials_sql import MADE_HERE, each_trial

CONTROL, CEILING, BEST = "random control", "ceiling", "best draw"
FACETS = ("data", "judged", "classifier", "source", "origin", "norm", "size", "aim", "rule")
ATTACKS = ("known", "white box", "transferred", "black box", "control")
UNAIMED = "nontargeted"
AWARE, UNAWARE = "attacked through the filter", "made without knowing it"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """A point of a figure.

    Attributes:
        facets: What it is a point of, by those of `FACETS` that neither place nor series say.
        target: Class that was asked for; None: any other.
        seeds: How many it is the mean of.
    """

    facets: Mapping[str, str]
    target: str | None
    seeds: int
    point: Point


@dataclass(frozen=True, slots=True)
class Kind:
    """How an experiment is drawn.

    Attributes:
        form: As in `Chart`.
        title: As in `Chart`.
        find: Returns the points of some trials; facets in which they differ make panels.
        along: As in `Chart`.
        across: As in `Chart`.
        first: Series that comes first wherever it is; empty: the first one found.
        logarithmic: As in `Chart`.
    """

    form: Form
    title: str
    find: Callable[[Results, Sequence[str]], Iterable[Found]]
    along: str = ""
    across: str = ""
    first: str = ""
    logarithmic: bool = False


def file_ending(kind: str, uri: str) -> str:
    """Return the ending of the name of a figure's file.

    Raises:
        ConfigError: If there is no such figure, or it cannot be such a file.
    """
    if kind not in KINDS:
        raise ConfigError(f"--figure: expected a job of {', '.join(KINDS)}; {kind} has none")
    for ending in ENDINGS:
        if uri.endswith(ending):
            return ending
    raise ConfigError(f"--figure: expected a name ending in {', '.join(ENDINGS)}, got {uri}")


def chart(results: Results, kind: str, trial_ids: Sequence[str]) -> Chart:
    """Return the figure of some trials.

    Args:
        results: The store.
        kind: One of `KINDS`.
        trial_ids: Of the searches, in the order in which they are to stand.

    Raises:
        StoreError: If the store has no rows for it.
    """
    how = KINDS[kind]
    found = list(how.find(results, trial_ids))
    if not found:
        raise StoreError(
            f"{results.objects.uri}: expected rows for the figure of {kind}, found none of these trials; "
            "`uapray status` says what failed"
        )
    apart = [name for name in FACETS if len({one.facets.get(name) for one in found}) > 1]
    panels: dict[str, list[Point]] = {}
    for one in found:
        panels.setdefault(", ".join(one.facets[name] for name in apart if name in one.facets), []).append(one.point)
    shared = [text for name, text in found[0].facets.items() if name not in apart and text != UNAIMED]
    seeds = " or ".join(map(str, sorted({one.seeds for one in found if one.seeds})))
    return Chart(
        form=how.form,
        title=how.title,
        note=f"{', '.join(shared)}. Mean of {seeds} seeds; whiskers: 95 %, of images and seeds.",
        rate=_rate_name([one.target for one in found]),
        along=how.along,
        across=how.across,
        series=tuple(sorted(dict.fromkeys(one.point.series for one in found), key=lambda name: name != how.first)),
        panels=tuple(Panel(title, tuple(points)) for title, points in panels.items()),
        logarithmic=how.logarithmic,
    )


def _rate_name(targets: Sequence[str | None]) -> str:
    if not any(targets):
        return "fooled (% of images)"
    of_others = "% of images of other classes"
    return f"brought to the target ({of_others})" if all(targets) else f"fooled (% of images; targeted: {of_others})"


def _searches(
    results: Results,
    trial_ids: Sequence[str],
    *,
    place: str,
    series: str,
    which: str = MADE_HERE,
    besides: Sequence[str] = ("origin",),
) -> Iterator[Found]:
    """Yield the means over seeds of searches, by two columns of `_searches_sql`.

    Args:
        results: The store.
        trial_ids: Of the searches.
        place: Column of a point's place.
        series: Column of its series.
        which: Condition on the rows.
        besides: Facets that these two say as well.
    """
    facets = [name for name in FACETS if name not in (place, series, *besides)]
    sql = f"{_searches_sql(trial_ids)} SELECT * FROM searches WHERE {which} ORDER BY number"
    yield from _means(query(results, sql).to_pylist(), facets, place, series)


def _means(rows: Sequence[Row], facets: Sequence[str], place: str, series: str) -> Iterator[Found]:
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cells.setdefault(tuple(row[name] for name in (*facets, place, series)), []).append(row)
    for cell in cells.values():
        first = cell[0]
        images = min(row["rate_images"] for row in cell)
        ids, seeds = ([row[name] for row in cell] for name in ("trial_id", "seed"))
        mean = mean_over_seeds([row["rate"] for row in cell], images, ids, seeds)
        known = {mark: [row[mark] for row in cell if row[mark] is not None] for mark in (CONTROL, CEILING)}
        marks = {mark: fmean(values) for mark, values in known.items() if values}
        point = Point(first[place], first[series], mean.value, mean.interval, marks)
        yield Found({name: first[name] for name in facets}, first["target"], mean.seeds, point)


def _filters(results: Results, trial_ids: Sequence[str]) -> Iterator[Found]:
    """Yield each filter attacked by who does not know it, from the renderings, and by who does."""
    sql = f"""{_searches_sql(trial_ids)}, through AS (
  SELECT * REPLACE (coalesce(filter, 'no filter') AS filter,
    CASE WHEN filter IS NULL THEN classifier ELSE replace(classifier, '+' || filter, '') END AS classifier),
    '{AWARE}' AS knows
  FROM searches WHERE {MADE_HERE}
), unaware AS (
  SELECT searches.* REPLACE (rendering AS filter, NULL AS "{CONTROL}", NULL AS "{CEILING}",
    CASE WHEN target IS NULL THEN renderings.fooling_rate
      ELSE renderings.targeted_success_rate_non_target END AS rate),
    '{UNAWARE}' AS knows
  FROM searches JOIN (SELECT DISTINCT ON (trial_id, split, rendering) * FROM renderings) AS renderings
    USING (trial_id, split)
  WHERE {MADE_HERE} AND filter IS NULL AND rendering IN (SELECT filter FROM through)
), known AS (FROM through UNION ALL BY NAME FROM unaware)
SELECT *, min(number) FILTER (knows = '{AWARE}') OVER (PARTITION BY filter) AS filter_number
FROM known WHERE rate IS NOT NULL ORDER BY filter_number, number"""
    facets = [name for name in FACETS if name not in ("source", "origin")]
    yield from _means(query(results, sql).to_pylist(), facets, "filter", "knows")


def _chance(results: Results, trial_ids: Sequence[str]) -> Iterator[Found]:
    """Yield perturbations, and the mean of the draws of each kind with the best of them as a mark."""
    facets = [name for name in FACETS if name not in ("norm", "source", "origin")]
    sql = f"""{_searches_sql(trial_ids)}, judged AS (
  SELECT DISTINCT ON (trial_id, split, kind) * FROM controls ORDER BY draws DESC, images DESC
)
SELECT searches.* REPLACE (judged.images || ' images of ' || split AS judged, judged.images AS rate_images,
    NULL AS "{CONTROL}", NULL AS "{CEILING}",
    CASE WHEN target IS NULL THEN judged.fooling_rate ELSE judged.targeted_success_rate_non_target END AS rate),
  kind, draws, 'the perturbation' AS perturbation,
  CASE WHEN target IS NULL THEN control_fooling_rate
    ELSE control_targeted_success_rate_non_target END AS mean,
  CASE WHEN target IS NULL THEN control_fooling_rate_max
    ELSE control_targeted_success_rate_non_target_max END AS highest
FROM searches JOIN judged USING (trial_id, split) WHERE {MADE_HERE}
ORDER BY number, list_position({CHANCE_KINDS}, kind)"""
    rows = [row for row in query(results, sql).to_pylist() if row["rate"] is not None]
    first = {row["trial_id"]: row for row in reversed(rows)}
    yield from _means(list(reversed(first.values())), facets, "perturbation", "norm")
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: CHANCE_KINDS.index(row["kind"])):
        cells.setdefault(tuple(row[name] for name in (*facets, "kind", "norm")), []).append(row)
    for cell in cells.values():
        one, draws = cell[0], sum(row["draws"] for row in cell)
        best = {f"{BEST} of {draws}": max(row["highest"] for row in cell)}
        point = Point(one["kind"], one["norm"], fmean(row["mean"] for row in cell), None, best)
        yield Found({name: one[name] for name in facets}, one["target"], 0, point)


def _hardened(results: Results, trial_ids: Sequence[str]) -> Iterator[Found]:
    """Yield each attack on a classifier as it was and on what each hardening made of it."""
    mine, found = set(trial_ids), dict[tuple[Any, ...], tuple[str, Found]]()
    for one in defences(results):
        rates = [
            (attack, series, mean)
            for attack in one.attacks
            for series, mean in (("before", attack.before), (one.hardened, attack.after))
            if mean is not None
        ]
        if not any(mine & set(mean.trial_ids) for _, _, mean in rates):
            continue
        facets = {
            "data": one.data,
            "judged": f"{one.images} images of {one.split}",
            "classifier": one.undefended,
            "norm": one.norm,
            "size": f"ζ {one.zeta:g}",
            "aim": UNAIMED if one.target is None else f"towards {one.target}",
        }
        for attack, series, mean in rates:
            point = Point(attack.name, series, mean.value, mean.interval)
            key = (*facets.values(), attack.name, series)
            found[key] = (attack.kind, Found(facets, one.target, len(mean.trial_ids), point))
    yield from (
        one for _, one in sorted(found.values(), key=lambda pair: (ATTACKS.index(pair[0]), pair[1].point.place))
    )


def _searches_sql(trial_ids: Sequence[str]) -> str:
    """Return the WITH clause of ``searches``: the judgements of some trials, each beside the control of its setting.

    A control is looked for in the whole store, as by
    `rates_sql`.
    """
    named = f"{list(trial_ids)}::VARCHAR[]"
    return f"""\
WITH each AS (
  {each_trial(None)}
), control AS (
  SELECT setting, split, images, avg(success) AS control FROM each WHERE rule = 'random' GROUP BY ALL
), searches AS (
  SELECT list_position({named}, trial_id) AS number, trial_id, seed, split, filter, target,
    data, images || ' images of ' || split AS judged, classifier, made_on, norm, zeta, source_images,
    coalesce(architecture, classifier) AS architecture,
    CASE initial_weights WHEN 'random' THEN 'from scratch'
      ELSE 'begun with ' || parse_filename(coalesce(initial_weights, 'weights unknown')) END AS begun,
    CASE WHEN starts_with(source, data || '/') THEN 'own images' || regexp_extract(source, '\\[.*')
      ELSE replace(source, '/train', '') END AS source, regexp_replace(source, '\\[.*', '') AS origin,
    CASE WHEN zeta IS NULL THEN printf('%.3g grey levels', xi_grey) ELSE 'ζ ' || printf('%g', zeta) END AS size,
    coalesce('towards ' || target, '{UNAIMED}') AS aim, rule,
    success AS rate, success_images AS rate_images,
    CASE WHEN target IS NULL THEN fooling_rate_ceiling END AS "{CEILING}", control AS "{CONTROL}"
  FROM each LEFT JOIN control USING (setting, split, images)
  WHERE list_contains({named}, trial_id) AND rule <> 'random' AND success IS NOT NULL
)"""


_BY_AIM, _BY_SOURCE = (partial(_searches, place="classifier", series=name) for name in ("aim", "source"))
KINDS: Mapping[str, Kind] = {
    "nontargeted": Kind(
        "bars",
        "Images that one perturbation fools, by classifier",
        partial(_searches, place="classifier", series="norm"),
    ),
    "targeted": Kind(
        "bars",
        "Images that one perturbation brings to a class, by class",
        _BY_AIM,
    ),
    "chest_xray": Kind(
        "bars",
        "What one perturbation does, by classifier and aim",
        _BY_AIM,
    ),
    "controls": Kind("bars", "Perturbations against draws by chance, by what these share", _chance),
    "zeta_sweep": Kind(
        "lines",
        "Fooling rate against the size of the perturbation",
        partial(
            _searches, place="zeta", series="classifier", which=f"{MADE_HERE} AND zeta > 0", besides=("origin", "size")
        ),
        along="zeta (share of the mean norm of the source images)",
    ),
    "source_images": Kind(
        "lines",
        "Fooling rate against the number of source images",
        partial(_searches, place="source_images", series="classifier", besides=("source",)),
        along="images it is made from",
        logarithmic=True,
    ),
    "natural": Kind(
        "bars",
        "Perturbations made from own images and from others",
        _BY_SOURCE,
    ),
    "dose": Kind(
        "bars",
        "Classifiers part of the way from pretrained to fine-tuned",
        _BY_SOURCE,
    ),
    "scratch_transfer": Kind(
        "bars",
        "Classifiers trained from scratch and begun with other weights",
        partial(_searches, place="architecture", series="begun", besides=("origin", "classifier")),
    ),
    "transfer_matrix": Kind(
        "square",
        "Perturbations made on one classifier and judged on another",
        partial(
            _searches,
            place="classifier",
            series="made_on",
            which="classifier IN (SELECT made_on FROM searches)",
        ),
        along="judged on",
        across="made on",
    ),
    "black_box": Kind(
        "bars",
        "Searches that only see answers, beside one that takes gradients",
        partial(_searches, place="rule", series="classifier", besides=("origin", "source")),
    ),
    "hardening": Kind("bars", "A classifier under attack, before and after it was hardened", _hardened, first="before"),
    "filters": Kind("bars", "Filters in front of a classifier, and who knows of them", _filters, first=UNAWARE),
}
"""By the name of the job whose trials they show."""
