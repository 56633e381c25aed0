"""Training on Ray Train: one worker or two, and what goes wrong."""

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from foreign_victims import Mortal
from torch import nn

import uapray
from uapray.data.images import ImageSet, hold_out
from uapray.errors import ConfigError, TrialError
from uapray.models.norms import measure_norms
from uapray.models.recipe import recipe_of
from uapray.models.scores import predict_probabilities
from uapray.models.training import EpochReport
from uapray.models.zoo import build
from uapray.on_ray.training import TRIES, Trained, fit_on_ray, measure_norms_on_ray

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def parts() -> tuple[ImageSet, ImageSet]:
    return hold_out(uapray.load_images("phantom:chest?images=150&size=32&seed=3", "train"), 0.2, 0)


def linear() -> nn.Module:
    """Return a module without batch norm, whose statistics would depend on the number of workers."""
    module = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 3))
    nn.init.zeros_(module[2].weight)
    nn.init.zeros_(module[2].bias)
    return module


def trained(parts: tuple[ImageSet, ImageSet], workers: int, kills: int = 0) -> tuple[Trained, list[EpochReport]]:
    """Train, and kill every worker after its first epoch so many times."""
    told: list[EpochReport] = []

    def on_epoch(report: EpochReport) -> None:
        told.append(report)
        if report.epoch == 0 and sum(one.epoch == 0 for one in told) <= kills:
            for child in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)

    recipe = recipe_of({"base": "quick", "epochs": 40 if kills else 2, "patience": None, "batch_size": 16})
    judged = {"validation": parts[1]}
    return fit_on_ray(linear(), *parts, recipe, seed=1, workers=workers, judged=judged, on_epoch=on_epoch), told


def test_two_workers_learn_what_one_learns(parts: tuple[ImageSet, ImageSet]) -> None:
    one, told_by_one = trained(parts, 1)
    two, told_by_two = trained(parts, 2)
    assert [report.epoch for report in told_by_one] == [report.epoch for report in told_by_two] == [0, 1]
    assert one.fitted.best_epoch == two.fitted.best_epoch
    for name, weights in one.fitted.state.items():
        assert weights.any()
        torch.testing.assert_close(two.fitted.state[name], weights, rtol=1e-3, atol=1e-5)
    module = linear()
    module.load_state_dict(one.fitted.state)
    np.testing.assert_allclose(one.probabilities["validation"], predict_probabilities(module, parts[1]), rtol=1e-6)


def test_frozen_blocks_stay_with_two_workers(parts: tuple[ImageSet, ImageSet]) -> None:
    module = build("tiny-cnn", classes=3, channels=1, size=(32, 32))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    recipe = recipe_of({"base": "quick", "epochs": 1, "batch_size": 16, "frozen_blocks": 3})
    after = fit_on_ray(module, *parts, recipe, seed=1, workers=2).fitted.state
    still = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert still == {
        name for name in after if name.startswith(("backbone.0.", "backbone.1.", "backbone.2.", "mean", "std"))
    }
    with pytest.raises(ConfigError, match=r"^frozen_blocks: expected at most 4, .* got 5"):
        fit_on_ray(module, *parts, recipe.model_copy(update={"frozen_blocks": 5}), seed=1)


def test_norms_are_measured_as_in_this_process_and_after_a_loss(
    parts: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    recipe = recipe_of({"base": "quick", "batch_size": 16})
    here, there = nn.BatchNorm2d(1), Mortal(tmp_path / "left")
    measure_norms(here, parts[0], recipe, seed=1)
    measure_norms_on_ray(there, parts[0], recipe, seed=1)
    assert (tmp_path / "left").exists()
    assert all(torch.equal(value, there.state_dict()[name]) for name, value in here.state_dict().items())
    with pytest.raises(TrialError, match=r"^measuring batch norms failed: [^\n]*$"):
        measure_norms_on_ray(Mortal(tmp_path / "always", always=True), parts[0], recipe, seed=1)
    assert (tmp_path / "always").read_text() == "x" * TRIES
    with pytest.raises(ConfigError, match="workers"):
        measure_norms_on_ray(there, parts[0], recipe, seed=1, cpus=1e6)


@pytest.mark.slow
def test_a_lost_worker_costs_time_alone(parts: tuple[ImageSet, ImageSet]) -> None:
    lost, told = trained(parts, 1, kills=1)
    assert [report.epoch for report in told].count(0) == 2, "it began again"
    quiet = fit_on_ray(
        linear(), *parts, recipe_of({"base": "quick", "epochs": 40, "patience": None, "batch_size": 16}), seed=1
    )
    for name, weights in quiet.fitted.state.items():
        assert torch.equal(lost.fitted.state[name], weights)


@pytest.mark.slow
def test_workers_that_are_always_lost_end_it(parts: tuple[ImageSet, ImageSet]) -> None:
    with pytest.raises(TrialError, match=f"^training failed {TRIES} times: "):
        trained(parts, 1, kills=TRIES)


def test_what_a_worker_cannot_do_is_told_without_ray_around_it(parts: tuple[ImageSet, ImageSet]) -> None:
    module = linear()
    nn.init.constant_(module[2].weight, float("nan"))
    with pytest.raises(TrialError, match=r"^training: the loss is nan in epoch 0; lower learning_rate"):
        fit_on_ray(module, *parts, recipe_of({"base": "quick", "epochs": 1}), seed=1)


def test_more_workers_than_the_cluster_holds_are_refused(parts: tuple[ImageSet, ImageSet]) -> None:
    with pytest.raises(ConfigError, match=r"workers: expected at most 8.* got 99"):
        fit_on_ray(linear(), *parts, recipe_of("quick"), seed=1, workers=99)
