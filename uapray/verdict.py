"""The published claims, each held against what a store has: holds, fails, or not enough data."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import sqrt
from typing import Any, Literal

from uapray.config import BLACK_BOX
from uapray.measures import CONFIDENCE
from uapray.over_seeds import SeedMean, mean_over_seeds, width
from uapray.query import query
from uapray.store.results import Results
from uapray.trials_sql import MADE_HERE, each_trial

MIN_SEEDS = 3
MIN_ARCHITECTURES = 3
SAME_RATE = 0.05  # (b): rates on source and test images that differ by less are called alike
SMALL_SPREAD = 0.10  # (d): the widest difference between architectures that is called small
HELP, RARELY = 0.10, 0.20  # (e): a rate that falls by so much is called helped; the share of cases that is called rare
PUBLISHED_RATE, HALF, BLACK_BOX_RATE = 0.8, 0.5, 0.4

Row = Mapping[str, Any]
Answer = Literal["holds", "fails", "not enough data"]


@dataclass(frozen=True, slots=True)
class Unit:
    """One comparison that speaks for or against a claim.

    Attributes:
        about: What was compared, for people.
        effect: The figure that decides.
        low: Its lower limit at 95 %.
        high: Its upper limit.
        wanted: What the claim says of the effect, e.g. "> 0".
        p_value: One-sided, of chance where the claim is false; corrected for the units of the claim (Benjamini &
            Yekutieli 2001).
        answer: What it says.
        trial_ids: The trials behind it.
    """

    about: str
    effect: float
    low: float
    high: float
    wanted: str
    p_value: float
    answer: Answer
    trial_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim and what the store says of it.

    Attributes:
        claim: Its letter.
        says: The claim.
        answer: ``fails`` if one unit does (of a claim about most cases: more than a fifth), ``holds`` if all others do
            and each half of the claim has one, else not enough data.
        units: The comparisons.
        needs: What a store must hold for an answer.
    """

    claim: str
    says: str
    answer: Answer
    units: tuple[Unit, ...]
    needs: str


@dataclass(frozen=True, slots=True)
class _Effect:
    """A figure before it is judged: a part of the claim wants it above ``floor``, or within ``band`` of 0."""

    about: str
    value: float
    variance: float
    trial_ids: tuple[str, ...]
    enough: bool
    floor: float | None = None
    band: float | None = None
    part: int = 0


def verdicts(results: Results, *, grid: str | None = None, zeta: float = 0.04) -> tuple[Verdict, ...]:
    """Hold the nine published claims against a store (Hirano et al. 2021, Minagi et al. 2022, Koga & Takemoto 2022).

    Only the split ``test`` counts, each perturbation on the classifier that it was made on, and at least `MIN_SEEDS`
    seeds of each setting. Classifiers behind filters, those trained in part and those that learned nothing (`guessing`)
    are left out, and hardened ones but for the claim about them.

    Args:
        results: The store.
        grid: Searches of one grid only; their control is looked for in all, since what stands is not drawn again.
        zeta: Radius at which claims about a level are judged; the papers' is 0.04.
    """
    sql = f"""WITH searches AS ({each_trial(grid)}), draws AS ({each_trial(None)}),
    hardened AS (SELECT DISTINCT classifier_sha256, undefended_sha256, norm, zeta, target FROM hardening
    WHERE method = 'retraining')
    SELECT known.*, undefended_sha256
    FROM (FROM searches WHERE rule <> 'random' UNION ALL BY NAME FROM draws WHERE rule = 'random') AS known
    LEFT JOIN hardened ON known.classifier_sha256 = hardened.classifier_sha256 AND known.norm = hardened.norm
    AND known.zeta = hardened.zeta AND known.target IS NOT DISTINCT FROM hardened.target
    AND known.setting.xi_from IS NULL
    WHERE split = 'test' AND {MADE_HERE} AND fooling_rate IS NOT NULL"""
    known, guess = query(results, sql).to_pylist(), guessing(results, grid=grid)
    rows = sorted(known, key=lambda row: (*map(str, _setting(row)), row["rule"], str(row["source"]), row["seed"]))

    def held_against(claim: _Claim) -> list[Row]:
        return [
            row
            for row in rows
            if (row["data_sha256"], row["classifier_sha256"]) not in guess
            and row["filter"] is None
            and not row["frozen_blocks"]
            and row["tuned"] in (None, 1)
            and (claim.of_hardened or row["hardened"] is None)
            and (not claim.of_level or (row["zeta"] is not None and abs(row["zeta"] - zeta) < 1e-9))
        ]

    return tuple(_verdict(claim, held_against(claim), zeta) for claim in CLAIMS)


def guessing(results: Results, *, grid: str | None = None) -> Mapping[tuple[str, str], str]:
    """Return the classifiers that predict the clean test images of a data set no better than by chance.

    That is where the mean sensitivity over the classes is not above one over their number by more than its interval
    at 95 % is wide. How common a class is does not count: to name the commonest one for all images is to guess.

    Args:
        results: The store.
        grid: Trials of one grid only.

    Returns:
        From the digests of data and classifier to the classifier's name.
    """
    sql = f"""SELECT data_sha256, classifier_sha256, any_value(classifier) AS classifier
    FROM ({each_trial(grid)}) JOIN (
      SELECT DISTINCT ON (trial_id, split, class_name) trial_id, split, class_name, images AS n, sensitivity_clean AS s
      FROM classes WHERE sensitivity_clean IS NOT NULL
    ) USING (trial_id, split)
    WHERE split = 'test' AND {MADE_HERE} GROUP BY data_sha256, classifier_sha256, trial_id
    HAVING count(*) > 1 AND avg(s) - {width()} * sqrt(sum(s * (1 - s) / n)) / count(*) <= 1 / count(*) + 1e-9"""
    found = query(results, sql).to_pylist()
    return {(row["data_sha256"], row["classifier_sha256"]): row["classifier"] for row in found}


def _setting(row: Row) -> tuple[Any, ...]:
    named = (row[name] for name in ("data", "classifier", "classifier_sha256", "norm", "zeta", "target"))
    return (*named, row["setting"]["xi_from"])


def _own(row: Row) -> bool:
    return row["source"] is not None and row["source"].startswith(f"{row['data']}/")


def _white_box(row: Row) -> bool:
    return row["rule"] != "random" and row["rule"] not in BLACK_BOX and _own(row) and "[" not in row["source"]


def _success(row: Row) -> float | None:
    """Return what was to be raised: the fooling rate, targeted the success rate of images not of the target."""
    value: float | None = row["success"]
    return value


def _cells(
    rows: Iterable[Row], wanted: Callable[[Row], bool], rate: Callable[[Row], float | None] = _success
) -> dict[tuple[Any, ...], SeedMean]:
    """Return the mean over seeds of each setting and rule."""
    chosen = [row for row in rows if wanted(row) and rate(row) is not None]
    keyed = groupby(chosen, key=lambda row: (*_setting(row), row["rule"], row["source"]))
    return {key[:-1]: _mean(list(each), rate) for key, each in keyed}


def _mean(rows: Sequence[Row], rate: Callable[[Row], float | None]) -> SeedMean:
    images = min(row["success_images" if rate is _success else "images"] for row in rows)
    return mean_over_seeds([float(rate(row) or 0.0) for row in rows], images, [row["trial_id"] for row in rows])


def _controls(rows: Iterable[Row]) -> dict[tuple[Any, ...], SeedMean]:
    return {key[:-1]: one for key, one in _cells(rows, lambda row: row["rule"] == "random").items()}


def _about(key: tuple[Any, ...]) -> str:
    data, classifier, _, norm, zeta, target, xi_from, *rule = key
    aim = "" if target is None else f" → {target}"
    size = "" if zeta is None else f" {zeta:g}" if xi_from is None else f" {zeta:g} of {xi_from}"
    return " ".join([f"{data}, {classifier}, {norm}{size}{aim}", *rule])


def _difference(about: str, one: SeedMean, other: SeedMean, *, floor: float = 0.0) -> _Effect:
    enough = min(one.seeds, other.seeds) >= MIN_SEEDS
    ids = (*one.trial_ids, *other.trial_ids)
    return _Effect(about, one.value - other.value, one.variance + other.variance, ids, enough, floor)


def _level(about: str, one: SeedMean, floor: float) -> _Effect:
    return _Effect(about, one.value, one.variance, one.trial_ids, one.seeds >= MIN_SEEDS, floor)


def _above_random(rows: Sequence[Row]) -> Iterator[_Effect]:
    controls = _controls(rows)
    for key, one in _cells(rows, _white_box).items():
        if (control := controls.get(key[:-1])) is not None:
            yield _difference(f"{_about(key)} − random", one, control)


def _train_like_test(rows: Sequence[Row]) -> Iterator[_Effect]:
    known = [row for row in rows if _white_box(row) and row["source_fooling_rate"] is not None]
    on_source = _cells(known, lambda _row: True, lambda row: row["source_fooling_rate"])
    on_test = _cells(known, lambda _row: True, lambda row: row["fooling_rate"])
    for key, one in on_source.items():
        found = _difference(f"{_about(key)}, source − test", one, on_test[key])
        yield replace(found, trial_ids=one.trial_ids, floor=None, band=SAME_RATE)


def _high(rows: Sequence[Row]) -> Iterator[_Effect]:
    def published(row: Row) -> float | None:
        value: float | None = row["fooling_rate" if row["target"] is None else "targeted_success_rate"]
        return value

    for key, one in _cells(rows, _white_box, published).items():
        yield _level(_about(key), one, PUBLISHED_RATE)


def _alike_over_architectures(rows: Sequence[Row]) -> Iterator[_Effect]:
    architectures = {row["classifier_sha256"]: row["architecture"] for row in rows}
    cells = _cells(rows, _white_box)

    def shared(key: tuple[Any, ...]) -> tuple[str, ...]:
        return tuple(map(str, (key[0], *key[3:])))

    for _, keys in groupby(sorted(cells, key=shared), key=shared):
        each = {key: cells[key] for key in keys}
        enough = len({architectures[key[2]] for key in each}) >= MIN_ARCHITECTURES
        if len(each) < 2:
            continue
        low, high = (pick(each.values(), key=lambda one: one.value) for pick in (min, max))
        key = next(iter(each))
        about = _about((key[0], f"widest difference of {len(each)} classifiers", *key[2:]))
        found = _difference(about, high, low)
        yield replace(found, enough=found.enough and enough, floor=None, band=SMALL_SPREAD)


def _retraining_helps_rarely(rows: Sequence[Row]) -> Iterator[_Effect]:
    hardened = {(row["classifier_sha256"], *_setting(row)[3:]): row["undefended_sha256"] for row in rows}
    cells = _cells(rows, _white_box)
    by_weights = {(key[0], *key[2:]): one for key, one in cells.items()}
    for key, after in cells.items():
        undefended = hardened[key[2:7]]
        if undefended is not None and (before := by_weights.get((key[0], undefended, *key[3:]))) is not None:
            yield _difference(f"{_about(key)}, hardened − undefended", after, before, floor=-HELP)


def _natural_between(rows: Sequence[Row]) -> Iterator[_Effect]:
    own, controls = _cells(rows, _white_box), _controls(rows)
    for source in sorted({row["source"] for row in rows if row["source"] is not None and not _own(row)}):
        of_source = [row for row in rows if row["source"] == source and row["rule"] not in {"random", *BLACK_BOX}]
        for key, one in _cells(of_source, lambda _row: True).items():
            if (control := controls.get(key[:-1])) is not None:
                yield _difference(f"{_about(key)}, from {source} − random", one, control)
            if (better := own.get(key)) is not None:
                yield replace(_difference(f"{_about(key)}, from own images − from {source}", better, one), part=1)


def _scratch_between(rows: Sequence[Row]) -> Iterator[_Effect]:
    begun = {row["classifier_sha256"]: (row["architecture"], row["initial_weights"]) for row in rows}
    cells, controls = _cells(rows, _white_box), _controls(rows)
    for key, scratch in cells.items():
        architecture, weights = begun[key[2]]
        if weights != "random":
            continue
        if (control := controls.get(key[:-1])) is not None:
            yield _difference(f"{_about(key)}, from scratch − random perturbation", scratch, control)
        for other, transferred in cells.items():
            same = (key[0], *key[3:]) == (other[0], *other[3:])
            if same and begun[other[2]][0] == architecture and begun[other[2]][1] not in ("random", None):
                yield replace(_difference(f"{_about(key)}, transferred − from scratch", transferred, scratch), part=1)


def _each_class(rows: Sequence[Row]) -> Iterator[_Effect]:
    for key, one in _cells(rows, lambda row: _white_box(row) and row["target"] is not None).items():
        yield _level(_about(key), one, HALF)


def _black_box(rows: Sequence[Row]) -> Iterator[_Effect]:
    for key, one in _cells(rows, lambda row: row["rule"] in BLACK_BOX).items():
        yield _level(_about(key), one, BLACK_BOX_RATE)


@dataclass(frozen=True, slots=True)
class _Claim:
    """A published claim and how it is held against trials.

    Attributes:
        letter: Its name.
        says: What it claims.
        needs: What a store must hold for an answer.
        find: Makes its effects of trials.
        of_level: Whether it is judged at one zeta.
        of_hardened: Whether hardened classifiers are held against it too.
        parts: How many things it says, each of which must hold.
        tolerates: Share of the cases in which it may fail.
    """

    letter: str
    says: str
    needs: str
    find: Callable[[Sequence[Row]], Iterable[_Effect]]
    of_level: bool = False
    of_hardened: bool = False
    parts: int = 1
    tolerates: float = 0.0


_SEEDS = f"{MIN_SEEDS} seeds each"
CLAIMS = (
    _Claim(
        "a",
        "a universal perturbation fools more than a random one of its size",
        f"searches and the control, {_SEEDS}",
        _above_random,
    ),
    _Claim("b", "it fools unseen images as it does those it was made from", f"searches, {_SEEDS}", _train_like_test),
    _Claim("c", "it succeeds on more than 80 % of the images", f"searches, {_SEEDS}", _high, of_level=True),
    _Claim(
        "d",
        "architectures differ little",
        f"searches on {MIN_ARCHITECTURES} architectures, {_SEEDS}",
        _alike_over_architectures,
    ),
    _Claim(
        "e",
        "retraining against perturbations rarely helps",
        f"classifiers hardened and as they were, {_SEEDS}",
        _retraining_helps_rarely,
        of_hardened=True,
        tolerates=RARELY,
    ),
    _Claim(
        "f",
        "perturbations made from other images do more than random ones, and less than those from own images",
        f"a grid with other sources, {_SEEDS}",
        _natural_between,
        parts=2,
    ),
    _Claim(
        "g",
        "classifiers from scratch are fooled less than transferred ones, and more than by chance",
        f"an architecture from random and from other weights, {_SEEDS}",
        _scratch_between,
        parts=2,
    ),
    _Claim(
        "h",
        "a targeted perturbation works for each class",
        f"each class as target, {_SEEDS}",
        _each_class,
        of_level=True,
    ),
    _Claim(
        "i",
        "who only sees the answers succeeds on 40 % and more",
        f"black-box rules, {_SEEDS}",
        _black_box,
        of_level=True,
    ),
)


def _verdict(claim: _Claim, rows: Sequence[Row], zeta: float) -> Verdict:
    effects = list(claim.find(rows))
    units = _units(effects)
    said = Counter(unit.answer for unit in units)
    answer: Answer = "not enough data"
    if said["fails"] > claim.tolerates * len(units):
        answer = "fails"
    elif units and not said["not enough data"] and len({effect.part for effect in effects}) == claim.parts:
        answer = "holds"
    needs = f"{claim.needs}, zeta {zeta:g}" if claim.of_level else claim.needs
    return Verdict(claim.letter, claim.says, answer, units, needs)


def _units(effects: Sequence[_Effect]) -> tuple[Unit, ...]:
    """Judge the effects of a claim, with one correction for all that are judged for it and one for all against it."""
    from scipy.stats import false_discovery_control, norm  # seconds to import

    if not effects:
        return ()
    chances = [_chances(effect, norm.sf) for effect in effects]
    for_it, against = (false_discovery_control(list(each), method="by") for each in zip(*chances, strict=True))
    units = []
    for effect, p_for, p_against in zip(effects, for_it, against, strict=True):
        answer: Answer = "not enough data"
        if effect.enough and min(p_for, p_against) < 1 - CONFIDENCE:
            answer = "holds" if p_for < p_against else "fails"
        wanted = f"> {effect.floor:g}" if effect.floor is not None else f"within ±{effect.band:g}"
        spread = width() * sqrt(effect.variance)
        low, high = effect.value - spread, effect.value + spread
        units.append(Unit(effect.about, effect.value, low, high, wanted, float(p_for), answer, effect.trial_ids))
    return tuple(units)


def _chances(effect: _Effect, tail: Callable[[float], Any]) -> tuple[float, float]:
    """Return how likely such an effect is where the claim is false, and where it is true."""
    error = sqrt(effect.variance)
    if effect.floor is not None:
        distance = (effect.value - effect.floor) / error
        return float(tail(distance)), float(tail(-distance))
    assert effect.band is not None
    inside = (effect.band - abs(effect.value)) / error  # two one-sided tests (Schuirmann 1987): the larger p
    return float(tail(inside)), float(tail(-inside))
