import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uapray.attack.control import matched_controls, permuted, random_perturbation, scrambled, signs
from uapray.errors import ConfigError

orders = st.sampled_from([2.0, math.inf])
radii = st.floats(1e-3, 10)
seeds = st.integers(0, 2**40)
shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
IMAGE = (3, 48, 48)
KINDS = list(matched_controls(2.0))


def finished(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a perturbation with some structure: a wave, and noise on it."""
    generator = torch.Generator().manual_seed(seed)
    wave = torch.linspace(0, 6, shape[-1]).sin() * torch.linspace(1, 2, shape[0])[:, None, None]
    return 0.1 * wave + 0.05 * torch.randn(shape, generator=generator)


@given(orders, radii, seeds, shapes)
def test_lies_in_the_ball(p: float, xi: float, seed: int, shape: tuple[int, ...]) -> None:
    v = random_perturbation(shape, p=p, xi=xi, seed=seed)
    assert v.shape == shape
    assert v.dtype == torch.float32
    assert torch.linalg.vector_norm(v.double(), ord=p) <= xi * (1 + 1e-6)
    assert v.abs().max() > 0


@given(orders, seeds)
def test_the_seed_alone_decides(p: float, seed: int) -> None:
    state = torch.random.get_rng_state()
    first = random_perturbation((1, 5, 5), p=p, xi=0.1, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(random_perturbation((1, 5, 5), p=p, xi=0.1, seed=seed), first)
    assert not torch.equal(random_perturbation((1, 5, 5), p=p, xi=0.1, seed=seed + 1), first)


@given(radii, st.integers(0, 50))
def test_a_draw_from_the_cube_has_a_third_of_its_corners_energy(xi: float, seed: int) -> None:
    v = random_perturbation(IMAGE, p=math.inf, xi=xi, seed=seed).double()
    count = v.numel()
    # Mean and variance of u^2, u uniform in [-1, 1], are 1/3 and 4/45.
    assert float((v / xi).square().mean()) == pytest.approx(1 / 3, abs=5 * math.sqrt(4 / 45 / count))
    assert float((v / xi).mean()) == pytest.approx(0, abs=5 * math.sqrt(1 / 3 / count))
    assert float(v.abs().max()) > 0.99 * xi


@given(radii, st.integers(0, 50))
def test_a_draw_from_the_l2_ball_of_images_lies_near_its_surface(xi: float, seed: int) -> None:
    v = random_perturbation(IMAGE, p=2, xi=xi, seed=seed)
    assert 0.995 * xi < float(v.double().norm()) <= xi * (1 + 1e-6)
    assert float((v.double() / xi).mean()) == pytest.approx(0, abs=5 / v.numel())


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_a_draw_is_uniform_in_the_volume(p: float) -> None:
    draws = torch.stack([random_perturbation((1, 1, 3), p=p, xi=2.0, seed=seed) for seed in range(800)]).flatten(1)
    inner = float((torch.linalg.vector_norm(draws, ord=p, dim=1) < 1).float().mean())
    assert inner == pytest.approx(1 / 8, abs=5 * math.sqrt(1 / 8 * 7 / 8 / 800))  # half the radius, three dimensions
    octants = torch.bincount(((draws > 0) * torch.tensor([1, 2, 4])).sum(1), minlength=8)
    assert octants.min() > 100 - 5 * math.sqrt(100)
    assert octants.max() < 100 + 5 * math.sqrt(100)


def test_other_orders_are_refused() -> None:
    with pytest.raises(ConfigError, match="p: expected 2 or inf, got 1"):
        random_perturbation((1, 2, 2), p=1, xi=0.1, seed=0)


@given(orders, st.sampled_from(KINDS), seeds, shapes)
def test_a_matched_control_follows_from_the_perturbation_and_the_seed(
    p: float, kind: str, seed: int, shape: tuple[int, ...]
) -> None:
    v, draw = finished(seed % 100, shape), matched_controls(p)[kind]
    before, state = v.clone(), torch.random.get_rng_state()
    first = draw(v, seed=seed)
    assert (first.shape, first.dtype) == (v.shape, torch.float32)
    assert torch.equal(draw(v, seed=seed), first)
    assert torch.equal(v, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_is_another_draw(kind: str) -> None:
    v = torch.randn(IMAGE, generator=torch.Generator().manual_seed(77))
    draws = torch.stack([matched_controls(math.inf)[kind](v, seed=seed) for seed in range(8)])
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 8
    like = torch.nn.functional.cosine_similarity(draws.flatten(1), v.flatten()[None])
    assert like.abs().max() < 5 / math.sqrt(48 * 48), "nothing is left of where the perturbation points"


@given(orders, seeds, shapes)
def test_the_random_kind_lies_in_the_ball_that_the_perturbation_just_fits_in(
    p: float, seed: int, shape: tuple[int, ...]
) -> None:
    v = finished(seed % 100, shape)
    draw = matched_controls(p)["random"](v, seed=seed)
    assert torch.linalg.vector_norm(draw.double(), ord=p) <= torch.linalg.vector_norm(v.double(), ord=p) * (1 + 1e-6)


@given(seeds, shapes)
def test_signs_keep_the_size_of_each_value(seed: int, shape: tuple[int, ...]) -> None:
    v = finished(seed % 100, shape)
    assert torch.equal(signs(v, seed=seed).abs(), v.abs())


def test_half_of_the_signs_are_positive() -> None:
    up = (signs(torch.ones(IMAGE), seed=1) > 0).double()
    assert float(up.mean()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(up.numel()))


@given(seeds, shapes)
def test_permuted_pixels_move_whole(seed: int, shape: tuple[int, ...]) -> None:
    v = finished(seed % 100, shape)
    draw = permuted(v, seed=seed)
    assert sorted(map(tuple, draw.flatten(1).T.tolist())) == sorted(map(tuple, v.flatten(1).T.tolist()))


@given(seeds, shapes)
def test_scrambling_keeps_the_amplitude_spectrum_and_the_relations_of_channels(
    seed: int, shape: tuple[int, ...]
) -> None:
    v = finished(seed % 100, shape)
    draw = scrambled(v, seed=seed)
    spectrum, turned = torch.fft.fft2(v.double()), torch.fft.fft2(draw.double())
    torch.testing.assert_close(turned.abs(), spectrum.abs(), rtol=1e-5, atol=1e-5)
    across = spectrum[0].conj() * spectrum  # of each channel with the first: amplitudes and difference of phases
    torch.testing.assert_close(turned[0].conj() * turned, across, rtol=1e-4, atol=1e-4)
    assert float(draw.double().norm()) == pytest.approx(float(v.double().norm()), rel=1e-5)


def test_scrambling_turns_the_phases_evenly() -> None:
    v = torch.zeros(1, 32, 32)
    v[0, 0, 0] = 1  # of all frequencies as much, in phase
    angles = torch.fft.rfft2(scrambled(v, seed=3)[0].double()).angle()[:, 1:16].flatten()
    assert float(angles.cos().mean()) == pytest.approx(0, abs=5 / math.sqrt(2 * len(angles)))
    assert float(angles.sin().mean()) == pytest.approx(0, abs=5 / math.sqrt(2 * len(angles)))
