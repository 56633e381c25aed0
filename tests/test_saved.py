"""A search that was interrupted, wherever that was, goes on to the bits of an undisturbed one."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from victims import SmallCNN, arena_of, image_set

from uapray.api import search_settings
from uapray.attack.objective import Objective
from uapray.attack.rules import State
from uapray.config import Norm, Threat
from uapray.coordinator import Measurement, Snapshot, Start
from uapray.errors import StoppedError, StoreError, TrialError
from uapray.experiment import find_missing, run_missing
from uapray.grid import parse_grid
from uapray.keeper import Keeper, state_key
from uapray.objects import LocalObjects
from uapray.plan import Plan, plan_grid
from uapray.remembering import RememberingPool
from uapray.resources import Resources
from uapray.run import Run, Watcher
from uapray.saved import Progress, pack, unpack
from uapray.store.results import Results, open_results
from uapray.trial import Found, find

Settings = dict[str, dict[str, Any]]
ORIGIN = {"made_on": "abc", "torch": "2"}
RULES: Settings = {
    "aimed-ascent": {"max_epochs": 2},
    "spgd": {"max_epochs": 2, "momentum": 0.5, "wiener_rounds": 4, "starts": 4, "screen_images": 9},
    "sga": {"max_epochs": 2, "inner_rounds": 3},
    "df-uap": {"max_epochs": 2, "batch_size": 8, "round_size": 8},
    "cosine-uap": {"max_epochs": 2, "batch_size": 8, "round_size": 8, "init": "gradient"},
    "uap-fgsm": {"max_epochs": 2, "measures_per_epoch": 3, "step_size": 1.0},
}
BY_ANSWERS: Settings = {
    "hill-climb": {"max_epochs": 12, "frequencies": 4},
    "cma-es": {"max_epochs": 20, "frequencies": 3, "population": 4},
    "ga": {"max_epochs": 20, "frequencies": 3, "population": 4},
}
IMAGES = image_set(60, classes=3)
THREAT = Threat(norm="linf", zeta=0.3)


def victim() -> SmallCNN:
    return SmallCNN()


def kept(progress: Progress) -> Progress:
    """Return what is left of it after a way through the bytes."""
    again = unpack(pack(progress, ORIGIN), ORIGIN, name="state")
    assert again is not None
    return again


def same(one: Found, other: Found) -> bool:
    return torch.equal(one.perturbation, other.perturbation) and replace(one, perturbation=other.perturbation) == other


@pytest.mark.parametrize(("rule", "norm"), [*((rule, "linf") for rule in RULES), ("aimed-ascent", "l2")])
def test_from_each_snapshot_a_search_comes_to_the_same_end(rule: str, norm: Norm) -> None:
    threat = THREAT.model_copy(update={"norm": norm})
    search = search_settings(rule, {"validation_share": 0.3, **RULES[rule]})
    passed: list[Progress] = []
    history: list[Measurement] = []

    def watch(snapshot: Snapshot) -> None:
        history.extend(snapshot.measured)
        passed.append(Progress(snapshot, tuple(history)))

    arena, _ = arena_of(victim(), IMAGES)
    undisturbed = find(arena, threat, search, seed=3, watch=watch)
    assert len(passed) > 2
    for progress in passed:
        arena, pool = arena_of(victim(), IMAGES)
        assert same(undisturbed, find(arena, threat, search, seed=3, so_far=kept(progress)))
        assert progress.snapshot is not None
        left = undisturbed.image_gradients - progress.snapshot.image_gradients
        if rule != "uap-fgsm":  # it looks ahead, and counts what the images cost without that
            assert pool.image_gradients == left, "what was done before is not done again"


@pytest.mark.parametrize("rule", BY_ANSWERS)
def test_a_search_by_answers_is_walked_through_again_and_asks_nobody_on_the_way(rule: str) -> None:
    search = search_settings(rule, {"validation_share": 0.3, **BY_ANSWERS[rule]})
    cut: list[tuple[int, Progress]] = []
    arena, pool = arena_of(victim(), IMAGES)
    arena.clean("train")
    remembering = RememberingPool(arena.pool)
    undisturbed = find(
        replace(arena, pool=remembering),
        THREAT,
        search,
        seed=3,
        watch=lambda _: cut.append((pool.image_queries, Progress(answers=remembering.answers))),
    )
    whole = pool.image_queries
    assert len(cut) > 2
    for spent, progress in (cut[0], cut[len(cut) // 2], cut[-1]):
        arena, pool = arena_of(victim(), IMAGES)
        arena.clean("train")
        before, again = pool.image_queries, kept(progress)
        resumed = find(replace(arena, pool=RememberingPool(arena.pool, again.answers)), THREAT, search, seed=3)
        assert same(undisturbed, resumed)
        assert pool.image_queries - before == whole - spent


numbers = st.floats(allow_nan=False, width=32)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    shape = draw(st.tuples(*[st.integers(1, 3)] * 3))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def tensor(dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=rng, dtype=dtype)

    def start(index: int) -> Start:
        squares = tensor(torch.float64) if draw(st.booleans()) else None
        earlier, bands = (tensor(torch.float64) if draw(st.booleans()) else None for _ in range(2))
        state = State(tensor(), tensor(), tensor(torch.float64), squares, draw(st.integers(0, 9)), earlier, bands)
        aim = Objective(
            draw(st.none() | st.integers(0, 5)), draw(st.sampled_from(["margin", "cosine"])), draw(st.just(9.0))
        )
        return Start(index, state, aim, draw(st.integers(0, 99)), draw(st.booleans()), draw(st.integers(0, 2**40)), 7)

    starts = tuple(start(index) for index in range(draw(st.integers(0, 3))))
    rate, spent = draw(numbers), draw(st.integers(0, 2**40))
    return Snapshot(starts, tensor(), rate, draw(numbers), spent, spent + 1, (), draw(numbers), len(starts), rate)


def plain(snapshot: Snapshot) -> object:
    """Return all of a snapshot as values that can be compared."""

    def bits(tensor: torch.Tensor | None) -> object:
        return None if tensor is None else (str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes())

    starts = [
        (
            replace(one, state=None),  # type: ignore[arg-type]
            one.state.inner,
            *map(bits, (getattr(one.state, name) for name in ("v", "point", "memory", "squares", "earlier", "bands"))),
        )
        for one in snapshot.starts
    ]
    return replace(snapshot, starts=(), best=torch.zeros(0)).__repr__(), bits(snapshot.best), starts


@given(snapshots())
@settings(deadline=None, max_examples=60)
def test_a_snapshot_comes_back_to_the_bit(snapshot: Snapshot) -> None:
    row = Measurement(0, 3, 0.25, 8, 9, 10, 1.5, 0.1, 0.5, None, 0.25)
    again = kept(Progress(snapshot, (row, replace(row, targeted_success_rate=0.5)), (), 2.5))
    assert again.snapshot is not None
    assert plain(again.snapshot) == plain(snapshot)
    assert again.history == (row, replace(row, targeted_success_rate=0.5))
    assert again.seconds == 2.5


def test_answers_come_back_to_the_bit() -> None:
    answers = tuple(np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32) for n in (1, 4, 2))
    again = kept(Progress(answers=answers))
    assert [one.tobytes() for one in again.answers] == [one.tobytes() for one in answers]


def test_what_another_classifier_or_version_left_is_not_gone_on_with() -> None:
    body = pack(Progress(seconds=1.0), ORIGIN)
    assert unpack(body, ORIGIN, name="state") == Progress(seconds=1.0)
    assert unpack(body, {**ORIGIN, "torch": "3"}, name="state") is None


@pytest.mark.parametrize("body", [b"", b"no safetensors", pack(Progress(), ORIGIN)[:-20]])
def test_a_damaged_state_is_named(body: bytes) -> None:
    with pytest.raises(StoreError, match="states/x: damaged"):
        unpack(body, ORIGIN, name="states/x")


def test_answers_of_another_search_are_refused() -> None:
    arena, _ = arena_of(victim(), IMAGES)
    arena.clean("train")
    pool = RememberingPool(arena.pool, (np.zeros((1, 3), dtype=np.float32),) * 99)
    with pytest.raises(StoreError, match="those of another"):
        find(replace(arena, pool=pool), THREAT, search_settings("hill-climb", {"max_epochs": 4}), seed=0)


class TestKeeper:
    def test_it_writes_when_it_is_time_and_when_it_is_interrupted(self, tmp_path: Path) -> None:
        objects = LocalObjects(tmp_path)
        snapshot = Snapshot((), torch.zeros(1, 2, 2), 0.5, 0.5, 1, 2, (), 0.5)
        patient = Keeper(objects, "t", ORIGIN, every_s=1000)
        with contextlib.suppress(KeyboardInterrupt), patient.keeping():
            patient.watch(snapshot)
            assert objects.keys() == []
            raise KeyboardInterrupt
        assert objects.keys() == [state_key("t")]
        assert Keeper(objects, "t", ORIGIN, every_s=1000).before.snapshot is not None
        patient.forget()
        assert objects.keys() == []
        Keeper(objects, "t", ORIGIN, every_s=0).watch(snapshot)
        assert objects.keys() == [state_key("t")]

    def test_a_search_that_failed_for_good_begins_anew(self, tmp_path: Path) -> None:
        keeper = Keeper(LocalObjects(tmp_path), "t", ORIGIN, every_s=0)
        with contextlib.suppress(TrialError), keeper.keeping():
            keeper.watch(Snapshot((), torch.zeros(1, 2, 2), 0.5, 0.5, 1, 2, (), 0.5))
            assert LocalObjects(tmp_path).keys() == [state_key("t")]
            raise TrialError("not a number")
        assert LocalObjects(tmp_path).keys() == []


GRID = """
name: kept
data: [{uri: "phantom:chest?images=120&size=32"}]
classifiers: [{weights: "foreign_victims:bright"}]
rules: [{rule: spgd, starts: 3, budget: {max_epochs: 6}}, {rule: uap-fgsm, budget: {max_epochs: 3}}, RULE]
control: false
control_draws: 0
renderings: []
"""
GRID = GRID.replace("RULE", "{rule: cma-es, frequencies: 3, population: 4, budget: {max_epochs: 20}}")
LOCAL = Resources("local", concurrency=1)


def plan() -> Plan:
    return plan_grid(parse_grid(GRID, origin="test"))


def bits(results: Results) -> dict[str, bytes]:
    return {trial.trial_id: results.read_array(trial.trial_id).tobytes() for trial in plan().trials}


def told(results: Results) -> list[dict[str, object]]:
    columns = ["trial_id", "split", "fooling_rate", "image_gradients", "image_queries", "source_fooling_rate"]
    return sorted(results.rows("trials").select(columns).to_pylist(), key=str)


def test_a_run_stopped_again_and_again_within_its_searches_ends_the_same(tmp_path: Path) -> None:
    whole, cut = (open_results(str(tmp_path / name)) for name in ("whole", "cut"))
    run_missing(Run(plan(), whole, LOCAL), find_missing(plan(), whole))
    stops = 0
    while find_missing(plan(), cut).groups:
        stop = threading.Event()

        def soon(
            _step: object, snapshot: Snapshot, until: int = 150 * (stops + 1), stop: threading.Event = stop
        ) -> None:
            if snapshot.image_gradients + snapshot.image_queries >= until:
                stop.set()

        try:
            run_missing(Run(plan(), cut, LOCAL, Watcher(searching=soon), stop), find_missing(plan(), cut))
        except StoppedError:
            stops += 1
            assert len(cut.objects.keys("states/")) <= 1
    assert stops >= 2
    assert bits(cut) == bits(whole)
    assert told(cut) == told(whole)
    history = [sorted(one.rows("history").to_pylist(), key=str) for one in (whole, cut)]
    assert history[0] == history[1]
    assert cut.objects.keys("states/") == [], "nothing is left of what has come to its end"


DRIVER = """
import sys
from test_saved import LOCAL, plan
from uapray.experiment import find_missing, run_missing
from uapray.run import Run
from uapray.store.results import open_results

results = open_results(sys.argv[1])
run_missing(Run(plan(), results, LOCAL, save_every_s=0.0), find_missing(plan(), results))
"""


def test_a_process_killed_within_a_search_goes_on_from_what_was_kept(tmp_path: Path) -> None:
    whole, killed = (open_results(str(tmp_path / name)) for name in ("whole", "killed"))
    run_missing(Run(plan(), whole, LOCAL), find_missing(plan(), whole))
    words = [sys.executable, "-c", DRIVER, str(tmp_path / "killed")]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    driver = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": path})
    deadline = time.monotonic() + 120
    while not killed.objects.keys("states/"):
        assert driver.poll() is None, "it ended before anything was kept"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(killed.objects.keys("states/")) == 1
    run_missing(Run(plan(), killed, LOCAL), find_missing(plan(), killed))
    assert bits(killed) == bits(whole)
    assert told(killed) == told(whole)
