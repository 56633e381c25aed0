"""The main job, end to end: real replicas, real stores, real kills."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3_server import S3Server

from uapray.cli.running import run_with_progress
from uapray.errors import StoppedError
from uapray.experiment import Summary, find_missing, run_missing
from uapray.grid import parse_grid
from uapray.plan import Plan, plan_grid
from uapray.query import query
from uapray.resources import Resources
from uapray.run import Run, Watcher
from uapray.store.results import Results, open_results

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

GRID = """
name: small
data:
  - uri: phantom:chest?images=160&size=32&seed=1
classifiers:
  - architecture: tiny-cnn
    initial_weights: random
    recipe: {base: quick, epochs: 2}
targets: [nontargeted, OPACITY]
rules: [spgd, {rule: sga, inner_rounds: 2}]
seeds: [0, 1]
splits: [train, test]
budget: {max_epochs: 2}
control_draws: 2
"""
TRIALS = 2 * 3 * 2  # targets × (two rules and the control) × seeds
RESOURCES = Resources(replicas=2)
SAME = "trial_id, split, classifier_sha256, rule, target, seed, xi, fooling_rate, robust_accuracy, l2, image_gradients"


def small_plan() -> Plan:
    return plan_grid(parse_grid(GRID, origin="test"))


def same_rows(results: Results) -> list[dict[str, Any]]:
    return query(results, f"SELECT {SAME} FROM trials ORDER BY trial_id, split").to_pylist()


def arrays(results: Results) -> dict[str, bytes]:
    return {trial.trial_id: results.read_array(trial.trial_id).tobytes() for trial in small_plan().trials}


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A store into which the grid was run in one go."""
    results = open_results(str(tmp_path_factory.mktemp("undisturbed") / "store"))
    assert run_with_progress(small_plan(), results, RESOURCES, None) == Summary(TRIALS, 0, 0)
    return results


def test_the_tables_agree_with_one_another(undisturbed: Results) -> None:
    trials = query(undisturbed, "SELECT * FROM trials").to_pylist()
    assert len(trials) == 2 * TRIALS
    for row in trials:
        flows = query(
            undisturbed,
            f"SELECT sum(images) AS n, sum(images) FILTER (clean_prediction <> perturbed_prediction) AS fooled, "
            f"sum(images) FILTER (label = clean_prediction) AS right FROM flows "
            f"WHERE trial_id = '{row['trial_id']}' AND split = '{row['split']}'",
        ).to_pylist()[0]
        assert flows["n"] == row["images"]
        assert (flows["fooled"] or 0) / flows["n"] == pytest.approx(row["fooling_rate"])
        assert flows["right"] / flows["n"] == pytest.approx(row["clean_accuracy"])
        assert row["fooling_rate_low"] <= row["fooling_rate"] <= row["fooling_rate_high"]
        array = undisturbed.read_array(row["trial_id"])
        assert float(np.abs(array).max()) == pytest.approx(row["linf"])
        assert float(np.linalg.norm(array.ravel().astype(np.float64))) == pytest.approx(row["l2"])
        assert row["linf"] <= row["xi"] * (1 + 1e-6)
        assert (row["targeted_success_rate"] is None) == (row["target"] is None)
    images = query(undisturbed, "SELECT count(*) AS n FROM images").to_pylist()[0]["n"]
    assert images == sum(row["images"] for row in trials)
    history = query(undisturbed, "SELECT count(DISTINCT trial_id) AS n FROM history").to_pylist()[0]["n"]
    assert history == TRIALS * 2 // 3, "each search has a history, the control has none"
    classes = query(undisturbed, "SELECT split, class_name FROM classifiers").to_pylist()
    assert len(classes) == 2 * 4, "three classes and all, on two splits"


def test_a_second_run_does_no_work(undisturbed: Results) -> None:
    folder = Path(undisturbed.objects.uri)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert run_with_progress(small_plan(), undisturbed, RESOURCES, None) == Summary(0, TRIALS, 0)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_that_was_asked_to_stop_goes_on_where_it_was(undisturbed: Results, tmp_path: Path) -> None:
    results, plan = open_results(str(tmp_path / "store")), small_plan()
    stop = threading.Event()
    watcher = Watcher(judged=lambda _step, judgement: stop.set() if judgement.split == "test" else None)
    with pytest.raises(StoppedError):
        run_missing(Run(plan, results, RESOURCES, watcher, stop), find_missing(plan, results))
    standing = len(query(results, "SELECT DISTINCT trial_id FROM trials").to_pylist())
    assert 0 < standing < TRIALS
    again = run_with_progress(plan, results, RESOURCES, None)
    assert again.done + again.standing == TRIALS
    assert again.standing > 0
    assert same_rows(results) == same_rows(undisturbed)
    assert arrays(results) == arrays(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_driver_that_is_killed_loses_nothing(number: signal.Signals, undisturbed: Results, tmp_path: Path) -> None:
    grid, store = tmp_path / "grid.yaml", tmp_path / "store"
    grid.write_text(GRID)
    words = [sys.executable, "-m", "uapray", "grid", "run", grid, "--store", store, "--replicas", "2"]
    driver = subprocess.Popen(words, stderr=subprocess.PIPE, env=os.environ | {"RAY_ADDRESS": "local"})
    deadline = time.monotonic() + 300
    while not list(store.glob("trials/*/*.parquet")):
        assert driver.poll() is None, "it ended before a trial was done"
        assert time.monotonic() < deadline, "no trial within five minutes"
        time.sleep(0.05)
    driver.send_signal(number)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    if number == signal.SIGTERM:
        assert b"goes on from here" in said
    results = open_results(str(store))
    assert len(list(store.glob("trials/*/*.parquet"))) < 2 * TRIALS, "it had finished before it was killed"
    summary = run_with_progress(small_plan(), results, RESOURCES, None)
    assert summary.done + summary.standing == TRIALS
    assert same_rows(results) == same_rows(undisturbed)
    assert arrays(results) == arrays(undisturbed)


@pytest.mark.s3
def test_the_same_rows_in_s3(undisturbed: Results, on_seaweedfs: S3Server) -> None:
    on_seaweedfs.make_bucket("main-job")
    results = open_results("s3://main-job/results")
    assert run_with_progress(small_plan(), results, RESOURCES, None) == Summary(TRIALS, 0, 0)
    assert same_rows(results) == same_rows(undisturbed)
    assert arrays(results) == arrays(undisturbed)


def test_a_trial_that_fails_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    values = GRID.replace("architecture: tiny-cnn", "weights: foreign_victims:indifferent").replace(
        "    initial_weights: random\n    recipe: {base: quick, epochs: 2}\n", ""
    )
    plan = plan_grid(parse_grid(values, origin="test"))
    results = open_results(str(tmp_path / "store"))
    summary = run_with_progress(plan, results, RESOURCES, None)
    assert summary == Summary(TRIALS // 3, 0, TRIALS * 2 // 3), "the controls stand, the searches failed"
    failures = query(results, 'SELECT error, message, attempt FROM failures ORDER BY "at"').to_pylist()
    assert len(failures) == summary.failed
    assert all("gradient" in row["message"] for row in failures)
    run_with_progress(plan, results, RESOURCES, None)
    attempts = query(results, "SELECT max(attempt) AS n FROM failures").to_pylist()[0]["n"]
    assert attempts == 2


@pytest.mark.slow
def test_a_curve_that_is_stopped_midway_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    values = GRID.replace("seeds: [0, 1]", "seeds: [0]\nzetas: [0.02, 0.04, 0.08]\ncurve: true\ncontrol: false")
    plan = plan_grid(parse_grid(values.replace("targets: [nontargeted, OPACITY]", ""), origin="test"))
    assert len(plan.trials) == 2 * 3, "two rules, three zetas"
    whole, halved = (open_results(str(tmp_path / name)) for name in ("whole", "halved"))
    assert run_with_progress(plan, whole, RESOURCES, None) == Summary(6, 0, 0)
    for key in whole.objects.keys("models/"):  # the training is not what is tried
        halved.objects.write(key, whole.objects.read(key))
    stop = threading.Event()
    with pytest.raises(StoppedError):
        run_missing(
            Run(plan, halved, RESOURCES, Watcher(done=lambda _step: stop.set()), stop), find_missing(plan, halved)
        )
    assert 0 < len(halved.keys("trials")) < 12
    assert not halved.keys("curves")
    again = run_with_progress(plan, halved, RESOURCES, None)
    assert again.done + again.standing == 6
    assert again.standing > 0
    rows, told = (one.rows("curves").drop_columns("finished_at").to_pylist() for one in (whole, halved))
    assert sorted(rows, key=str) == sorted(told, key=str)
    assert len(rows) == 2 * 2, "two rules, two splits"
    for trial in plan.trials:
        assert whole.read_array(trial.trial_id).tobytes() == halved.read_array(trial.trial_id).tobytes()
