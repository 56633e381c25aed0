"""What a hardening is worth, on made-up stores of which the answer is known."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from test_report import Shop

from uapray.defence import KNOWN, RANDOM, Defence, defences
from uapray.store.results import Results, open_results


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return open_results(str(tmp_path / "store"))


def hardening(results: Results, **changes: Any) -> None:
    """Write a round of hardening of ``net`` to ``hard``."""
    row: dict[str, Any] = {
        "classifier_sha256": "sha of hard",
        "undefended_sha256": "sha of net",
        "data": "chest",
        "data_sha256": "sha of chest",
        "classifier": "hard",
        "undefended": "net",
        "architecture": "resnet18",
        "method": "retraining",
        "round": 5,
        "norm": "linf",
        "zeta": 0.04,
        "xi": 0.03,
        "target": None,
        "rule": "aimed-ascent",
        "seed": 0,
        "perturbations": 10,
        "epochs": 5,
        "split": "test",
        "images": 500,
        "clean_accuracy_before": 0.9,
        "clean_accuracy": 0.88,
        "fooling_rate_before": 0.6,
        "fooling_rate_low_before": 0.55,
        "fooling_rate_high_before": 0.65,
        "targeted_success_rate_non_target_before": None,
        "fooling_rate": 0.5,
        "fooling_rate_low": 0.45,
        "fooling_rate_high": 0.55,
        "targeted_success_rate_non_target": None,
        "fooling_rate_ceiling": 0.7,
        "known_fooling_rate": 0.07,
        "known_targeted_success_rate_non_target": None,
        "image_gradients": 1000,
        "image_queries": 1000,
        "uapray_version": "0",
        "finished_at": datetime.now(UTC),
        **changes,
    }
    key = f"{row['classifier_sha256']} {row['round']}"
    results.write_rows("hardening", "made-up", f"{key}-{row['split']}", [row])
    results.objects.write(f"models/{key}.safetensors", b"")  # which ends a round


def add(results: Results, classifier: str, rate: float, **changes: Any) -> None:
    """Write three seeds of an attack."""
    shop = Shop(results, f"g{len(results.keys('trials'))}x")
    for seed in range(3):
        hardened = "retraining:5" if classifier == "hard" else None
        values = {"fooling_rate": rate, "images": 500, "clean_accuracy": 0.9, "hardened": hardened, "filter": None}
        shop.add(classifier=classifier, seed=seed, extras=False, **{**values, **changes})


def only(results: Results) -> Defence:
    (found,) = defences(results)
    return found


def test_each_attack_before_and_after(results: Results) -> None:
    hardening(results)
    hardening(results, round=4, classifier_sha256="sha of round 4")
    for classifier, rate in (("net", 0.6), ("hard", 0.5)):
        add(results, classifier, rate, rule="aimed-ascent")
        add(results, classifier, 0.03, rule="random")
        add(results, classifier, rate / 2, rule="hill-climb")
    add(results, "hard", 0.2, rule="aimed-ascent", made_on="net")
    add(results, "hard", 0.9, rule="aimed-ascent", zeta=0.08)
    add(results, "hard", 0.9, rule="aimed-ascent", filter="jpeg:75")
    found = only(results)
    assert found.clean_accuracy == (0.9, 0.88)
    rates = {
        one.name: tuple(None if rate is None else pytest.approx(rate.value) for rate in (one.before, one.after))
        for one in found.attacks
    }
    assert rates == {
        RANDOM: (0.03, 0.03),
        KNOWN: (None, 0.07),
        "aimed-ascent, made on net": (0.6, 0.2),
        "hill-climb, made on it": (0.3, 0.25),
        "aimed-ascent, made on it": (0.6, 0.5),
    }
    assert found.worst is not None
    assert found.worst.name == "aimed-ascent, made on it"
    assert found.masked is False


def test_an_attack_is_compared_with_the_same_attack_before_whichever_grid_made_it(results: Results) -> None:
    hardening(results)
    add(results, "net", 0.6, rule="aimed-ascent", source="chest/train")
    for other in ({"source": "chest/train[30]"}, {"source": "photographs/train"}, {"images": 300}, {"rule": "spgd"}):
        add(results, "net", 0.1, **{"rule": "aimed-ascent", "source": "chest/train", **other})
    for source in ("chest/train[30]", "photographs/train"):
        add(results, "hard", 0.9, rule="aimed-ascent", source=source)
    add(results, "net", 0.6, rule="aimed-ascent", source="chest/train")
    grid = f"g{len(results.keys('trials'))}x"
    add(results, "hard", 0.5, rule="aimed-ascent", source="chest/train")
    for found in (only(results), *defences(results, grid=grid)):
        (attack,) = (one for one in found.attacks if one.kind == "white box")
        assert attack.before is not None
        assert attack.after is not None
        assert (attack.before.value, attack.after.value) == (pytest.approx(0.6), pytest.approx(0.5))
        assert len(attack.before.trial_ids) == 6
        assert attack.before.seeds == attack.after.seeds == 3, "a seed with two trials counts once"


@pytest.mark.parametrize("how", [{"rule": "hill-climb"}, {"rule": "aimed-ascent", "made_on": "net"}])
def test_gradients_are_masked_where_those_who_do_not_take_them_do_better(results: Results, how: dict[str, Any]) -> None:
    hardening(results)
    add(results, "hard", 0.2, rule="aimed-ascent")
    assert only(results).masked is None, "nothing tells"
    add(results, "hard", 0.4, **how)
    assert only(results).masked is True
    add(results, "hard", 0.38, rule="spgd")
    assert only(results).masked is False, "the best that takes gradients counts"


def test_a_hardened_classifier_that_nobody_attacked_is_left_out(results: Results) -> None:
    hardening(results)
    assert defences(results) == ()
    add(results, "hard", 0.02, rule="random")
    assert defences(results) == ()


def test_targeted_hardening_counts_images_brought_to_the_target(results: Results) -> None:
    hardening(results, target="NORMAL", known_targeted_success_rate_non_target=0.1)
    add(results, "hard", 0.3, rule="spgd", target="NORMAL", targeted_success_rate_non_target=0.8)
    add(results, "hard", 0.3, rule="spgd")
    found = only(results)
    assert found.worst is not None
    assert found.worst.after is not None
    assert found.worst.after.value == pytest.approx(0.8)
    assert [one.after.value for one in found.attacks if one.after and one.kind == "known"] == [0.1]
