"""One grid, several drivers: `grid run --drivers`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from uapray.cli.running import run_with_progress
from uapray.experiment import Summary
from uapray.grid import parse_grid
from uapray.plan import Plan, plan_grid
from uapray.query import query
from uapray.resources import Resources
from uapray.store.results import Results, open_results

GRID = """
name: small
data: [{uri: "phantom:chest?images=160&size=32&seed=1"}]
classifiers: [{architecture: tiny-cnn, initial_weights: random, recipe: {base: quick, epochs: 2}}]
rules: [spgd, sga]
seeds: [0, 1, 2]
budget: {max_epochs: 2}
control_draws: 2
"""
TRIALS = 3 * 3
WAIT_S = 300
SAME = "trial_id, split, classifier_sha256, rule, seed, xi, fooling_rate, robust_accuracy, l2, image_gradients"


def planned() -> Plan:
    return plan_grid(parse_grid(GRID, origin="test"))


def came(results: Results) -> tuple[list[dict[str, Any]], list[bytes]]:
    rows = query(results, f"SELECT {SAME} FROM trials ORDER BY trial_id, split").to_pylist()
    return rows, [results.read_array(trial.trial_id).tobytes() for trial in planned().trials]


@pytest.fixture(scope="module")
def one_driver(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Results:
    results = open_results(str(tmp_path_factory.mktemp("one") / "store"))
    assert run_with_progress(planned(), results, Resources(replicas=1), None) == Summary(TRIALS, 0, 0)
    return results


@pytest.fixture
def store(one_driver: Results, tmp_path: Path) -> Results:
    (tmp_path / "grid.yaml").write_text(GRID)
    return open_results(str(tmp_path / "store"))


@contextmanager
def two_drivers(store: Results) -> Iterator[subprocess.Popen[str]]:
    """Run the grid in two processes that share the tests' Ray."""
    grid, address = Path(store.objects.uri).parent / "grid.yaml", ray.get_runtime_context().gcs_address
    words = ["--store", store.objects.uri, "--drivers", "2", "--replicas", "1", "--address", address]
    with subprocess.Popen(
        [sys.executable, "-m", "uapray", "grid", "run", grid, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
    ) as run:
        yield run
        run.kill()


def drivers_of(run: subprocess.Popen[str]) -> list[psutil.Process]:
    return [one for one in psutil.Process(run.pid).children() if "--part" in one.cmdline()]


def wait_until_rows(store: Results, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not list(Path(store.objects.uri).glob("trials/*/*.parquet")):
        assert run.poll() is None, "it ended before a trial was done"
        assert time.monotonic() < deadline, "no trial within five minutes"
        time.sleep(0.05)


@pytest.mark.ray
def test_two_drivers_give_the_bits_of_one(one_driver: Results, store: Results) -> None:
    with two_drivers(store) as run:
        printed, said = run.communicate(timeout=WAIT_S)
    assert run.returncode == 0
    assert printed.strip() == f"{TRIALS} trials done, 0 stood already, 0 failed"
    assert {line.split()[0] for line in said.splitlines() if "trials" in line} == {"1/2", "2/2"}
    assert came(store) == came(one_driver)
    with two_drivers(store) as again:
        assert again.communicate(timeout=WAIT_S)[0].strip() == f"0 trials done, {TRIALS} stood already, 0 failed"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 130), pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_what_ends_the_run_ends_its_drivers(
    number: signal.Signals, code: int, one_driver: Results, store: Results
) -> None:
    with two_drivers(store) as run:
        wait_until_rows(store, run)
        drivers = drivers_of(run)
        assert len(drivers) > 0
        run.send_signal(number)
        _, said = run.communicate(timeout=WAIT_S)
    assert run.returncode == code
    assert number == signal.SIGKILL or "goes on from here" in said
    _, alive = psutil.wait_procs(drivers, timeout=60)
    assert not alive
    assert run_with_progress(planned(), store, Resources(replicas=1), None).failed == 0
    assert came(store) == came(one_driver)


@pytest.mark.ray
@pytest.mark.slow
def test_a_driver_that_is_killed_is_named_and_the_same_command_does_the_rest(
    one_driver: Results, store: Results
) -> None:
    with two_drivers(store) as run:
        wait_until_rows(store, run)
        (killed,) = (one for one in drivers_of(run) if "2/2" in one.cmdline())
        killed.kill()
        _, said = run.communicate(timeout=WAIT_S)
    assert run.returncode == 1
    assert "drivers died: 2/2 (SIGKILL)" in said
    with two_drivers(store) as again:
        assert again.communicate(timeout=WAIT_S)[0].endswith("0 failed\n")
    assert came(store) == came(one_driver)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--drivers", "2", "--address", "127.0.0.1:1"], "--replicas too"),
        (["--drivers", "2", "--replicas", "4"], "a cluster that they share"),
        (["--drivers", "2", "--replicas", "4", "--part", "1/2", "--address", "127.0.0.1:1"], "no --part beside it"),
        (["--drivers", "2", "--replicas", "4", "--address", "127.0.0.1:1"], "is the cluster up?"),
        (["--drivers", "0"], "greater than or equal to 1"),
    ],
)
def test_what_several_drivers_cannot_do_is_said(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "grid.yaml").write_text(GRID)
    command = [sys.executable, "-m", "uapray", "grid", "run", tmp_path / "grid.yaml", "--store", tmp_path / "store"]
    ended = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert expected in " ".join(ended.stderr.replace("│", " ").split())
    assert not (tmp_path / "store").exists()
