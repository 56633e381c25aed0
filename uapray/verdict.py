"""Each published claim held against what a store has: holds, fails, or not enough data."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

from uapray.claims import CLAIMS, Claim, Effect, Row, setting
from uapray.measures import CONFIDENCE
from uapray.over_seeds import width
from uapray.query import query
from uapray.store.results import Results
from uapray.trials_sql import MADE_HERE, each_trial

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
        left_out: Classifiers that answer no claim, since they learned nothing (`guessing`); sorted.
    """

    claim: str
    says: str
    answer: Answer
    units: tuple[Unit, ...]
    needs: str
    left_out: tuple[str, ...] = ()


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
    rows = sorted(known, key=lambda row: (*map(str, setting(row)), row["rule"], str(row["source"]), row["seed"]))

    def held_against(claim: Claim) -> list[Row]:
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

    left_out = tuple(sorted(set(guess.values())))
    return tuple(_verdict(claim, held_against(claim), zeta, left_out) for claim in CLAIMS)


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


def _verdict(claim: Claim, rows: Sequence[Row], zeta: float, left_out: tuple[str, ...]) -> Verdict:
    effects = list(claim.find(rows))
    units = _units(effects)
    said = Counter(unit.answer for unit in units)
    answer: Answer = "not enough data"
    if said["fails"] > claim.tolerates * len(units):
        answer = "fails"
    elif units and not said["not enough data"] and len({effect.part for effect in effects}) == claim.parts:
        answer = "holds"
    needs = f"{claim.needs}, zeta {zeta:g}" if claim.of_level else claim.needs
    return Verdict(claim.letter, claim.says, answer, units, needs, left_out)


def _units(effects: Sequence[Effect]) -> tuple[Unit, ...]:
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
        low, high = max(effect.value - spread, -1.0), min(effect.value + spread, 1.0)  # of a rate, or of a difference
        units.append(Unit(effect.about, effect.value, low, high, wanted, float(p_for), answer, effect.trial_ids))
    return tuple(units)


def _chances(effect: Effect, tail: Callable[[float], Any]) -> tuple[float, float]:
    """Return how likely such an effect is where the claim is false, and where it is true."""
    error = sqrt(effect.variance)
    if effect.floor is not None:
        distance = (effect.value - effect.floor) / error
        return float(tail(distance)), float(tail(-distance))
    assert effect.band is not None
    inside = (effect.band - abs(effect.value)) / error  # two one-sided tests (Schuirmann 1987): the larger p
    return float(tail(inside)), float(tail(-inside))
