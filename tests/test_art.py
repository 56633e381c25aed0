"""The sequential rules take the steps that the Adversarial Robustness Toolbox takes, on its images and order."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import TargetedUniversalPerturbation, UniversalPerturbation
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from victims import HEIGHT, WIDTH, SmallCNN, grey_levels, unit_pixels

from uapray.attack.projection import order
from uapray.attack.sequential import AT_FIRST, Visiting
from uapray.attack.steps import InnerStep, deepfool, sign_step
from uapray.replica import Batch, Replica

PASSES = 2
IMAGES = grey_levels(60, seed=3)
CLASSES = 3
XI = {"linf": 0.08, "l2": 0.4}
EPSILON = 0.01  # of a sign step, in every pixel, whatever the norm of the ball


def victim() -> SmallCNN:
    """Return a victim that predicts the three classes about equally often."""
    return SmallCNN(seed=6)


def art_classifier() -> PyTorchClassifier:
    return PyTorchClassifier(
        model=victim(),
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(1, HEIGHT, WIDTH),
        nb_classes=CLASSES,
        device_type="cpu",
    )


def art_noise(run: Callable[[PyTorchClassifier, NDArray[np.float32]], Any], seed: int) -> NDArray[np.float32]:
    """Return the noise that ART ends with; it draws its orders from Python's own generator."""
    pixels = unit_pixels(IMAGES).numpy()
    random.seed(seed)
    adversarial: NDArray[np.float32] = run(art_classifier(), pixels)
    noise: NDArray[np.float32] = adversarial[:1] - pixels[:1]
    assert np.abs(adversarial - pixels - noise).max() < 1e-6
    return noise[0]


def our_noise(step: InnerStep, norm: str, seed: int, target: int | None = None) -> tuple[NDArray[np.float32], int]:
    """Return the perturbation after the same passes, and how many steps were accepted."""
    replica = Replica(victim(), {"train": IMAGES})
    rows = np.arange(len(IMAGES))
    (logits,) = replica.logits(None, [Batch("train", rows)])
    clean = logits.argmax(1)
    how = Visiting(step, order(norm), XI[norm], target, clip=False, most=16)
    v, accepted = np.zeros((1, HEIGHT, WIDTH), np.float32), 0
    random.seed(seed)
    for _ in range(PASSES):
        drawn = np.array(random.sample(range(len(IMAGES)), len(IMAGES)))
        visit = replica.visit(v, Batch("train", drawn, clean[drawn]), how, AT_FIRST)
        v, accepted = visit.v.numpy(), accepted + len(visit.accepted)
    return v, accepted


def attack_of(ball: str, attacker: str, **parameters: object) -> dict[str, Any]:
    return {
        "attacker": attacker,
        "attacker_params": parameters,
        "delta": 0.0,
        "max_iter": PASSES,
        "eps": XI[ball],
        "norm": np.inf if ball == "linf" else 2,
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nontargeted_sign_steps_are_those_of_art(norm: str, seed: int) -> None:
    settings = attack_of(norm, "fgsm", eps=EPSILON, norm=np.inf, targeted=False)
    theirs = art_noise(lambda model, x: UniversalPerturbation(model, **settings, verbose=False).generate(x), seed)
    ours, accepted = our_noise(partial(sign_step, epsilon=EPSILON), norm, seed)
    assert accepted > 4
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", range(CLASSES))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_sign_steps_are_those_of_art(norm: str, target: int) -> None:
    settings = attack_of(norm, "fgsm", eps=EPSILON, norm=np.inf, targeted=True)
    goal = np.eye(CLASSES, dtype=np.float32)[[target] * len(IMAGES)]
    theirs = art_noise(lambda model, x: TargetedUniversalPerturbation(model, **settings).generate(x, goal), target)
    ours, accepted = our_noise(partial(sign_step, epsilon=EPSILON), norm, target, target)
    assert accepted > 2
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_to_the_nearest_boundary_are_those_of_art(norm: str, seed: int) -> None:
    """ART's DeepFool takes l2 steps in every ball; ours are compared with the same."""
    settings = attack_of(norm, "deepfool", max_iter=10, epsilon=0.02, nb_grads=10, verbose=False)
    theirs = art_noise(lambda model, x: UniversalPerturbation(model, **settings, verbose=False).generate(x), seed)
    ours, accepted = our_noise(partial(deepfool, p=2, overshoot=0.02, max_steps=10), norm, seed)
    assert accepted > 4
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
