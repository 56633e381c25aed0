"""The page on claims, patients and hardenings: the same figures as the rows, and no section without any."""

from pathlib import Path
from typing import Any

import pytest
from test_defence import add, hardening
from test_report import Page, Shop

from uapray.report import patients
from uapray.report.page import write_report
from uapray.store.results import Results, open_results


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return open_results(str(tmp_path / "store"))


def reading(trial_id: str, measure: str, class_name: str | None, **values: float | None) -> dict[str, Any]:
    limits = [f"{name}{end}" for name in ("clean", "perturbed", "change") for end in ("", "_low", "_high")]
    return {
        "trial_id": trial_id,
        "split": "test",
        "measure": measure,
        "class_name": class_name,
        **dict.fromkeys(limits),
        **values,
    }


def clinical(results: Results, trial_id: str, *rows: dict[str, Any]) -> None:
    results.write_rows("clinical", "made-up", f"{trial_id}-test", list(rows))


def test_every_claim_has_a_line(results: Results) -> None:
    shop = Shop(results)
    for seed in range(3):
        shop.add(seed=seed, fooling_rate=0.9, images=500, extras=False)
        shop.add(seed=seed, rule="random", fooling_rate=0.02, images=500, extras=False)
    page = Page(write_report(results))
    assert "claims" in page.all("id")
    assert "(a) a universal perturbation fools more than a random one of its size holds 1 for" in page.text
    assert "+0.880 [" in page.text
    assert page.text.count("not enough data") >= 6
    assert "needs classifiers hardened and as they were, 3 seeds each" in page.text


def test_what_it_means_for_patients_is_of_the_best_perturbation(results: Results) -> None:
    shop = Shop(results)
    worse, mine = "made-up00001", "made-up00002"  # what the shop calls its trials; their rows of trials come last
    clinical(results, worse, reading(worse, "accuracy", None, clean=0.9, perturbed=0.6))
    clinical(
        results,
        mine,
        reading(mine, "called_healthy", None, clean=0.1, clean_low=0.05, clean_high=0.2, perturbed=0.7, change=0.6),
        reading(
            mine, "sensitivity", "PNEUMONIA", clean=0.9, perturbed=0.3, change=-0.6, change_low=-0.7, change_high=-0.5
        ),
        reading(mine, "ppv", "PNEUMONIA", clean=0.9),
    )
    for seed, rate in enumerate((0.5, 0.8)):
        shop.add(seed=seed, fooling_rate=rate, extras=False)
    (shown,) = patients.patients(results, None)
    assert shown.best.trial_id == mine
    page = Page(write_report(results))
    assert {"patients"} <= set(page.all("id"))
    assert "diseased who are called healthy 10.0 % 5.0–20.0 70.0 % +60.0" in page.text
    assert "sensitivity PNEUMONIA 90.0 % 30.0 % −60.0 −70.0 to −50.0" in page.text
    assert "positive predictive value PNEUMONIA 90.0 % – –" in page.text


def test_a_hardening_is_shown_attack_by_attack(results: Results) -> None:
    hardening(results)
    add(results, "net", 0.6, rule="aimed-ascent")
    add(results, "hard", 0.2, rule="aimed-ascent")
    add(results, "hard", 0.5, rule="aimed-ascent", made_on="net")
    page = Page(write_report(results))
    assert "hardening" in page.all("id")
    assert "clean accuracy 90.0 % → 88.0 %" in page.text
    assert "those it was trained with – 7.0 %" in page.text
    assert "aimed-ascent, made on it 60.0 %" in page.text
    assert "Gradients are masked" in page.text


def test_no_section_without_rows(results: Results) -> None:
    Shop(results).add(extras=False)
    page = Page(write_report(results))
    assert not {"claims", "patients", "hardening"} & set(page.all("id"))
    assert not {"#claims", "#patients", "#hardening"} & set(page.all("href"))
