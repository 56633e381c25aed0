import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from victims import noise

from uapray.attack.partial import PartialUpdate
from uapray.attack.rules import Rule, State, cosine_uap, df_uap, sga, spgd

Array = NDArray[np.float64]
Field = Callable[[Array], Array]

orders = st.sampled_from([2.0, math.inf])
radii = st.floats(0.01, 2)
seeds = st.integers(0, 10_000)
step_sizes = st.sampled_from([0.05, 0.4, 0.8, 1.5])
decays = st.sampled_from([1.0, 0.6, 0.1])
rounds = st.integers(1, 14)
SHAPE = (1, 4, 3)
ROUNDS_AN_EPOCH = 3


def closest(v: Array, p: float, xi: float) -> Array:
    """Return the closest point of the ball, for comparison only."""
    if p == math.inf:
        return np.maximum(np.minimum(v, xi), -xi)
    norm = math.sqrt(float((v * v).sum()))
    return v if norm <= xi else v / norm * xi


def steepest(g: Array, p: float) -> Array:
    return np.sign(g) if p == math.inf else g / math.sqrt(float((g * g).sum()))


def field(seed: int) -> Field:
    """Return gradients that depend on where they are taken and change in the course of a search."""
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(2, *SHAPE))

    def gradient(point: Array) -> Array:
        # Gentle and with a margin around zero, so that the rounding of float32 neither grows nor decides signs.
        g = a + 0.3 * np.sin(5 * b + point.mean()) - 0.1 * point
        return np.where(np.abs(g) < 1e-3, 1e-3, g)

    return gradient


def play(rule: Rule, start: torch.Tensor, gradient: Field, count: int) -> list[State]:
    """Return the states of a search, each gradient taken at the point the rule asks for."""
    states = [rule.start(start)]
    for number in range(count):
        g = gradient(states[-1].point.double().numpy())
        states.append(rule.step(states[-1], PartialUpdate(torch.from_numpy(g), 4), number / ROUNDS_AN_EPOCH))
    return states


def play_spgd(start: Array, gradient: Field, count: int, p: float, xi: float, size: float, decay: float) -> Array:
    """Stochastic projected gradient ascent in a few plain lines."""
    v = start
    for number in range(count):
        v = closest(v + xi * size * decay ** (number / ROUNDS_AN_EPOCH) * steepest(gradient(v), p), p, xi)
    return v


def play_sga(
    start: Array, gradient: Field, count: int, inner: int, p: float, xi: float, size: float, decay: float
) -> Array:
    """Stochastic gradient aggregation as two nested loops."""
    v, number = start, 0
    while number + inner <= count:
        walker, kept = v, []
        for _ in range(inner):
            reach = xi * size * decay ** (number / ROUNDS_AN_EPOCH)
            kept.append(gradient(walker))
            walker = closest(walker + reach * steepest(kept[-1], p), p, xi)
            number += 1
        v = closest(v + reach * steepest(np.sum(kept, axis=0), p), p, xi)
    return v


@given(orders, radii, seeds, step_sizes, decays, rounds)
def test_spgd_does_what_a_plain_loop_does(
    p: float, xi: float, seed: int, size: float, decay: float, count: int
) -> None:
    start = torch.from_numpy(closest(noise(seed, SHAPE, 0.3 * xi).double().numpy(), p, xi)).float()
    states = play(spgd(p=p, xi=xi, step_size=size, step_decay=decay), start, field(seed), count)
    expected = play_spgd(start.double().numpy(), field(seed), count, p, xi, size, decay)
    np.testing.assert_allclose(states[-1].v.numpy(), expected, atol=2e-5 * xi)
    assert all(torch.equal(state.point, state.v) for state in states)


@given(orders, radii, seeds, step_sizes, decays, rounds, st.integers(1, 5))
def test_sga_does_what_two_nested_loops_do(
    p: float, xi: float, seed: int, size: float, decay: float, count: int, inner: int
) -> None:
    start = torch.from_numpy(closest(noise(seed, SHAPE, 0.3 * xi).double().numpy(), p, xi)).float()
    rule = sga(p=p, xi=xi, step_size=size, step_decay=decay, inner_rounds=inner)
    states = play(rule, start, field(seed), count)
    expected = play_sga(start.double().numpy(), field(seed), count, inner, p, xi, size, decay)
    np.testing.assert_allclose(states[-1].v.numpy(), expected, atol=2e-5 * xi)
    assert [state.inner for state in states] == [number % inner for number in range(count + 1)]


def every_rule(p: float, xi: float) -> list[Rule]:
    return [
        spgd(p=p, xi=xi, step_size=0.7, step_decay=0.6),
        spgd(p=p, xi=xi, step_size=0.7, step_decay=0.6, momentum=0.9),
        sga(p=p, xi=xi, step_size=0.7, step_decay=0.6, inner_rounds=3),
        df_uap(p=p, xi=xi, step_size=0.3, step_decay=0.6),
        cosine_uap(p=p, xi=xi, step_size=0.3, step_decay=0.6),
    ]


@given(orders, radii, seeds, rounds)
def test_neither_the_perturbation_nor_the_point_leaves_the_ball(p: float, xi: float, seed: int, count: int) -> None:
    for rule in every_rule(p, xi):
        for state in play(rule, torch.zeros(SHAPE), field(seed), count):
            for point in (state.v, state.point):
                assert point.dtype == torch.float32
                assert torch.linalg.vector_norm(point.double(), ord=p) <= xi * (1 + 1e-6)


@given(orders, seeds)
def test_a_step_changes_nothing_that_it_was_given(p: float, seed: int) -> None:
    for rule in every_rule(p, 0.5):
        state = play(rule, noise(seed, SHAPE, 0.01), field(seed), 1)[-1]
        before = [tensor.clone() for tensor in (state.v, state.point, state.memory)]
        total = noise(seed + 1, SHAPE).double()
        update = PartialUpdate(total.clone(), 2)
        first = rule.step(state, update, 1.0)
        again = rule.step(state, update, 1.0)
        assert torch.equal(first.v, again.v)
        assert torch.equal(first.point, again.point)
        for tensor, old in zip((state.v, state.point, state.memory), before, strict=True):
            assert torch.equal(tensor, old)
        assert torch.equal(update.total, total)


@given(orders, seeds, st.sampled_from([1e-30, 1e-3, 1e3, 1e30]))
def test_the_size_of_the_gradients_does_not_matter(p: float, seed: int, scale: float) -> None:
    def scaled(point: Array) -> Array:
        return field(seed)(point) * scale

    for rule in every_rule(p, 0.5)[:3]:  # Adam has a smallest gradient of its own
        plain = play(rule, torch.zeros(SHAPE), field(seed), 7)[-1]
        torch.testing.assert_close(play(rule, torch.zeros(SHAPE), scaled, 7)[-1].v, plain.v, rtol=0, atol=1e-6)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_zero_gradients_move_nothing(p: float) -> None:
    start = noise(3, SHAPE, 0.01)
    for rule in every_rule(p, 0.5):
        for state in play(rule, start, np.zeros_like, 7):
            assert torch.equal(state.v, start)


def test_the_first_step_is_as_long_as_asked_and_falls_with_each_round() -> None:
    rule = spgd(p=math.inf, xi=1.0, step_size=0.25, step_decay=0.5)
    states = play(rule, torch.zeros(SHAPE), np.ones_like, 7)
    lengths = np.diff([float(state.v.max()) for state in states])
    np.testing.assert_allclose(lengths[:5], 0.25 * 0.5 ** (np.arange(5) / ROUNDS_AN_EPOCH), rtol=1e-5)


@given(orders, radii, seeds, step_sizes, decays, rounds)
def test_df_uap_is_the_adam_of_torch_and_projection(
    p: float, xi: float, seed: int, size: float, decay: float, count: int
) -> None:
    states = play(df_uap(p=p, xi=xi, step_size=size, step_decay=decay), torch.zeros(SHAPE), field(seed), count)
    v = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([v], maximize=True)
    for number in range(count):
        v.grad = torch.from_numpy(field(seed)(v.detach().numpy())) / 4  # of a round of four images
        adam.param_groups[0]["lr"] = xi * size * decay ** (number / ROUNDS_AN_EPOCH)
        adam.step()
        with torch.no_grad():
            v.copy_(torch.from_numpy(closest(v.numpy(), p, xi)))
    np.testing.assert_allclose(states[-1].v.numpy(), v.detach().numpy(), atol=1e-4 * xi)


@given(orders, seeds, rounds, st.sampled_from([0.3, 0.9]))
def test_momentum_adds_what_is_left_of_the_earlier_directions(p: float, seed: int, count: int, share: float) -> None:
    states = play(
        spgd(p=p, xi=1.0, step_size=0.1, step_decay=1, momentum=share), torch.zeros(SHAPE), field(seed), count
    )
    v, memory = np.zeros(SHAPE), np.zeros(SHAPE)
    for _ in range(count):
        g = field(seed)(v)
        memory = share * memory + g / np.abs(g).sum()
        v = closest(v + 0.1 * steepest(memory, p), p, 1.0)
    np.testing.assert_allclose(states[-1].v.numpy(), v, atol=1e-4)
