"""Twenty kills at random over one grid, of replicas and of the driver: the same rows and the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from uapray.experiment import find_missing, run_missing
from uapray.grid import parse_grid
from uapray.plan import Plan, plan_grid
from uapray.query import query
from uapray.resources import Resources
from uapray.run import Run
from uapray.store.results import Results, open_results

pytestmark = pytest.mark.ray

GRID = """
name: chaos
data: [{uri: "phantom:chest?images=160&size=32&seed=1"}]
classifiers: [{weights: "foreign_victims:bright"}, {weights: "foreign_victims:indifferent", name: flat}]
targets: [nontargeted, OPACITY]
rules: [{rule: aimed-ascent, budget: {max_epochs: PASSES}}, {rule: uap-fgsm, budget: {max_epochs: 3}}, hill-climb]
seeds: SEEDS
budget: {max_epochs: 20}
control_draws: 2
"""
SAME = "trial_id, split, rule, target, seed, xi, fooling_rate, l2, image_gradients, image_queries, source_fooling_rate"
TESTS = Path(__file__).parent.parent


def plan(passes: int, seeds: int) -> Plan:
    text = GRID.replace("PASSES", str(passes)).replace("SEEDS", str(list(range(seeds))))
    return plan_grid(parse_grid(text, origin="test"))


def rows(results: Results) -> list[dict[str, Any]]:
    return query(results, f"SELECT {SAME} FROM trials ORDER BY trial_id, split").to_pylist()


def mayhem(kills: int, seed: int, passes: int, seeds: int, tmp_path: Path) -> None:
    """Run a grid through kills, start its driver again after each of its deaths, and compare with a quiet run."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    quiet, wild = (open_results(str(tmp_path / name)) for name in ("quiet", "wild"))
    sys.path.insert(0, str(TESTS))
    whole = plan(passes, seeds)
    run_missing(Run(whole, quiet, Resources("local")), find_missing(whole, quiet))

    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.replace("PASSES", str(passes)).replace("SEEDS", str(list(range(seeds)))))
    words = [sys.executable, "-m", "uapray", "grid", "run", str(grid), "--store", str(tmp_path / "wild")]
    words += ["--save-every", "0.5", "--replicas", "2", "--address", "local"]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])

    def started() -> subprocess.Popen[bytes]:
        with open(tmp_path / "log", "ab") as log:
            return subprocess.Popen(words, stderr=log, stdout=log, env=os.environ | {"PYTHONPATH": path})

    driver, done, left = started(), 0, set[psutil.Process]()
    deaths = {"driver": 0, "replica": 0}
    while driver.poll() is None:
        time.sleep(chance.uniform(0.2, 1.5))
        family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
        hosts = [child for child in family if is_replica(child)]
        if done >= kills or not hosts:
            continue
        left |= set(family)
        whom = "driver" if chance.random() < 0.25 else "replica"
        os.kill(driver.pid if whom == "driver" else chance.choice(hosts).pid, signal.SIGKILL)
        done, deaths[whom] = done + 1, deaths[whom] + 1
        if whom == "driver":
            driver.wait()
            for orphan in left:
                if orphan.is_running():
                    orphan.kill()
            driver, left = started(), set()
    print(deaths)
    assert driver.returncode == 1, "the searches on the flat classifier fail, and the exit code says so"
    assert done == kills, f"the grid had ended after {done} kills"
    assert rows(wild) == rows(quiet)
    arrays = quiet.objects.keys("perturbations/")
    assert wild.objects.keys("perturbations/") == arrays
    for key in arrays:
        trial = key.removeprefix("perturbations/").removesuffix(".safetensors")
        assert np.array_equal(wild.read_array(trial), quiet.read_array(trial))
    for table in ("images", "flows", "classes", "clinical", "history", "controls"):
        count = f"SELECT count(*) AS n FROM {table}"
        assert query(wild, count).to_pylist() == query(quiet, count).to_pylist(), f"{table}: lost or twice"
    failed = [one.rows("failures")["trial_id"].to_pylist() for one in (quiet, wild)]
    assert set(failed[0]) == set(failed[1])
    assert wild.objects.keys("states/") == []


def is_replica(process: psutil.Process) -> bool:
    try:
        return "ray::Host" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_three_kills(tmp_path: Path) -> None:
    mayhem(3, random.SystemRandom().randrange(2**32), passes=12, seeds=2, tmp_path=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills(tmp_path: Path) -> None:
    mayhem(20, random.SystemRandom().randrange(2**32), passes=40, seeds=6, tmp_path=tmp_path)
