import hashlib
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from victims import HEIGHT, WIDTH, Linear, SmallCNN, grey_levels, noise, unit_pixels

from uapray.attack.control import Draw, matched_controls
from uapray.attack.objective import Objective
from uapray.replica import Batch, Replica

IMAGES = 20


@pytest.fixture(autouse=True)
def _settings_as_found() -> Iterator[None]:
    yield
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=False)


def naive_gradient(module: nn.Module, pixels: Tensor, v: Tensor, objective: Objective, reference: Tensor) -> Tensor:
    """Return the gradient as a careful reader of the formula would take it: one image at a time, added in float64."""
    total = torch.zeros_like(v, dtype=torch.float64)
    for image, label in zip(pixels, reference, strict=True):
        leaf = v.clone().requires_grad_()
        logits = module((image + leaf).clamp(0, 1)[None])
        (gradient,) = torch.autograd.grad(objective.gain(logits, label[None]).sum(), leaf)
        total += gradient.double()
    return total


def images_for(scale: float, seed: int, channels: int = 1) -> NDArray[np.uint8]:
    """Return images with black and white pixels, but not where x + v would lie on the very border."""
    low, high = (1, 254) if scale == 0 else (0, 255)
    return grey_levels(IMAGES, channels=channels, low=low, high=high, seed=seed)


def rows_of(seed: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).choice(IMAGES, count, replace=False)


@given(
    seed=st.integers(0, 1000),
    channels=st.sampled_from([1, 3]),
    count=st.integers(1, 8),
    target=st.sampled_from([None, 0, 2]),
    scale=st.sampled_from([0.0, 0.05, 0.6]),
)
def test_gradient_is_that_of_autograd_through_the_clipping(
    seed: int, channels: int, count: int, target: int | None, scale: float
) -> None:
    module = SmallCNN(channels, seed=seed)
    images = images_for(scale, seed, channels)
    v = noise(seed, (channels, HEIGHT, WIDTH), scale)
    rows, objective = rows_of(seed, count), Objective(target)
    reference = np.random.default_rng(seed).integers(0, 3, count)
    batch = Batch("train", rows, reference)
    (update,) = Replica(module, {"train": images}).gradient(v.numpy(), [batch], objective)

    exact = naive_gradient(
        SmallCNN(channels, seed=seed).double(),
        unit_pixels(images[rows]).double(),
        v.double(),
        objective,
        torch.from_numpy(reference),
    )
    assert update.total.dtype == torch.float64
    assert update.total.shape == v.shape
    assert update.count == count
    # The gradient of a sure prediction is a difference of float32 numbers near 1, and a rectifier or the
    # clipping may fall on the other side for a single pixel.
    assert (update.total - exact).norm() <= 1e-3 * exact.norm() + 1e-5
    assert (update.total - exact).abs().median() <= 1e-6 * max(1.0, float(exact.abs().max()))


@given(seed=st.integers(0, 1000), target=st.sampled_from([None, 1]), scale=st.sampled_from([0.0, 0.05, 0.6]))
def test_gradient_is_the_same_sum_in_float32(seed: int, target: int | None, scale: float) -> None:
    module = SmallCNN(seed=seed)
    images = images_for(scale, seed)
    v, reference = noise(seed, scale=scale), np.zeros(4, np.int64)
    objective = Objective(target)
    (update,) = Replica(module, {"train": images}).gradient(
        v.numpy(), [Batch("train", np.arange(4), reference)], objective
    )
    naive = naive_gradient(module, unit_pixels(images[:4]), v, objective, torch.from_numpy(reference))
    torch.testing.assert_close(update.total, naive, rtol=0, atol=1e-5 * max(1.0, float(naive.abs().max())))


def test_raw_gradients_are_summed_neither_signs_nor_means() -> None:
    """Of a linear victim the sum is (p0 + p1 + ...) w: it grows with each image, by more the surer it is fooled."""
    w = noise(4)
    module = Linear(torch.stack([-w / 2, w / 2]), torch.zeros(2))
    images = grey_levels(6)
    replica = Replica(module, {"train": images})
    reference = np.array([0, 1, 0, 0, 1, 0])
    (update,) = replica.gradient(np.zeros_like(w.numpy()), [Batch("train", np.arange(6), reference)], Objective())
    scores = (unit_pixels(images).double() * w.double()).sum((1, 2, 3))
    pull = torch.where(torch.from_numpy(reference) == 0, torch.sigmoid(scores), -torch.sigmoid(-scores))
    torch.testing.assert_close(update.total, pull.sum() * w.double(), rtol=1e-5, atol=1e-6)


def test_a_clipped_pixel_has_no_gradient() -> None:
    module = SmallCNN()
    images = grey_levels(1)
    images[0, 2, 3, 0], images[0, 4, 1, 0], images[0, 5, 5, 0] = 255, 0, 250
    v = np.full((1, HEIGHT, WIDTH), 0.01, np.float32)
    v[0, 4, 1] = -0.01
    (update,) = Replica(module, {"train": images}).gradient(
        v, [Batch("train", np.arange(1), np.zeros(1, np.int64))], Objective()
    )
    zero = update.total == 0
    assert zero[0, 2, 3]
    assert zero[0, 4, 1]
    assert int(zero.sum()) == 2


def test_a_pixel_at_the_very_border_has_its_gradient() -> None:
    """Nothing is cut there; versions of torch differ in what their own clamp says at its limits."""
    images = grey_levels(1)
    images[0, 0, 0, 0], images[0, 0, 1, 0] = 255, 0
    (update,) = Replica(SmallCNN(), {"train": images}).gradient(
        np.zeros((1, HEIGHT, WIDTH), np.float32), [Batch("train", np.arange(1), np.zeros(1, np.int64))], Objective()
    )
    assert bool((update.total != 0).all())


@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]), scale=st.sampled_from([None, 0.0, 0.1, 2.0]))
def test_predictions_are_those_of_the_module_on_clipped_pixels(seed: int, channels: int, scale: float | None) -> None:
    module = SmallCNN(channels, seed=seed)
    images = grey_levels(IMAGES, channels=channels, low=0, high=255, seed=seed)
    v = None if scale is None else noise(seed, (channels, HEIGHT, WIDTH), scale)
    batches = [Batch("train", np.arange(5)), Batch("train", np.array([19, 0, 7])), Batch("train", np.arange(8, 9))]
    found = Replica(module, {"train": images}).logits(None if v is None else v.numpy(), batches)
    for batch, answer in zip(batches, found, strict=True):
        pixels = unit_pixels(images[batch.indices])
        logits = module(pixels if v is None else (pixels + v).clamp(0, 1))
        assert answer.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(answer), logits.detach(), rtol=1e-4, atol=1e-4)


def test_images_are_read_and_never_written() -> None:
    images = grey_levels(IMAGES, low=0, high=255)
    images.flags.writeable = False
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    replica = Replica(SmallCNN(), {"train": images})
    v = noise(1, scale=0.3).numpy()
    v.flags.writeable = False
    before = v.copy()
    batches = [Batch("train", np.arange(IMAGES), np.zeros(IMAGES, np.int64))]
    replica.gradient(v, batches, Objective())
    replica.logits(v, batches)
    replica.logits(None, batches)
    replica.likeness(v, batches)
    replica.drawn(v, [Draw(kind, math.inf, seed=1) for kind in matched_controls(math.inf)], batches)
    assert hashlib.sha256(images.tobytes()).hexdigest() == digest
    assert np.array_equal(v, before)


def test_the_module_that_came_stays_as_it_was() -> None:
    module = SmallCNN().train()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    replica = Replica(module, {"train": grey_levels(4)})
    replica.gradient(noise(1).numpy(), [Batch("train", np.arange(4), np.zeros(4, np.int64))], Objective())
    assert module.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_later_changes_of_the_module_do_not_reach_the_replica() -> None:
    module = SmallCNN()
    replica = Replica(module, {"train": grey_levels(IMAGES)})
    batches = [Batch("train", np.arange(IMAGES))]
    before = replica.logits(None, batches)[0]
    nn.init.zeros_(module.last.weight)
    assert np.array_equal(replica.logits(None, batches)[0], before)


class Tied(nn.Module):
    """Uses the weight of a convolution twice, once with batch norm behind it: it must not be folded."""

    def __init__(self) -> None:
        super().__init__()
        inner = SmallCNN()
        self.first, self.norm, self.last = inner.first, inner.norm, nn.Linear(6, 3)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        again = nn.functional.conv2d(pixels, self.first.weight, padding=1)
        logits: Tensor = self.last((self.norm(self.first(pixels)) + again).square().mean((2, 3)))
        return logits


def test_making_a_victim_fast_is_checked_on_more_than_black_images() -> None:
    images, victim = grey_levels(4), Tied()
    v, reference = noise(0, scale=0.05), np.zeros(4, np.int64)
    (update,) = Replica(victim, {"train": images}).gradient(
        v.numpy(), [Batch("train", np.arange(4), reference)], Objective()
    )
    naive = naive_gradient(victim, unit_pixels(images), v, Objective(), torch.from_numpy(reference))
    torch.testing.assert_close(update.total, naive, rtol=1e-4, atol=1e-6)


def test_a_repeated_request_gives_the_same_bits() -> None:
    replica = Replica(SmallCNN(), {"train": grey_levels(IMAGES)})
    v = noise(2, scale=0.1).numpy()
    batches = [Batch("train", rows_of(seed, 5), np.zeros(5, np.int64)) for seed in range(3)]
    first = replica.gradient(v, batches, Objective())
    replica.logits(v, batches)
    again = replica.gradient(v, batches[::-1], Objective())[::-1]
    other = Replica(SmallCNN(), {"train": grey_levels(IMAGES)}).gradient(v, batches[1:2], Objective())
    assert all(torch.equal(a.total, b.total) for a, b in zip(first, again, strict=True))
    assert torch.equal(other[0].total, first[1].total)


class Witness(nn.Module):
    """Notes under which settings it runs; fails if asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, bool]] = []
        self.fails = False

    def __deepcopy__(self, memo: dict[int, object]) -> "Witness":
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        if self.fails:
            raise RuntimeError("the victim failed")
        return pixels.flatten(1)[:, :2]


def current() -> tuple[int, bool, bool]:
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.mark.parametrize(("deterministic", "warn_only"), [(False, False), (True, False), (True, True)])
def test_settings_of_torch_hold_for_the_request_alone(deterministic: bool, warn_only: bool) -> None:
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    found = current()
    witness = Witness()
    replica = Replica(witness, {"train": grey_levels(4)}, threads=1)
    batches = [Batch("train", np.arange(4), np.zeros(4, np.int64))]
    replica.gradient(noise(0).numpy(), batches, Objective())
    replica.logits(None, batches)
    assert current() == found
    witness.fails = True
    for fails in (
        lambda: replica.gradient(noise(0).numpy(), batches, Objective()),
        lambda: replica.logits(None, batches),
    ):
        with pytest.raises(RuntimeError, match="the victim failed"):
            fails()
        assert current() == found
    assert set(witness.seen) == {(1, deterministic)}


def test_threads_outside_do_not_change_the_bits() -> None:
    v = noise(2, scale=0.1).numpy()
    batches = [Batch("train", np.arange(IMAGES), np.zeros(IMAGES, np.int64))]
    totals = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        (update,) = Replica(SmallCNN(), {"train": grey_levels(IMAGES)}).gradient(v, batches, Objective())
        totals.append(update.total)
    assert torch.equal(*totals)


def test_the_sum_keeps_more_bits_than_single_gradients_have() -> None:
    batches = [Batch("train", np.arange(IMAGES), np.zeros(IMAGES, np.int64))]
    (update,) = Replica(SmallCNN(), {"train": grey_levels(IMAGES)}).gradient(noise(1).numpy(), batches, Objective())
    assert not torch.equal(update.total, update.total.float().double())
