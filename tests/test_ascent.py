import math
import pickle
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from victims import noise

from uapray.ascent import Ascending, Ascent, ascend
from uapray.attack.objective import Objective
from uapray.attack.partial import PartialUpdate
from uapray.attack.rules import Rule, State, cosine_uap, df_uap, sga, spgd
from uapray.errors import TrialError
from uapray.pace import Pace

SHAPE = (3, 4, 5)
orders = st.sampled_from([2.0, math.inf])
seeds = st.integers(0, 10_000)
kinds = st.sampled_from(["spgd", "momentum", "filter", "sga", "df-uap", "cosine-uap"])


def rule_of(kind: str, p: float) -> Rule:
    match kind:
        case "sga":
            return sga(p=p, xi=0.3, step_size=0.8, step_decay=0.6, inner_rounds=3)
        case "df-uap":
            return df_uap(p=p, xi=0.3, step_size=0.2, step_decay=0.6)
        case "cosine-uap":
            return cosine_uap(p=p, xi=0.3, step_size=0.2, step_decay=0.6)
        case "momentum":
            return spgd(p=p, xi=0.3, step_size=0.8, step_decay=0.6, momentum=0.5)
        case _:
            return spgd(p=p, xi=0.3, step_size=0.8, step_decay=0.6, wiener_rounds=8 if kind == "filter" else math.inf)


def gradient(point: Tensor, places: slice) -> PartialUpdate:
    """Return gradients that depend on the images and on where they are taken."""
    each = [noise(place, scale=1.0, shape=SHAPE).double() for place in range(places.start, places.stop)]
    return PartialUpdate(torch.stack(each).sum(0) + (5 * point.double()).sin(), len(each))


def by_hand(rule: Rule, rounds: int, size: int) -> State:
    state = rule.start(torch.zeros(SHAPE))
    for number in range(rounds):
        state = rule.step(state, gradient(state.point, slice(number * size, (number + 1) * size)), number / 4)
    return state


def how_of(rule: Rule, size: int, batches: int) -> Ascending:
    return Ascending(rule.step, Objective(), Pace(size // batches, batches, rounds_an_epoch=4, legs_an_epoch=1))


def same(one: State, other: State) -> bool:
    """Return whether two states have the same bits."""

    def equal(a: object, b: object) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b

    return all(equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(State))


@given(kinds, orders, st.integers(1, 6), st.sampled_from([1, 2]))
def test_rounds_in_one_go_are_rounds_one_by_one(kind: str, p: float, rounds: int, batches: int) -> None:
    rule = rule_of(kind, p)
    start = rule.start(torch.zeros(SHAPE))
    came = ascend(gradient, start, rounds * 2, 0, how_of(rule, 2, batches), math.inf)
    assert came.rounds == rounds
    assert same(came.state, by_hand(rule, rounds, 2))


@given(kinds, orders, st.integers(2, 6), st.data())
def test_where_they_are_interrupted_and_sent_on_changes_no_bit(
    kind: str, p: float, rounds: int, data: st.DataObject
) -> None:
    rule, cut = rule_of(kind, p), data.draw(st.integers(1, rounds - 1))
    how = pickle.loads(pickle.dumps(how_of(rule, 2, 1)))

    def later(point: Tensor, places: slice) -> PartialUpdate:
        return gradient(point, slice(places.start + cut * 2, places.stop + cut * 2))

    first = ascend(gradient, rule.start(torch.zeros(SHAPE)), cut * 2, 0, how, math.inf)
    sent: Ascent = pickle.loads(pickle.dumps(first))
    assert same(sent.state, first.state)
    rest = ascend(later, sent.state, (rounds - cut) * 2, cut, how, math.inf)
    assert same(rest.state, by_hand(rule, rounds, 2))


def test_once_the_time_is_over_no_further_round_is_begun() -> None:
    rule = rule_of("spgd", math.inf)
    came = ascend(gradient, rule.start(torch.zeros(SHAPE)), 20, 0, how_of(rule, 2, 1), 0.0)
    assert came.rounds == 1
    assert same(came.state, by_hand(rule, 1, 2))


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_gradients_that_are_not_finite_are_said(worst: float) -> None:
    rule = rule_of("spgd", 2.0)

    def broken(point: Tensor, places: slice) -> PartialUpdate:
        return PartialUpdate(torch.full(SHAPE, worst, dtype=torch.float64), 2)

    with pytest.raises(TrialError, match="not finite"):
        ascend(broken, rule.start(torch.zeros(SHAPE)), 4, 0, how_of(rule, 2, 1), math.inf)


@given(kinds, orders)
def test_a_state_that_arrived_may_be_written_to_and_its_point_is_its_perturbation(kind: str, p: float) -> None:
    state = by_hand(rule_of(kind, p), 3, 2)
    arrived = pickle.loads(pickle.dumps(state, protocol=5))
    assert (arrived.point is arrived.v) == (state.point is state.v)
    arrived.v.add_(1)
    assert not torch.equal(arrived.v, state.v)
