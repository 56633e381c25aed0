import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from victims import noise

from uapray.attack.projection import direction, extend, length, mean_norm, norms, order, project
from uapray.errors import ConfigError

orders = st.sampled_from([2.0, math.inf])
radii = st.floats(1e-3, 10)
seeds = st.integers(0, 10_000)
scales = st.sampled_from([0.0, 1e-6, 1e-2, 0.3, 1.0, 30.0, 1e6])
shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 7), st.integers(1, 7))
DUAL = {2.0: 2.0, math.inf: 1.0}


def norm(v: torch.Tensor, p: float) -> float:
    """Return the norm, by numpy in float64."""
    return float(np.linalg.norm(v.double().numpy().ravel(), ord=p))


def product(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a.double().flatten() @ b.double().flatten())


@given(seeds, scales, shapes)
def test_norms_are_l2_and_linf(seed: int, scale: float, shape: tuple[int, ...]) -> None:
    v = noise(seed, shape, scale)
    assert norms(v) == pytest.approx((norm(v, 2), norm(v, math.inf)))


@given(orders, radii, seeds, scales, shapes)
def test_projection_lands_in_the_ball(p: float, xi: float, seed: int, scale: float, shape: tuple[int, ...]) -> None:
    assert norm(project(noise(seed, shape, scale), p=p, xi=xi), p) <= xi * (1 + 1e-6)


@given(orders, radii, seeds, scales)
def test_projection_changes_nothing_in_the_ball(p: float, xi: float, seed: int, scale: float) -> None:
    v = noise(seed, scale=scale)
    inside = v * min(1.0, 0.999 * xi / max(norm(v, p), 1e-30))
    assert torch.equal(project(inside, p=p, xi=xi), inside)


@given(orders, radii, seeds, scales)
def test_projecting_twice_is_projecting_once(p: float, xi: float, seed: int, scale: float) -> None:
    once = project(noise(seed, scale=scale), p=p, xi=xi)
    torch.testing.assert_close(project(once, p=p, xi=xi), once, rtol=1e-6, atol=0)


@given(orders, radii, seeds, scales, shapes)
def test_no_point_of_the_ball_is_closer(p: float, xi: float, seed: int, scale: float, shape: tuple[int, ...]) -> None:
    v = noise(seed, shape, scale).double()
    closest = project(v, p=p, xi=xi)
    # A point of a convex set is the closest one if nothing in the set lies further along v - closest.
    way = v - closest
    furthest = xi * norm(way, DUAL[p])
    assert product(way, closest) >= furthest - 1e-9 * max(1.0, furthest)


@given(orders, radii, seeds, st.sampled_from([0.3, 1.0, 30.0]), seeds, st.floats(0, 1))
def test_no_random_point_of_the_ball_is_closer(
    p: float, xi: float, seed: int, scale: float, other_seed: int, share: float
) -> None:
    v, other = noise(seed, scale=scale).double(), noise(other_seed + 20_000).double()
    other = other * (share * xi / norm(other, p))
    assert norm(v - project(v, p=p, xi=xi), 2) <= norm(v - other, 2) * (1 + 1e-12)


@given(orders, radii, seeds, scales, st.sampled_from([0.25, 2.0, 64.0]))
def test_projection_is_homogeneous(p: float, xi: float, seed: int, scale: float, factor: float) -> None:
    v = noise(seed, scale=scale)
    torch.testing.assert_close(
        project(v * factor, p=p, xi=xi * factor), project(v, p=p, xi=xi) * factor, rtol=1e-6, atol=0
    )


@given(orders, radii, seeds, st.sampled_from([1e-6, 1e-2, 1.0, 1e6]), shapes)
def test_extension_reaches_the_surface_and_goes_furthest_along_the_perturbation(
    p: float, xi: float, seed: int, scale: float, shape: tuple[int, ...]
) -> None:
    v = noise(seed, shape, scale)
    surface = extend(v, p=p, xi=xi)
    assert norm(surface, p) == pytest.approx(xi, rel=1e-6)
    assert product(v, surface) == pytest.approx(xi * norm(v, DUAL[p]), rel=1e-5)


@given(radii, seeds)
def test_extension_is_a_corner_of_the_cube(xi: float, seed: int) -> None:
    v = noise(seed)
    v[0, 0, 0] = 0.0
    corner = extend(v, p=math.inf, xi=xi)
    assert corner[0, 0, 0] == 0
    assert set(corner.abs().flatten().tolist()) == {0.0, float(np.float32(xi))}
    assert torch.equal(corner.sign(), v.sign())


@given(orders, seeds, st.sampled_from([1e-30, 1e-6, 1.0, 1e6]))
def test_direction_is_the_steepest_step_of_unit_length(p: float, seed: int, scale: float) -> None:
    gradient = noise(seed).double() * scale
    step = direction(gradient, p=p)
    assert norm(step, p) == pytest.approx(1, rel=1e-9)
    assert product(gradient, step) == pytest.approx(norm(gradient, DUAL[p]), rel=1e-9)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_zero_has_no_direction_and_stays(p: float) -> None:
    zero = torch.zeros(1, 2, 3)
    for moved in (project(zero, p=p, xi=0.1), extend(zero, p=p, xi=0.1), direction(zero, p=p)):
        assert torch.equal(moved, zero)


@given(orders, seeds, scales)
def test_arguments_are_left_alone(p: float, seed: int, scale: float) -> None:
    v = noise(seed, scale=scale)
    before = v.clone()
    project(v, p=p, xi=0.5), extend(v, p=p, xi=0.5), direction(v, p=p)
    assert torch.equal(v, before)


@pytest.mark.parametrize("p", [1.0, 0.0, 3.0, -math.inf, math.nan])
def test_other_orders_are_refused(p: float) -> None:
    v = torch.ones(1, 2, 2)
    for refused in (lambda: project(v, p=p, xi=1), lambda: direction(v, p=p), lambda: extend(v, p=p, xi=1)):
        with pytest.raises(ConfigError, match="p: expected 2 or inf, got"):
            refused()


def test_norms_have_names() -> None:
    assert (order("l2"), order("linf")) == (2, math.inf)
    with pytest.raises(ConfigError, match="norm: expected one of l2, linf, got 'l1'"):
        order("l1")


@given(orders, seeds, scales, shapes)
def test_length_is_that_of_numpy(p: float, seed: int, scale: float, shape: tuple[int, ...]) -> None:
    v = noise(seed, shape, scale)
    assert length(v, p=p) == pytest.approx(norm(v, p), rel=1e-12)


@given(orders, seeds, st.sampled_from([1, 2, 255, 256, 257, 600]), st.sampled_from([1, 3]))
def test_mean_norm_is_that_of_numpy_over_all_channels(p: float, seed: int, count: int, channels: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, 4, channels), dtype=np.uint8)
    expected = np.mean([np.linalg.norm(image.ravel() / 255, ord=p) for image in images])
    assert mean_norm(torch.from_numpy(images), p=p) == pytest.approx(expected, rel=1e-12)


def test_mean_norm_of_white_images() -> None:
    white = torch.full((5, 4, 4, 3), 255, dtype=torch.uint8)
    assert mean_norm(white, p=math.inf) == 1
    assert mean_norm(white, p=2) == pytest.approx(math.sqrt(48))
