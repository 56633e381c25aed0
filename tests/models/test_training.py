import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from uapray.data.dataset import open_data
from uapray.data.images import ImageSet, hold_out
from uapray.errors import ConfigError, DataError, TrialError
from uapray.models.recipe import RECIPES, Recipe
from uapray.models.scores import predict_probabilities, score
from uapray.models.training import EpochReport, FitResult, fit
from uapray.models.zoo import build

Made = Callable[..., ImageSet]
QUICK = Recipe(optimizer="adamw", learning_rate=5e-3, schedule="one-cycle", epochs=4, batch_size=16, patience=None)


def small(seed: int = 0) -> nn.Module:
    return build("tiny-cnn", classes=2, channels=1, size=(32, 32), seed=seed)


def parts(image_set: Made, count: int = 96) -> tuple[ImageSet, ImageSet]:
    return hold_out(image_set(count), 0.25, seed=0)


def test_learns_and_ends_at_the_best_epoch(image_set: Made) -> None:
    train, validation = parts(image_set, 200)
    module, reports = small(), list[EpochReport]()
    result = fit(module, train, validation, QUICK, seed=0, on_epoch=reports.append)
    assert tuple(reports) == result.history
    assert result.epochs == len(reports) == QUICK.epochs
    best = max(reports, key=lambda each: (each.balanced_accuracy, -each.loss))
    assert result.best_epoch == best.epoch
    assert [each.best for each in reports][result.best_epoch :] == [True] + [False] * (3 - result.best_epoch)
    assert not module.training
    assert all(torch.equal(module.state_dict()[name], value) for name, value in result.state.items())
    for images in (validation, image_set(100, seed=9)):
        found = score(images.labels, predict_probabilities(module, images), images.class_names)
        assert found.accuracy > 0.9
    found = score(validation.labels, predict_probabilities(module, validation), validation.class_names)
    assert found.accuracy == pytest.approx(best.accuracy)
    assert found.balanced_accuracy == pytest.approx(best.balanced_accuracy)


def test_depends_on_seeds_alone_and_leaves_the_global_state(image_set: Made) -> None:
    train, validation = parts(image_set)
    recipe = QUICK.model_copy(update={"epochs": 2})
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, again, other = (fit(small(), train, validation, recipe, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, first.state.values(), again.state.values()))
    assert not torch.equal(first.state["backbone.6.weight"], other.state["backbone.6.weight"])


def test_stops_when_nothing_gets_better(image_set: Made) -> None:
    train, validation = parts(image_set, 48)
    recipe = Recipe(learning_rate=1e-9, batch_size=8, epochs=9, patience=2, selection="accuracy", balanced=False)
    module = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2))
    nn.init.zeros_(module[1].weight)
    result = fit(module, train, validation, recipe, seed=0)
    assert result.epochs <= result.best_epoch + 3 <= 9


@pytest.mark.parametrize("selection", ["balanced_accuracy", "accuracy", "loss"])
def test_chooses_by_what_was_asked(image_set: Made, selection: str) -> None:
    train, validation = parts(image_set, 48)
    recipe = QUICK.model_copy(update={"selection": selection, "epochs": 3})
    result = fit(small(), train, validation, recipe, seed=0)
    values = [getattr(each, selection) for each in result.history]
    assert values[result.best_epoch] == (min(values) if selection == "loss" else max(values))


def test_two_workers_that_average_gradients_do_as_one(image_set: Made) -> None:
    train, validation = parts(image_set, 48)
    recipe = Recipe(learning_rate=0.01, batch_size=8, epochs=2, selection="loss")

    def linear() -> nn.Module:
        torch.nn.init.zeros_((module := nn.Sequential(nn.Flatten(), nn.Linear(1024, 2)))[1].weight)
        torch.nn.init.zeros_(module[1].bias)
        return module

    modules, results = [linear(), linear()], dict[int, FitResult]()
    meeting = threading.Barrier(2)

    def average(module: nn.Module) -> None:
        meeting.wait()
        own = list(module.parameters())
        pairs = zip(*(each.parameters() for each in modules), strict=True)
        means = [torch.stack([weight.grad for weight in pair]).mean(0) for pair in pairs]
        meeting.wait()
        for weight, mean in zip(own, means, strict=True):
            weight.grad = mean

    def work(rank: int) -> None:
        results[rank] = fit(modules[rank], train, validation, recipe, seed=0, rank=rank, world=2, average=average)

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    alone = fit(linear(), train, validation, recipe, seed=0)
    for result in results.values():
        assert result.best_epoch == alone.best_epoch
        for name, value in alone.state.items():
            torch.testing.assert_close(result.state[name], value, atol=1e-5, rtol=1e-4)
    assert all(map(torch.equal, results[0].state.values(), results[1].state.values()))


DISTRIBUTED = """
import sys
import numpy as np
import torch
from torch import distributed
from uapray.data.images import ImageSet
from uapray.models.recipe import RECIPES, Recipe
from uapray.models.training import fit
from uapray.models.zoo import build

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
with np.load(f"{folder}/images.npz") as arrays:
    count = len(arrays["labels"])
    images = ImageSet(arrays["images"], arrays["labels"], tuple(map(str, range(count))), (None,) * count,
                      ("upright", "lying"), "bars", "train")
train, validation = images.select(np.arange(48)), images.select(np.arange(48, count))
inner = build("tiny-cnn", classes=2, channels=1, size=(32, 32))
module = torch.nn.parallel.DistributedDataParallel(inner)
recipe = Recipe(learning_rate=0.01, batch_size=8, epochs=3, patience=1)
result = fit(module, train, validation, recipe, seed=0, rank=rank, world=2)
torch.save({"history": [(e.loss, e.accuracy, e.balanced_accuracy, e.best) for e in result.history],
            "weight": result.state["backbone.6.weight"], "mean": result.state["backbone.0.1.running_mean"]},
           f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_distributed_workers_agree_on_everything(image_set: Made, tmp_path: pathlib.Path) -> None:
    images = image_set(72)
    np.savez(tmp_path / "images.npz", images=images.images, labels=images.labels)
    workers = [subprocess.Popen([sys.executable, "-c", DISTRIBUTED, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["history"] == second["history"]
    assert torch.equal(first["weight"], second["weight"])
    assert torch.equal(first["mean"], second["mean"])


def test_refuses_what_cannot_be_trained_on(image_set: Made) -> None:
    train, validation = parts(image_set, 12)
    nobody = train.select(np.arange(0))
    with pytest.raises(DataError, match="bars train: expected at least 2 images to train, got 0"):
        fit(small(), nobody, validation, QUICK, seed=0)
    with pytest.raises(DataError, match="expected at least 1 images"):
        fit(small(), train, nobody, QUICK, seed=0)
    with pytest.raises(ConfigError, match="at least 2 images for each of 8 workers"):
        fit(small(), train, validation, QUICK, seed=0, world=8)


def test_a_loss_that_runs_away_is_an_error(image_set: Made) -> None:
    train, validation = parts(image_set, 24)
    recipe = Recipe(learning_rate=1e38, batch_size=4, epochs=3)
    with pytest.raises(TrialError, match=r"loss is nan in epoch \d; lower learning_rate .1e\+38"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(1024, 2)), train, validation, recipe, seed=0)


@pytest.mark.slow
def test_the_quick_recipe_on_real_radiographs(real_data: pathlib.Path) -> None:
    data = open_data(str(real_data / "chest_xray_224_*.parquet"))
    train, validation = hold_out(data.images("train", (64, 64)), RECIPES["quick"].validation_share, seed=0)
    test = data.images("test", (64, 64))
    module = build("small-cnn", classes=2, channels=data.channels(), size=(64, 64))
    fit(module, train, validation, RECIPES["quick"], seed=0)
    found = score(test.labels, predict_probabilities(module, test), test.class_names)
    print(found)
    assert found.accuracy > 0.92
