"""The published claims, and the figures of trials that speak for or against each."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

from uapray.config import BLACK_BOX
from uapray.over_seeds import SeedMean, mean_over_seeds

MIN_SEEDS = 3
MIN_ARCHITECTURES = 3
SAME_RATE = 0.05  # (b): rates on source and test images that differ by less are called alike
SMALL_SPREAD = 0.10  # (d): the widest difference between architectures that is called small
HELP, RARELY = 0.10, 0.20  # (e): a rate that falls by so much is called helped; the share of cases that is called rare
PUBLISHED_RATE, HALF, BLACK_BOX_RATE = 0.8, 0.5, 0.4

Row = Mapping[str, Any]
Means = dict[tuple["Setting", str], SeedMean]  # of a setting and a rule


@dataclass(frozen=True, slots=True)
class Effect:
    """A figure before it is judged: a part of the claim wants it above ``floor``, or within ``band`` of 0.

    Attributes:
        about: What was compared, for people.
        value: The figure.
        variance: Its own.
        trial_ids: The trials behind it.
        enough: Whether there are seeds enough to judge it.
        floor: What the claim wants it above; None where it wants it near 0.
        band: How near to 0.
        part: Which of the things that the claim says it belongs to.
    """

    about: str
    value: float
    variance: float
    trial_ids: tuple[str, ...]
    enough: bool
    floor: float | None = None
    band: float | None = None
    part: int = 0


class Setting(NamedTuple):
    """What searches and their control must share to be compared; columns as in ``trials``.

    How many images were judged is of it: where an attacker has some of the test images, the others are another test.
    """

    data: str
    images: int
    classifier: str
    classifier_sha256: str
    norm: str
    zeta: float | None
    target: str | None
    xi_from: str | None

    def on(self, sha256: str, classifier: str = "") -> "Setting":
        """Return the same on another classifier, whatever its name."""
        return self._replace(classifier_sha256=sha256, classifier=classifier)


def setting(row: Row) -> Setting:
    """Return the setting of a trial."""
    return Setting._make(row["setting"]["xi_from"] if name == "xi_from" else row[name] for name in Setting._fields)


def _own(row: Row) -> bool:
    return row["source"] is not None and row["source"].startswith(f"{row['data']}/")


def _white_box(row: Row) -> bool:
    return row["rule"] != "random" and row["rule"] not in BLACK_BOX and _own(row) and "[" not in row["source"]


def _success(row: Row) -> float | None:
    """Return what was to be raised: the fooling rate, targeted the success rate of images not of the target."""
    value: float | None = row["success"]
    return value


def _cells(rows: Iterable[Row], wanted: Callable[[Row], bool], rate: Callable[[Row], float | None] = _success) -> Means:
    """Return the mean over seeds of each setting and rule."""
    chosen = [row for row in rows if wanted(row) and rate(row) is not None]
    keyed = groupby(chosen, key=lambda row: (setting(row), row["rule"], row["source"]))
    return {(where, rule): _mean(list(each), rate) for (where, rule, _), each in keyed}


def _mean(rows: Sequence[Row], rate: Callable[[Row], float | None]) -> SeedMean:
    images = min(row["success_images" if rate is _success else "images"] for row in rows)
    ids, seeds = ([row[name] for row in rows] for name in ("trial_id", "seed"))
    return mean_over_seeds([float(rate(row) or 0.0) for row in rows], images, ids, seeds)


def _controls(rows: Iterable[Row]) -> dict[Setting, SeedMean]:
    return {where: one for (where, _), one in _cells(rows, lambda row: row["rule"] == "random").items()}


def _about(where: Setting, rule: str) -> str:
    aim = "" if where.target is None else f" → {where.target}"
    of = "" if where.xi_from is None else f" of {where.xi_from}"
    size = "" if where.zeta is None else f" {where.zeta:g}{of}"
    return f"{where.data} ({where.images}), {where.classifier}, {where.norm}{size}{aim} {rule}"


def _difference(about: str, one: SeedMean, other: SeedMean, *, floor: float = 0.0) -> Effect:
    enough = min(one.seeds, other.seeds) >= MIN_SEEDS
    ids = (*one.trial_ids, *other.trial_ids)
    return Effect(about, one.value - other.value, one.variance + other.variance, ids, enough, floor)


def _level(about: str, one: SeedMean, floor: float) -> Effect:
    return Effect(about, one.value, one.variance, one.trial_ids, one.seeds >= MIN_SEEDS, floor)


def _above_random(rows: Sequence[Row]) -> Iterator[Effect]:
    controls = _controls(rows)
    for (where, rule), one in _cells(rows, _white_box).items():
        if (control := controls.get(where)) is not None:
            yield _difference(f"{_about(where, rule)} − random", one, control)


def _train_like_test(rows: Sequence[Row]) -> Iterator[Effect]:
    known = [row for row in rows if _white_box(row) and row["source_fooling_rate"] is not None]
    on_source = _cells(known, lambda _row: True, lambda row: row["source_fooling_rate"])
    on_test = _cells(known, lambda _row: True, lambda row: row["fooling_rate"])
    for key, one in on_source.items():
        found = _difference(f"{_about(*key)}, source − test", one, on_test[key])
        yield replace(found, trial_ids=one.trial_ids, floor=None, band=SAME_RATE)


def _high(rows: Sequence[Row]) -> Iterator[Effect]:
    def published(row: Row) -> float | None:
        value: float | None = row["fooling_rate" if row["target"] is None else "targeted_success_rate"]
        return value

    for key, one in _cells(rows, _white_box, published).items():
        yield _level(_about(*key), one, PUBLISHED_RATE)


def _alike_over_architectures(rows: Sequence[Row]) -> Iterator[Effect]:
    architectures = {row["classifier_sha256"]: row["architecture"] for row in rows}
    together: dict[tuple[Setting, str], dict[str, SeedMean]] = {}
    for (where, rule), one in _cells(rows, _white_box).items():
        together.setdefault((where.on(""), rule), {})[where.classifier_sha256] = one
    for (where, rule), each in together.items():
        if len(each) < 2:
            continue
        enough = len({architectures[sha256] for sha256 in each}) >= MIN_ARCHITECTURES
        low, high = (pick(each.values(), key=lambda one: one.value) for pick in (min, max))
        about = _about(where.on("", f"widest difference of {len(each)} classifiers"), rule)
        found = _difference(about, high, low)
        yield replace(found, enough=found.enough and enough, floor=None, band=SMALL_SPREAD)


def _retraining_helps_rarely(rows: Sequence[Row]) -> Iterator[Effect]:
    undefended = {setting(row): row["undefended_sha256"] for row in rows}
    cells = _cells(rows, _white_box)
    by_weights = {(where.on(where.classifier_sha256), rule): one for (where, rule), one in cells.items()}
    for (where, rule), after in cells.items():
        was = undefended[where]
        if was is not None and (before := by_weights.get((where.on(was), rule))) is not None:
            yield _difference(f"{_about(where, rule)}, hardened − undefended", after, before, floor=-HELP)


def _natural_between(rows: Sequence[Row]) -> Iterator[Effect]:
    own, controls = _cells(rows, _white_box), _controls(rows)
    for source in sorted({row["source"] for row in rows if row["source"] is not None and not _own(row)}):
        of_source = [row for row in rows if row["source"] == source and row["rule"] not in {"random", *BLACK_BOX}]
        for (where, rule), one in _cells(of_source, lambda _row: True).items():
            about = _about(where, rule)
            if (control := controls.get(where)) is not None:
                yield _difference(f"{about}, from {source} − random", one, control)
            if (better := own.get((where, rule))) is not None:
                yield replace(_difference(f"{about}, from own images − from {source}", better, one), part=1)


def _scratch_between(rows: Sequence[Row]) -> Iterator[Effect]:
    begun = {row["classifier_sha256"]: (row["architecture"], row["initial_weights"]) for row in rows}
    cells, controls = _cells(rows, _white_box), _controls(rows)
    for (where, rule), scratch in cells.items():
        architecture, weights = begun[where.classifier_sha256]
        if weights != "random":
            continue
        about = _about(where, rule)
        if (control := controls.get(where)) is not None:
            yield _difference(f"{about}, from scratch − random perturbation", scratch, control)
        for (other, its), transferred in cells.items():
            same = (other.on(""), its) == (where.on(""), rule)
            like, begun_with = begun[other.classifier_sha256]
            if same and like == architecture and begun_with not in ("random", None):
                yield replace(_difference(f"{about}, transferred − from scratch", transferred, scratch), part=1)


def _each_class(rows: Sequence[Row]) -> Iterator[Effect]:
    for key, one in _cells(rows, lambda row: _white_box(row) and row["target"] is not None).items():
        yield _level(_about(*key), one, HALF)


def _black_box(rows: Sequence[Row]) -> Iterator[Effect]:
    for key, one in _cells(rows, lambda row: row["rule"] in BLACK_BOX).items():
        yield _level(_about(*key), one, BLACK_BOX_RATE)


@dataclass(frozen=True, slots=True)
class Claim:
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
    find: Callable[[Sequence[Row]], Iterable[Effect]]
    of_level: bool = False
    of_hardened: bool = False
    parts: int = 1
    tolerates: float = 0.0


_SEEDS = f"{MIN_SEEDS} seeds each"
CLAIMS = (
    Claim(
        "a",
        "a universal perturbation fools more than a random one of its size",
        f"searches and the control, {_SEEDS}",
        _above_random,
    ),
    Claim("b", "it fools unseen images as it does those it was made from", f"searches, {_SEEDS}", _train_like_test),
    Claim("c", "it succeeds on more than 80 % of the images", f"searches, {_SEEDS}", _high, of_level=True),
    Claim(
        "d",
        "architectures differ little",
        f"searches on {MIN_ARCHITECTURES} architectures, {_SEEDS}",
        _alike_over_architectures,
    ),
    Claim(
        "e",
        "retraining against perturbations rarely helps",
        f"classifiers hardened and as they were, {_SEEDS}",
        _retraining_helps_rarely,
        of_hardened=True,
        tolerates=RARELY,
    ),
    Claim(
        "f",
        "perturbations made from other images do more than random ones, and less than those from own images",
        f"a grid with other sources, {_SEEDS}",
        _natural_between,
        parts=2,
    ),
    Claim(
        "g",
        "classifiers from scratch are fooled less than transferred ones, and more than by chance",
        f"an architecture from random and from other weights, {_SEEDS}",
        _scratch_between,
        parts=2,
    ),
    Claim(
        "h",
        "a targeted perturbation works for each class",
        f"each class as target, {_SEEDS}",
        _each_class,
        of_level=True,
    ),
    Claim(
        "i",
        "who only sees the answers succeeds on 40 % and more",
        f"black-box rules, {_SEEDS}",
        _black_box,
        of_level=True,
    ),
)
