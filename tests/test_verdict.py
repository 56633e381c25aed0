"""Verdicts on made-up stores of which the answer is known."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_defence import hardening
from test_report import CLASSES, Shop

from uapray import cli
from uapray.claims import MIN_SEEDS, Effect
from uapray.report.page import write_report
from uapray.report.rates import rates
from uapray.report.snapshot import snapshot
from uapray.store.results import Results, open_results
from uapray.verdict import Verdict, _units, guessing, verdicts

SEEDS = range(MIN_SEEDS)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return open_results(str(tmp_path / "store"))


def add(shop: Shop, rate: float, *, seeds: range = SEEDS, **changes: Any) -> None:
    """Add trials of a rate, which differs a little from seed to seed."""
    for seed in seeds:
        at = rate + 0.01 * (seed - 1)
        values: dict[str, Any] = {"fooling_rate": at, "images": 500, "seed": seed, "extras": False, **changes}
        if values.get("target"):
            values |= {"targeted_success_rate_non_target": at, "targeted_success_rate": (1 + at) / 2}
        shop.add(**values)


def answers(results: Results, **asked: Any) -> dict[str, str]:
    return {one.claim: one.answer for one in verdicts(results, **asked)}


def of(results: Results, claim: str) -> Verdict:
    return next(one for one in verdicts(results) if one.claim == claim)


def test_an_empty_store_says_nothing(results: Results) -> None:
    assert set(answers(results).values()) == {"not enough data"}
    assert list(answers(results)) == list("abcdefghi")


def test_far_above_chance_holds_and_at_chance_fails(results: Results) -> None:
    shop = Shop(results)
    add(shop, 0.7)
    add(shop, 0.05, rule="random")
    (unit,) = of(results, "a").units
    assert (unit.answer, unit.effect) == ("holds", pytest.approx(0.65))
    assert unit.low < 0.65 < unit.high
    assert len(unit.trial_ids) == 2 * MIN_SEEDS
    add(shop, 0.01, classifier="robust")
    add(shop, 0.20, rule="random", classifier="robust")
    assert answers(results)["a"] == "fails"
    assert sorted(unit.answer for unit in of(results, "a").units) == ["fails", "holds"]


def test_one_seed_or_one_grain_is_not_enough(results: Results) -> None:
    shop = Shop(results)
    add(shop, 0.9, seeds=range(1))
    add(shop, 0.05, rule="random")
    assert answers(results)["a"] == "not enough data"
    assert of(results, "a").units[0].p_value < 0.001, "however sure it looks"


def test_a_seed_with_several_trials_counts_once(results: Results) -> None:
    add(Shop(results), 0.05, rule="random")
    for number in range(MIN_SEEDS):
        add(Shop(results, f"budget{number}"), 0.9, seeds=range(1))
    (unit,) = of(results, "a").units
    assert len(unit.trial_ids) == 2 * MIN_SEEDS
    assert unit.answer == "not enough data", "three trials of one seed"
    for number in range(2):
        add(Shop(results, f"more{number}"), 0.9, seeds=range(1, MIN_SEEDS))
    (unit,) = of(results, "a").units
    assert unit.answer == "holds"
    assert unit.effect == pytest.approx(0.85)


def test_source_and_test_rates_alike_or_not(results: Results) -> None:
    shop = Shop(results)
    for classifier, source in (("careful", 0.71), ("overfitted", 0.9)):
        add(shop, 0.7, classifier=classifier, source_fooling_rate=source, images=5000)
    found = {unit.about.split(", ")[1]: unit.answer for unit in of(results, "b").units}
    assert found == {"careful": "holds", "overfitted": "fails"}


def test_rates_on_other_numbers_of_images_are_not_averaged(results: Results) -> None:
    """Where an attacker takes some of the test images, a classifier from a file is judged on the rest of them."""
    shop = Shop(results)
    for rate, chance, images in ((0.7, 0.1, 500), (0.5, 0.2, 300)):
        add(shop, rate, images=images)
        add(shop, chance, images=images, rule="random")
    units = of(results, "a").units
    assert [(unit.about, unit.effect) for unit in units] == [
        ("chest (300), resnet18, linf 0.04 spgd − random", pytest.approx(0.3)),
        ("chest (500), resnet18, linf 0.04 spgd − random", pytest.approx(0.6)),
    ]
    table = rates(results, None)
    assert [(row.images, row.fooling_rate, row.control) for row in table] == [
        (500, pytest.approx(0.7), pytest.approx(0.1)),
        (300, pytest.approx(0.5), pytest.approx(0.2)),
    ]


def test_levels_are_judged_at_the_published_zeta_alone(results: Results) -> None:
    shop = Shop(results)
    add(shop, 0.95, zeta=0.04)
    add(shop, 0.2, zeta=0.01)
    assert answers(results)["c"] == "holds"
    assert answers(results, zeta=0.01)["c"] == "fails"
    assert answers(results, zeta=0.02)["c"] == "not enough data"
    assert "zeta 0.02" in next(one for one in verdicts(results, zeta=0.02) if one.claim == "c").needs


def test_architectures_that_differ(results: Results) -> None:
    shop = Shop(results)
    for name, rate in (("vgg16", 0.80), ("resnet50", 0.81)):
        add(shop, rate, classifier=name, architecture=name, images=20000)
    assert answers(results)["d"] == "not enough data", "two are no spread"
    add(shop, 0.79, classifier="densenet121", architecture="densenet121", images=20000)
    assert answers(results)["d"] == "holds"
    add(shop, 0.3, classifier="vit", architecture="vit", images=20000)
    assert answers(results)["d"] == "fails"


def test_other_images_lie_between_chance_and_own(results: Results) -> None:
    shop = Shop(results)
    add(shop, 0.05, rule="random")
    add(shop, 0.8)
    add(shop, 0.4, source="photographs/train")
    assert answers(results)["f"] == "holds"
    assert len(of(results, "f").units) == 2
    assert {len(unit.trial_ids) for unit in of(results, "a").units} == {2 * MIN_SEEDS}, "only own images speak for (a)"
    add(shop, 0.95, source="drawings/train")
    assert answers(results)["f"] == "fails"


def test_from_scratch_or_transferred(results: Results) -> None:
    shop = Shop(results)
    for weights, rate, answer in (("random", 0.3, "not enough data"), ("pretrained", 0.7, "holds")):
        add(shop, rate, classifier=weights, initial_weights=weights)
        add(shop, 0.05, rule="random", classifier=weights, initial_weights=weights)
        assert answers(results)["g"] == answer, "above chance is half of the claim"


def test_every_class_and_black_box(results: Results) -> None:
    shop = Shop(results)
    add(shop, 0.9, target=CLASSES[0])
    assert answers(results)["h"] == "holds"
    add(shop, 0.2, target=CLASSES[1])
    assert answers(results)["h"] == "fails"
    add(shop, 0.6, rule="hill-climb", source="chest/attacker")
    assert answers(results)["i"] == "holds"
    add(shop, 0.1, rule="cma-es", source="chest/attacker")
    assert answers(results)["i"] == "fails"


def test_of_one_grid_and_of_the_split_test_alone(results: Results) -> None:
    one, other = Shop(results, "one"), Shop(results, "other")
    for shop, rate in ((one, 0.9), (other, 0.02)):
        add(shop, rate)
        add(shop, 0.05, rule="random")
    add(one, 0.01, split="train")
    add(one, 0.01, made_on="another classifier")
    borrowed = Shop(results, "borrowed")
    add(borrowed, 0.9, rule="sga")
    assert answers(results, grid="borrowed")["a"] == "holds", "the control stands in another grid"
    assert answers(results, grid="one")["a"] == "holds"
    assert answers(results, grid="one")["c"] == "holds"


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(1e-6, 0.1)), min_size=1, max_size=8),
    st.booleans(),
)
def test_a_unit_holds_only_where_its_effect_is_on_that_side(figures: list[tuple[float, float]], band: bool) -> None:
    limits = {"band": 0.05} if band else {"floor": 0.0}
    effects = [Effect("x", value, variance, ("id",), enough=True, **limits) for value, variance in figures]
    for effect, unit in zip(effects, _units(effects), strict=True):
        inside = abs(effect.value) < 0.05 if band else effect.value > 0
        assert unit.answer != ("fails" if inside else "holds")
        assert 0 <= unit.p_value <= 1
        spread = 1.959964 * math.sqrt(effect.variance)
        assert unit.high == pytest.approx(min(1, effect.value + spread), abs=1e-6)
        assert unit.low == pytest.approx(max(-1, effect.value - spread), abs=1e-6)


def test_many_comparisons_are_corrected() -> None:
    weak = Effect("x", 0.2, 0.01, ("id",), enough=True, floor=0.0)
    assert _units([weak])[0].answer == "holds"
    nothing = [Effect("y", 0.0, 0.01, ("id",), enough=True, floor=0.0)] * 20
    assert _units([weak, *nothing])[0].answer == "not enough data"


def test_the_verb(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(results)
    add(shop, 0.9, source_fooling_rate=0.94)
    add(shop, 0.05, rule="random")

    def said(*words: str, store: str = results.objects.uri, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["uapray", "verdict", "--store", store, *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    table = said()
    assert "(a) a universal perturbation fools more than a random one of its size" in table
    assert "(e) needs classifiers hardened and as they were" in table
    assert "(b) 1 of 1 open: more test images or seeds make intervals narrower; needs searches, 3 seeds each" in table
    assert "each class as target" in table
    plain = json.loads(said("--format", "json"))
    assert [one["claim"] for one in plain] == list("abcdefghi")
    assert plain[0]["answer"] == "holds"
    assert plain[0]["units"][0]["effect"] == pytest.approx(0.85)
    missing = said(store=str(tmp_path / "missing"), code=2)
    assert missing.endswith("missing: expected trials to judge, found none; run a grid into it first\n")
    assert "no trial of grid 'another'; there are trials of " in said("--grid", "another", code=2)


def test_retraining_that_rarely_helps_and_one_that_does(results: Results) -> None:
    def of_pair(number: int, drop: float) -> None:
        names = f"net {number}", f"hard {number}"
        hardening(
            results,
            classifier=names[1],
            undefended=names[0],
            classifier_sha256=f"sha of {names[1]}",
            undefended_sha256=f"sha of {names[0]}",
        )
        add(shop, 0.6, classifier=names[0], images=5000)
        add(shop, 0.6 - drop, classifier=names[1], hardened="retraining:5", images=5000)

    shop = Shop(results)
    for number in range(5):
        of_pair(number, drop=0.02)
    assert of(results, "e").answer == "holds"
    of_pair(5, drop=0.4)
    assert of(results, "e").answer == "holds", "rarely is not never"
    of_pair(6, drop=0.4)
    verdict = of(results, "e")
    assert verdict.answer == "fails"
    assert sorted(round(unit.effect, 2) for unit in verdict.units)[:2] == [-0.4, -0.4]
    assert {len(unit.trial_ids) for unit in verdict.units} == {2 * MIN_SEEDS}


def with_sensitivities(shop: Shop, shares: Sequence[float], **changes: Any) -> None:
    """Add trials on a classifier that names such shares of 100 clean images of each class rightly."""
    for seed in SEEDS:
        of = {"trial_id": f"{shop.grid}{shop.number + 1:05d}", "split": "test"}
        rows = [
            {**of, "class_name": name, "images": 100, "sensitivity_clean": share}
            for name, share in zip(CLASSES, shares, strict=False)
        ]
        shop.results.write_rows("classes", shop.grid, f"{of['trial_id']}-test", rows)
        add(shop, 0.9, seeds=range(seed, seed + 1), **changes)


def test_who_learned_nothing_answers_no_claim_and_is_named(
    results: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(results)
    cases = {"good": (0.9, 0.8), "one class": (1.0, 0.0), "dice": (0.55, 0.5), "barely": (0.9, 0.3)}
    for name, sensitivities in cases.items():
        with_sensitivities(shop, sensitivities, classifier=name)
    assert sorted(guessing(results).values()) == ["dice", "one class"]
    assert sorted(unit.about.split(", ")[1] for unit in of(results, "c").units) == ["barely", "good"]
    assert not guessing(results, grid="another")
    monkeypatch.setattr("sys.argv", ["uapray", "verdict", "--store", results.objects.uri])
    with pytest.raises(SystemExit):
        cli.main()
    assert "left out, no better than chance on clean images: dice, one class" in capsys.readouterr().out
    assert {one.left_out for one in verdicts(results)} == {("dice", "one class")}
    assert "no better than by chance: dice, one class." in write_report(results)


def test_the_page_says_what_the_verb_says(results: Results) -> None:
    shop = Shop(results)
    with_sensitivities(shop, (0.9, 0.8), target=CLASSES[1])
    with_sensitivities(shop, (0.5, 0.5), classifier="dice")
    add(shop, 0.05, rule="random")
    assert of(results, "h").units
    assert verdicts(snapshot(results)) == verdicts(results)


def test_classifiers_defended_or_trained_in_part_answer_no_other_claim(results: Results) -> None:
    shop = Shop(results)
    add(shop, 0.95)
    assert answers(results)["c"] == "holds"
    add(shop, 0.1, classifier="hard", hardened="retraining:5")
    add(shop, 0.1, classifier="filtered", filter="jpeg:75")
    add(shop, 0.1, classifier="frozen", frozen_blocks=4, tuned=1.0)
    add(shop, 0.1, classifier="half", frozen_blocks=0, tuned=0.5)
    assert answers(results)["c"] == "holds"
    assert len(of(results, "c").units) == 1
