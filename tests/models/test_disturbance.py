"""What training images are perturbed with, and what that does to a training."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from uapray.attack.projection import length
from uapray.data.images import ImageSet, hold_out
from uapray.models.disturbance import Ascent, Disturbance, Disturbing, assigned
from uapray.models.recipe import Recipe
from uapray.models.training import FitResult, fit

Made = Callable[..., ImageSet]
QUICK = Recipe(optimizer="adamw", learning_rate=5e-3, epochs=3, batch_size=16, patience=None, selection="last")
CPU = torch.device("cpu")


@given(st.integers(1, 60), st.integers(1, 8), st.floats(0.01, 1), st.integers(0, 99))
def test_the_share_is_perturbed_and_all_perturbations_serve_alike(count: int, k: int, share: float, seed: int) -> None:
    which = assigned(count, k, share, seed)
    assert (which >= 0).sum() == math.floor(count * share)
    times = np.bincount(which[which >= 0], minlength=k)
    assert times.max() - times.min() <= 1
    assert np.array_equal(which, assigned(count, k, share, seed))


@given(st.integers(0, 99), st.floats(0.1, 1))
def test_images_get_their_own_and_stay_valid(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels, vs = torch.rand(9, 1, 4, 4, generator=generator), torch.randn(3, 1, 4, 4, generator=generator)
    disturbing = Disturbing(Disturbance(vs, share), 20, seed=seed, device=CPU)
    indices = np.arange(11, 20)
    moved = disturbing.on(pixels, indices)
    for image, index in enumerate(assigned(20, 3, share, seed)[indices]):
        expected = pixels[image] if index < 0 else (pixels[image] + vs[index]).clamp(0, 1)
        assert torch.equal(moved[image], expected)
    assert torch.equal(disturbing.perturbations, vs)


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("target", [None, 0])
def test_a_rising_perturbation_ends_where_the_linear_classifier_says(p: float, target: int | None) -> None:
    """Of two classes told apart by ``<w, x>``, what lowers class 1 most is ``-xi w / |w|``, or ``-xi sign w``."""
    w = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(1))
    pixels = torch.full((8, 1, 5, 5), 0.5)
    ascent = Ascent(p, xi=0.1, step=0.02, target=target)
    disturbing = Disturbing(Disturbance(torch.zeros(1, 1, 5, 5), 1.0, ascent), 8, seed=0, device=CPU)
    for _ in range(12):
        score = (disturbing.on(pixels, np.arange(8)) * w).sum((1, 2, 3))
        logits = torch.stack([-score, score], 1)
        pull = disturbing.pull(logits)
        assert (pull is None) == (target is None)
        cross_entropy(logits, torch.ones(8, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
        disturbing.rise(pull)
    (v,) = disturbing.perturbations
    best = -0.1 * (w.sign() if p == math.inf else w / w.norm())
    torch.testing.assert_close(v, best, rtol=1e-4, atol=1e-5)
    assert length(v, p=p) <= 0.1 + 1e-6


def trained(images: ImageSet, disturbance: Disturbance | None, **changes: Any) -> tuple[nn.Module, FitResult]:
    """Train a linear classifier of dark and bright."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2))
    nn.init.zeros_(module[1].weight)
    nn.init.zeros_(module[1].bias)
    recipe = QUICK.model_copy(update={"rotation_degrees": 0.0, "shift_share": 0.0, **changes})
    return module, fit(module, *hold_out(images, 0.25, seed=0), recipe, seed=0, disturbance=disturbance)


def test_zero_disturbs_nothing(image_set: Made) -> None:
    plain, without = trained(image_set(64), None)
    still, with_zero = trained(image_set(64), Disturbance(torch.zeros(2, 1, 32, 32), 0.5))
    assert without.perturbations is None
    assert with_zero.perturbations is not None
    assert all(map(torch.equal, plain.state_dict().values(), still.state_dict().values()))


def test_the_last_epoch_is_taken_where_that_is_asked(image_set: Made) -> None:
    _, result = trained(image_set(64), None, epochs=4)
    assert [one.best for one in result.history] == [True] * 4
    assert result.best_epoch == 3


def test_what_was_trained_with_fools_less_afterwards(image_set: Made) -> None:
    images = image_set(160)
    module, _ = trained(images, None, epochs=6)
    weight = module[1].weight[1] - module[1].weight[0]
    v = -0.2 * weight.detach().sign().reshape(1, 32, 32)

    def fooled(module: nn.Module) -> float:
        pixels = torch.tensor(images.images).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            return float((module(pixels).argmax(1) != module((pixels + v).clamp(0, 1)).argmax(1)).float().mean())

    hardened, result = trained(images, Disturbance(v[None], 0.5), epochs=6)
    assert fooled(module) > 0.3
    assert fooled(hardened) < 0.5 * fooled(module)
    assert result.perturbations is not None
    assert torch.equal(result.perturbations, v[None])


def test_it_rises_in_the_training_within_its_ball(image_set: Made) -> None:
    rising = Disturbance(torch.zeros(1, 1, 32, 32), 1.0, Ascent(math.inf, 0.05, 0.01))
    _, first = trained(image_set(64), rising)
    _, again = trained(image_set(64), rising)
    assert first.perturbations is not None
    assert again.perturbations is not None
    assert torch.equal(first.perturbations, again.perturbations)
    assert 0.04 < float(first.perturbations.abs().max()) <= 0.05 + 1e-6
    assert not rising.perturbations.any(), "what was given stays as it was"
