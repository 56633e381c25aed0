import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from uapray.data.images import ImageSet
from uapray.models.norms import learnt_norms, measure_norms
from uapray.models.recipe import recipe_of
from uapray.models.zoo import build

QUICK = recipe_of({"base": "quick", "batch_size": 16})


def images(count: int = 40, *, seed: int = 0, classes: tuple[int, ...] = (1, 1)) -> ImageSet:
    """Return noise, whose mean differs by class; classes occur in these proportions."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(classes)), classes)[np.arange(count) % sum(classes)]
    grey = rng.integers(0, 100, (count, 16, 16, 1)) + 100 * labels[:, None, None, None]
    return ImageSet(
        images=grey.astype(np.uint8),
        labels=labels.astype(np.int64),
        ids=tuple(map(str, range(count))),
        groups=(None,) * count,
        class_names=tuple(map(str, range(len(classes)))),
        name="noise",
        split="train",
    )


@given(st.integers(0, 100), st.integers(2, 40))
def test_means_and_variances_are_those_of_the_batches(seed: int, batch: int) -> None:
    norm, shown = nn.BatchNorm2d(1), images(seed=seed)
    measure_norms(norm, shown, recipe_of({"base": "quick", "batch_size": batch}), seed=seed)
    assert norm.num_batches_tracked == 40 // batch
    assert norm.running_mean is not None
    assert norm.running_var is not None
    pixels = torch.tensor(shown.images).float() / 255
    if 40 % batch == 0:
        torch.testing.assert_close(norm.running_mean, pixels.mean()[None])
    if batch == 40:
        torch.testing.assert_close(norm.running_var, pixels.var()[None])
    assert norm.running_var <= pixels.var() * 40 / 39 * 1.5
    assert norm.momentum == 0.1
    assert not norm.training


def test_a_class_counts_as_in_training() -> None:
    shown = images(400, classes=(9, 1))
    found = {}
    for balanced in (False, True):
        norm = nn.BatchNorm2d(1)
        recipe = QUICK.model_copy(update={"balanced": balanced, "batch_size": 400})
        measure_norms(norm, shown, recipe, seed=0)
        found[balanced] = float(norm.running_mean[0] * 255)  # type: ignore[index]
    assert found[False] == pytest.approx(60, abs=2)
    assert found[True] == pytest.approx(100, abs=2)


@given(st.floats(0.1, 10))
def test_what_a_norm_undoes_no_longer_matters(scale: float) -> None:
    """A body under other weights of the same function classifies as before, once its norms have measured it."""
    shown, pixels = images(), torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, scaled = (build("tiny-cnn", classes=2, channels=1, size=(32, 32)) for _ in range(2))
    first = scaled.get_parameter("backbone.0.0.weight")
    first.data.mul_(scale)
    for norm in (one for module in (plain, scaled) for one in module.modules() if isinstance(one, nn.BatchNorm2d)):
        norm.eps = 1e-12
    for module in (plain, scaled):
        measure_norms(module, shown, QUICK, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(plain(pixels), scaled(pixels), rtol=1e-3, atol=1e-4)


def module_of(name: str) -> nn.Module:
    return build(name, classes=2, channels=1, size=(64, 64), initial_weights="random")


@pytest.mark.parametrize("name", ["tiny-cnn", "tf_efficientnet_lite0"])
def test_frozen_blocks_keep_theirs_and_nothing_is_random(name: str) -> None:
    recipe = QUICK.model_copy(update={"frozen_blocks": 2})
    one, other = module_of(name), module_of(name)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    learnt = {id(norm) for norm in learnt_norms(one, recipe)}
    all_of = {id(norm) for norm in learnt_norms(one, recipe.model_copy(update={"frozen_blocks": 0}))}
    assert learnt < all_of
    state = torch.random.get_rng_state()
    for module in (one, other):
        measure_norms(module, images(), recipe, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    moved = {name for name, value in one.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {
        f"{path}.{buffer}"
        for path, norm in one.named_modules()
        if id(norm) in learnt
        for buffer in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    again = module_of(name)
    measure_norms(again, images(), recipe, seed=4)
    assert not all(torch.equal(value, one.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_0", "test_vit"])
def test_some_have_none(name: str) -> None:
    assert learnt_norms(module_of(name), QUICK) == []
