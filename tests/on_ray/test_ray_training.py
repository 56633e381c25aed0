"""Training on Ray Train: one worker or two, and what goes wrong."""

import pytest
import torch
from torch import nn

import uapray
from uapray.data.images import ImageSet, hold_out
from uapray.errors import ConfigError, TrialError
from uapray.models.recipe import recipe_of
from uapray.models.training import EpochReport, FitResult
from uapray.on_ray.training import fit_on_ray

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


def trained(parts: tuple[ImageSet, ImageSet], workers: int) -> tuple[FitResult, list[EpochReport]]:
    told: list[EpochReport] = []
    recipe = recipe_of({"base": "quick", "epochs": 2, "batch_size": 16})
    result = fit_on_ray(linear(), *parts, recipe, seed=1, workers=workers, on_epoch=told.append)
    return result, told


def test_two_workers_learn_what_one_learns(parts: tuple[ImageSet, ImageSet]) -> None:
    one, told_by_one = trained(parts, 1)
    two, told_by_two = trained(parts, 2)
    assert [report.epoch for report in told_by_one] == [report.epoch for report in told_by_two] == [0, 1]
    assert one.best_epoch == two.best_epoch
    for name, weights in one.state.items():
        assert weights.any()
        torch.testing.assert_close(two.state[name], weights, rtol=1e-3, atol=1e-5)


def test_what_a_worker_cannot_do_is_told_without_ray_around_it(parts: tuple[ImageSet, ImageSet]) -> None:
    module = linear()
    nn.init.constant_(module[2].weight, float("nan"))
    with pytest.raises(TrialError, match=r"^training: the loss is nan in epoch 0; lower learning_rate"):
        fit_on_ray(module, *parts, recipe_of({"base": "quick", "epochs": 1}), seed=1)


def test_more_workers_than_the_cluster_holds_are_refused(parts: tuple[ImageSet, ImageSet]) -> None:
    with pytest.raises(ConfigError, match=r"workers: expected at most 8.* got 99"):
        fit_on_ray(linear(), *parts, recipe_of("quick"), seed=1, workers=99)
