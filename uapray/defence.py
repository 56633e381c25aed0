"""What a hardening is worth: attacks that it was trained on and attacks that it never saw, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from uapray.config import BLACK_BOX
from uapray.measures import CONFIDENCE
from uapray.over_seeds import SeedMean, mean_over_seeds
from uapray.query import query
from uapray.store.results import Results
from uapray.trials_sql import each_trial

KNOWN, RANDOM = "those it was trained with", "random control"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack on a classifier before and after its hardening; None where the store has no such trials.

    Rates are fooling rates; targeted, of images not predicted as the target when clean.

    Attributes:
        name: Rule, and what it was made on.
        kind: ``known``, ``white box``, ``transferred``, ``black box`` or ``control``.
        before: Its rate on the classifier as it was.
        after: Its rate on the hardened one.
    """

    name: str
    kind: str
    before: SeedMean | None
    after: SeedMean | None


@dataclass(frozen=True, slots=True)
class Defence:
    """A hardened classifier beside what it was before.

    Attributes:
        data: Data set that it was judged on.
        classifier: Its name.
        undefended: Name of what it was before.
        hardened: Method and rounds.
        norm: Of the perturbations that it was hardened against, and of those below.
        zeta: Their radius.
        target: Their target; None: nontargeted.
        split: That was judged.
        images: Images judged.
        clean_accuracy: Before and after.
        attacks: The strongest after the hardening last.
    """

    data: str
    classifier: str
    undefended: str
    hardened: str
    norm: str
    zeta: float
    target: str | None
    split: str
    images: int
    clean_accuracy: tuple[float, float]
    attacks: tuple[Attack, ...]

    @property
    def worst(self) -> Attack | None:
        """The attack that the hardened classifier stands least; None: it was not attacked."""
        return max(self._attacked, key=lambda one: _value(one.after), default=None)

    @property
    def masked(self) -> bool | None:
        """Whether the hardening merely hides gradients; None: nothing tells.

        It does where an attack that takes none from the hardened classifier, or only its answers, does better than the
        best that takes its gradients (Athalye et al. 2018), by more than chance at 95 %, one-sided.
        """
        open_box = [one.after for one in self._attacked if one.kind == "white box"]
        others = [one.after for one in self._attacked if one.kind in ("transferred", "black box")]
        if not open_box or not others:
            return None
        best = max(open_box, key=_value)
        return any(_surpasses(one, best) for one in others)

    @property
    def _attacked(self) -> list[Attack]:
        return [one for one in self.attacks if one.after is not None and one.kind not in ("known", "control")]


def defences(results: Results, *, grid: str | None = None) -> tuple[Defence, ...]:
    """Return every hardened classifier of a store that was attacked as it was hardened: same norm, zeta and target.

    Attacks are made from images of the data set itself, all that there are. Those on the classifier as it was come from
    the same images and were judged on as many.

    Args:
        results: The store.
        grid: Attacks on hardened classifiers from one grid only; those on what they were before may be any grid's.
    """
    rounds = query(
        results,
        "SELECT DISTINCT ON (classifier_sha256, split) * FROM hardening ORDER BY undefended, method, zeta, round",
    ).to_pylist()
    if not rounds:
        return ()
    hardened, undefended = (
        _attacks(results, column, of) for column, of in (("classifier_sha256", grid), ("undefended_sha256", None))
    )
    found = (_defence(row, hardened, undefended) for row in rounds)
    return tuple(one for one in found if one is not None)


def _attacks(results: Results, column: str, grid: str | None) -> list[Row]:
    """Return the trials of the classifiers that a column of the table ``hardening`` names."""
    sql = f"""SELECT * FROM ({each_trial(grid)}) WHERE fooling_rate IS NOT NULL AND filter IS NULL
    AND setting.xi_from IS NULL AND (source IS NULL OR starts_with(source, data || '/') AND NOT contains(source, '['))
    AND classifier_sha256 IN (SELECT {column} FROM hardening) ORDER BY rule, seed"""
    rows: list[Row] = query(results, sql).to_pylist()
    return rows


def _defence(row: Row, hardened: Sequence[Row], undefended: Sequence[Row]) -> Defence | None:
    def mine(trials: Sequence[Row], column: str) -> list[Row]:
        same = ("data", "norm", "zeta", "target", "split")
        chosen = [one for one in trials if one["classifier_sha256"] == row[column]]
        return [one for one in chosen if all(one[name] == row[name] for name in same)]

    after = mine(hardened, "classifier_sha256")
    like = {(one["rule"], one["source"], one["images"]) for one in after}
    before = [
        one for one in mine(undefended, "undefended_sha256") if (one["rule"], one["source"], one["images"]) in like
    ]
    if not any(one["rule"] != "random" for one in after):
        return None
    key = "known_fooling_rate" if row["target"] is None else "known_targeted_success_rate_non_target"
    images = min(one["success_images"] for one in after)
    known = None if row[key] is None else mean_over_seeds([row[key]], images, ())
    attacks = [Attack(KNOWN, "known", None, known)]
    for rule in sorted({one["rule"] for one in after}, key=_rank):
        kind = "control" if rule == "random" else "black box" if rule in BLACK_BOX else "white box"
        own = [_rate(rows, rule, row, own=True) for rows in (before, after)]
        attacks.append(Attack(RANDOM if kind == "control" else f"{rule}, made on it", kind, *own))
        if kind != "control":
            there = _rate(after, rule, row, own=False)
            if there is not None:
                attacks.append(Attack(f"{rule}, made on {row['undefended']}", "transferred", own[0], there))
    return Defence(
        data=row["data"],
        classifier=row["classifier"],
        undefended=row["undefended"],
        hardened=f"{row['method']}:{row['round']}",
        norm=row["norm"],
        zeta=row["zeta"],
        target=row["target"],
        split=row["split"],
        images=row["images"],
        clean_accuracy=(before[0]["clean_accuracy"] if before else row["clean_accuracy_before"], row["clean_accuracy"]),
        attacks=tuple(sorted(attacks, key=lambda one: (one.kind not in ("known", "control"), _value(one.after)))),
    )


def _rate(rows: Sequence[Row], rule: str, of: Row, *, own: bool) -> SeedMean | None:
    """Return the mean rate of a rule's perturbations made on the judged classifier, or on the undefended one."""
    chosen = [
        row
        for row in rows
        if row["rule"] == rule
        and row["success"] is not None
        and row["made_on"] in ((None, row["classifier"]) if own else (of["undefended"],))
    ]
    if not chosen:
        return None
    images = min(row["success_images"] for row in chosen)
    rates, ids, seeds = ([row[name] for row in chosen] for name in ("success", "trial_id", "seed"))
    return mean_over_seeds(rates, images, ids, seeds)


def _rank(rule: str) -> tuple[bool, bool, str]:
    return rule == "random", rule in BLACK_BOX, rule


def _value(one: SeedMean | None) -> float:
    return -1.0 if one is None else one.value


def _surpasses(one: SeedMean | None, other: SeedMean | None) -> bool:
    """Return whether a rate is above another by more than chance: below 0.05, one-sided."""
    if one is None or other is None:
        return False
    from scipy.stats import norm  # seconds to import

    error = sqrt(one.variance + other.variance)
    return float(norm.sf((one.value - other.value) / error)) < 1 - CONFIDENCE
