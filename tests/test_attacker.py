"""The attacker of black-box rules owns images that no classifier has learnt from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from uapray.data.dataset import ATTACKER, open_data, with_attacker
from uapray.errors import ConfigError, DataError
from uapray.experiment import find_missing, run_missing
from uapray.grid import parse_grid
from uapray.plan import Plan, plan_grid
from uapray.query import query
from uapray.resources import Resources
from uapray.run import Run
from uapray.store.results import open_results

DATA = "phantom:chest?images=240&size=32&seed=3"
QUICK = {"frequencies": 3, "population": 4, "race_images": 4, "budget": {"max_epochs": 20}}


def plan(*rules: Any, **changes: Any) -> Plan:
    victim = [{"weights": "foreign_victims:bright", "name": "bright"}]
    values = {"name": "g", "data": [{"uri": DATA}], "classifiers": victim, "rules": list(rules), **changes}
    return plan_grid(parse_grid(yaml.safe_dump(values), origin="test"))


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_he_gets_test_images_by_patient_and_the_train_images_stay(share: float) -> None:
    data = open_data(DATA)
    dealt = with_attacker(data, share)
    before, left, his = (one.images(split) for one, split in ((data, "test"), (dealt, "test"), (dealt, ATTACKER)))
    assert sorted(before.ids) == sorted(left.ids + his.ids)
    assert not {group for group in left.groups if group} & set(his.groups)
    assert len(his) / len(before) == pytest.approx(share, abs=0.1)
    assert his.ids == with_attacker(open_data(DATA), share).images(ATTACKER).ids
    assert np.array_equal(dealt.images("train").images, data.images("train").images)


def test_a_split_of_that_name_is_not_overwritten() -> None:
    with pytest.raises(DataError, match="none called attacker"):
        with_attacker(with_attacker(open_data(DATA), 0.3), 0.3)


def test_black_box_rules_are_made_on_his_images_and_all_rules_are_judged_on_the_rest() -> None:
    climb, ascent, control = plan("hill-climb", "spgd").trials
    assert [trial.made_on for trial in (climb, ascent, control)] == [ATTACKER, "train", "train"]
    assert climb.source is ascent.source
    assert climb.source.counts["test"] + climb.source.counts[ATTACKER] == plan("spgd").trials[0].source.counts["test"]
    assert climb.source.attacker_share == 0.3
    assert climb.image_gradients() == 0


def test_the_share_is_part_of_the_identity_where_there_is_one() -> None:
    def identity(*rules: str, **changes: Any) -> str:
        return {trial.search.rule: trial.trial_id for trial in plan(*rules, **changes).trials}["spgd"]

    without = identity("spgd")
    assert identity("spgd", attacker_share=0) == without
    assert identity("spgd", "ga") == identity("spgd", attacker_share=0.3) != without
    assert identity("spgd", attacker_share=0.2) != identity("spgd", attacker_share=0.3)


def test_an_attacker_without_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected more than 0 with rule pso"):
        plan("pso", attacker_share=0)


def test_a_grid_of_black_box_rules_runs(tmp_path: Path) -> None:
    asked = plan({"rule": "hill-climb", **QUICK}, {"rule": "cma-es", **QUICK}, zetas=[0.3], control=False)
    results = open_results(str(tmp_path / "store"))
    run = Run(asked, results, Resources("local", concurrency=1))
    summary = run_missing(run, find_missing(asked, results))
    assert (summary.done, summary.failed) == (2, 0)
    rows = query(results, "SELECT * FROM trials ORDER BY rule").to_pylist()
    assert [row["rule"] for row in rows] == ["cma-es", "hill-climb"]
    assert {row["source"].split("/")[1] for row in rows} == {ATTACKER}
    assert {row["image_gradients"] for row in rows} == {0}
    assert [row["epsilon"] is None for row in rows] == [True, False]
    assert all(row["images"] == asked.trials[0].source.counts["test"] for row in rows)
    assert query(results, "SELECT count(*) AS n FROM history").to_pylist()[0]["n"] > 2
