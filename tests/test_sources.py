"""Of another data set that perturbations are made from, what somebody chooses is decoded, and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from uapray.data.dataset import open_data
from uapray.data.images import chosen_images
from uapray.errors import ConfigError
from uapray.experiment import find_missing, run_missing
from uapray.grid import parse_grid
from uapray.group import decoded
from uapray.plan import Plan, plan_grid
from uapray.resources import Resources
from uapray.run import Run
from uapray.store.results import Results, open_results

NATURAL = {"uri": "phantom:chest?images=120&size=32&seed=5", "name": "natural"}
KNOWN = len(open_data(str(NATURAL["uri"])).rows("train"))
SEEDS = (0, 3)
SPGD = {"rule": "spgd", "budget": {"max_epochs": 1}}
HILL_CLIMB = {"rule": "hill-climb", "frequencies": 3, "race_images": 4, "budget": {"max_epochs": 20}}


def plan(*sources: dict[str, Any], **changes: Any) -> Plan:
    values = {
        "name": "g",
        "data": [{"uri": "phantom:chest?images=60&size=32&seed=1"}],
        "classifiers": [{"weights": "foreign_victims:bright", "name": "bright"}],
        "sources": list(sources),
        "rules": [SPGD, HILL_CLIMB],
        "seeds": list(SEEDS),
        **changes,
    }
    return plan_grid(parse_grid(yaml.safe_dump(values), origin="test"))


def run(of: Plan, folder: Path) -> Results:
    results = open_results(str(folder))
    assert run_missing(Run(of, results, Resources("local")), find_missing(of, results)).failed == 0
    return results


def test_what_any_seed_chooses_is_decoded_and_each_finds_its_own() -> None:
    some = plan({**NATURAL, "images": 7}, {**NATURAL, "images": 3})
    source = some.trials[0].source
    chosen = [chosen_images(KNOWN, 7, seed) for seed in SEEDS]
    foreign = source.foreign["natural/train"]
    assert foreign.chosen is not None
    assert foreign.chosen.tolist() == sorted({*chosen[0].tolist(), *chosen[1].tolist()})
    assert source.counts["natural/train"] == foreign.known == KNOWN
    held = decoded(source, ("test",))["natural/train"]
    assert len(held) == len(foreign.chosen) < KNOWN
    every = foreign.data.images("train")
    for trial in some.trials:
        if trial.search.rule == "random":
            assert trial.rows is None
        else:
            assert trial.rows is not None
            wanted = chosen_images(KNOWN, trial.made_from.images, trial.seed)
            assert [held.ids[row] for row in trial.rows] == [every.ids[row] for row in wanted]
            assert np.array_equal(held.images[trial.rows], every.images[wanted])


def test_perturbations_are_the_same_bits_as_when_all_are_decoded(tmp_path: Path) -> None:
    some, beside_all = plan({**NATURAL, "images": 12}), plan({**NATURAL, "images": 12}, NATURAL)
    assert beside_all.trials[0].source.foreign["natural/train"].chosen is None
    one, other = run(some, tmp_path / "some"), run(beside_all, tmp_path / "all")
    shared = {trial.trial_id for trial in some.trials} & {trial.trial_id for trial in beside_all.trials}
    assert len(shared) == len(some.trials)
    for trial_id in shared:
        assert np.array_equal(one.read_array(trial_id), other.read_array(trial_id))


def test_images_that_are_judged_are_all_there() -> None:
    judged = plan({**NATURAL, "images": 7}, splits=["test", "natural/train"])
    assert judged.trials[0].source.foreign["natural/train"].chosen is None


def test_two_places_under_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="sources: expected a name each, got two called 'natural/train'"):
        plan(NATURAL, {**NATURAL, "uri": "phantom:chest?images=90&size=32"})


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"sources: expected at most {KNOWN} images"):
        plan({**NATURAL, "images": KNOWN + 1})
