"""Whose mean norm zeta is a share of: ours, and as the papers' code takes it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_report import Shop
from victims import HEIGHT, WIDTH, SmallCNN, arena_of, image_set

from uapray.arena import radius
from uapray.attack.projection import length
from uapray.config import Search, Threat, parse
from uapray.data.images import chosen_images
from uapray.errors import ConfigError
from uapray.experiment import find_missing, run_missing
from uapray.grid import parse_grid
from uapray.plan import Plan, plan_grid
from uapray.query import query
from uapray.report.rates import rates
from uapray.resources import Resources
from uapray.run import Run
from uapray.store.results import open_results
from uapray.trial import find
from uapray.verdict import verdicts

ZETA = 0.04
COLOURS = np.array([[30, 40, 120], [90, 120, 80], [200, 10, 250], [60, 80, 0]], dtype=np.uint8)  # an image each
AREA = HEIGHT * WIDTH


def coloured() -> Any:
    pixels = np.broadcast_to(COLOURS[:, None, None, :], (len(COLOURS), HEIGHT, WIDTH, 3)).copy()
    return image_set(len(COLOURS), channels=3, pixels=pixels)


def test_each_variant_gives_what_its_papers_code_would() -> None:
    arena, _ = arena_of(SmallCNN(3), coloured())
    grey = COLOURS.astype(float)
    means = {
        ("whole-images", "l2"): math.sqrt(AREA) * np.mean(np.sqrt((grey**2).sum(axis=1))),
        ("whole-images", "linf"): np.mean([120, 120, 250, 80]),
        ("first-channel", "l2"): math.sqrt(AREA) * np.mean([30, 90, 200, 60]),
        ("first-channel", "linf"): np.mean([30, 90, 200, 60]),
    }
    for (xi_from, norm), mean in means.items():
        xi = radius(arena, "train", Threat(norm=norm, zeta=ZETA, xi_from=xi_from))
        assert xi == pytest.approx(ZETA * mean / 255, rel=1e-12), (xi_from, norm)


@pytest.mark.parametrize("rule", ["random", "spgd"])
def test_source_images_are_those_that_were_drawn(rule: str) -> None:
    arena, _ = arena_of(SmallCNN(3), coloured())
    search = Search(rule=rule, batch_size=2, round_size=2)
    for seed in range(3):
        drawn = chosen_images(len(COLOURS), 2, seed)
        found = find(arena, Threat(zeta=ZETA, xi_from="source-images"), search, seed=seed, rows=drawn)
        assert found.xi == pytest.approx(ZETA * np.mean(COLOURS[drawn].max(axis=1)) / 255, rel=1e-12)
        assert length(found.perturbation, p=math.inf) <= found.xi * (1 + 1e-6)
        usual = find(arena, Threat(zeta=ZETA), search, seed=seed, rows=drawn)
        assert usual.xi == pytest.approx(ZETA * np.mean([120, 120, 250, 80]) / 255, rel=1e-12)


def test_of_grey_images_the_first_channel_is_all() -> None:
    arena, _ = arena_of(SmallCNN(), image_set(9))
    first, whole = (
        radius(arena, "train", Threat(norm="l2", zeta=ZETA, xi_from=one)) for one in ("first-channel", "whole-images")
    )
    assert first == whole


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"xi": 0.1, "xi_from": "first-channel"}, "xi_from: expected with zeta only, got first-channel beside xi"),
        ({"zeta": 0.1, "xi_from": "first-chanel"}, "unknown 'first-chanel'; did you mean 'first-channel'?"),
    ],
)
def test_a_variant_without_sense_is_refused_in_a_line(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(Threat, values, origin="perturb")
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)


def plan(**changes: Any) -> Plan:
    values = {
        "name": "g",
        "data": [{"uri": "phantom:chest?images=60&size=32&seed=1"}],
        "classifiers": [{"weights": "foreign_victims:bright", "name": "bright"}],
        "rules": [{"rule": "spgd", "budget": {"max_epochs": 1}}],
        **changes,
    }
    return plan_grid(parse_grid(yaml.safe_dump(values), origin="test"))


def test_the_usual_one_is_no_part_of_the_identifier_and_the_others_are() -> None:
    usual = [trial.trial_id for trial in plan().trials]
    assert [trial.trial_id for trial in plan(xi_from=["whole-images"]).trials] == usual
    every = plan(xi_from=["whole-images", "first-channel", "source-images"]).trials
    assert [trial.trial_id for trial in every][:2] == usual
    assert len({trial.trial_id for trial in every}) == 3 * len(usual)


def test_a_radius_of_its_own_needs_a_control_of_its_own() -> None:
    sources = [{}, {"images": 10}]
    assert [trial.search.rule for trial in plan(sources=sources).trials].count("random") == 1
    own = plan(sources=sources, xi_from=["source-images"]).trials
    assert [trial.search.rule for trial in own].count("random") == 2


def test_a_grid_of_all_variants_says_which_is_which(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    of_all = plan(sources=[{"images": 12}], xi_from=["whole-images", "first-channel", "source-images"], seeds=[0, 1])
    run = Run(of_all, results, Resources("local"))
    assert run_missing(run, find_missing(of_all, results)).failed == 0
    sql = "SELECT rule, xi_from, source, seed, xi FROM trials ORDER BY xi_from, rule, seed"
    rows = {(one["rule"], one["xi_from"], one["seed"]): one for one in query(results, sql).to_pylist()}
    assert len(rows) == 2 * 3 * 2
    for seed in (0, 1):
        assert rows["spgd", "first-channel", seed]["xi"] == rows["spgd", "whole-images", seed]["xi"], "they are grey"
        searched, drawn = (rows[rule, "source-images", seed] for rule in ("spgd", "random"))
        assert searched["xi"] == drawn["xi"] != rows["spgd", "whole-images", seed]["xi"]
        assert searched["source"] == drawn["source"] == "synthetic-chest-phantoms/train[12]"
        assert rows["random", "whole-images", seed]["source"] is None
    assert rows["spgd", "source-images", 0]["xi"] != rows["spgd", "source-images", 1]["xi"]
    shown = [(row.rule, row.xi_from, row.draws) for row in rates(results, None)]
    assert sorted(shown, key=str) == [
        ("spgd", "first-channel", 2),
        ("spgd", "source-images synthetic-chest-phantoms/train[12]", 2),
        ("spgd", None, 2),
    ]


def test_rows_of_earlier_versions_are_of_whole_images(tmp_path: Path) -> None:
    shop = Shop(open_results(str(tmp_path)))
    for xi_from in (None, "whole-images", "first-channel"):
        shop.add(extras=False, xi_from=xi_from)
        shop.add(rule="random", extras=False, xi_from=xi_from)
    assert [(row.xi_from, row.searches, row.draws) for row in rates(shop.results, None)] == [
        (None, 2, 2),
        ("first-channel", 1, 1),
    ]
    above_random = next(one for one in verdicts(shop.results) if one.claim == "a").units
    assert {unit.about for unit in above_random} == {
        "chest (150), resnet18, linf 0.04 of first-channel spgd − random",
        "chest (150), resnet18, linf 0.04 spgd − random",
    }
