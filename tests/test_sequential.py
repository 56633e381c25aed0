"""The search image by image: order, budgets, counts, what it finds, and what it says when it finds nothing."""

import contextlib
import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from victims import (
    CLASS_NAMES,
    CountingPool,
    Flat,
    SmallCNN,
    arena_of,
    decks_of,
    grey_levels,
    image_set,
    pool_of,
    targeted_victim,
    two_class,
    unit_pixels,
)

from uapray.attack.objective import Objective
from uapray.attack.projection import length, order
from uapray.attack.sequential import AT_FIRST, Visiting
from uapray.config import Budget, Search, Threat, parse
from uapray.coordinator import Snapshot, Task, search
from uapray.errors import ConfigError, TrialError
from uapray.panel import Member
from uapray.replica import Batch, Replica
from uapray.sequential import Sequential, step_of
from uapray.trial import find

SHAPE = (1, 8, 7)
RULES = ("uap-fgsm", "uap-deepfool")
CNN = SmallCNN(seed=6)
IMAGES = grey_levels(60, low=0, high=255, seed=8)


def settings_of(rule: str, **changes: object) -> Search:
    return Search.model_validate({"rule": rule, "inner_steps": 3, "budget": Budget(max_epochs=3), **changes})


def task_of(
    module: nn.Module,
    pool: CountingPool,
    count: int,
    *,
    norm: str = "linf",
    xi: float = 0.08,
    held: int = 12,
    target: int | None = None,
    classes: int = 3,
    seed: int = 0,
) -> Task:
    source, validation = decks_of(module, pool, count, held)
    return Task(order(norm), xi, Objective(target), SHAPE, classes, (Member(pool, source, validation),), seed)


def walk_of(task: Task, settings: Search) -> Sequential:
    epsilon = settings.first_step("linf" if task.p == math.inf else "l2") * task.xi
    return Sequential(step_of(settings, task, epsilon), task, settings)


def walked(task: Task, settings: Search) -> Iterator[Snapshot]:
    return search(walk_of(task, settings), task, settings)


# Known answers


@pytest.mark.parametrize("share", [0.2, 0.8])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_found_of_a_linear_victim_lies_in_the_ball_and_fools_as_many_as_it_says(
    rule: str, norm: str, share: float
) -> None:
    images = image_set(100)
    victim, xi = two_class(images.images, share=share), 0.05 if norm == "linf" else 0.3
    arena, _ = arena_of(victim.module, images)
    found = find(arena, Threat(norm=norm, xi=xi), settings_of(rule, budget=Budget(max_epochs=10)), seed=0)
    assert length(found.perturbation, p=order(norm)) <= xi * (1 + 1e-6)
    pixels = (unit_pixels(images.images) + found.perturbation).clamp(0, 1)
    scores = victim.scores(images.images)
    fooled = float(np.mean((victim.module(pixels).argmax(1).numpy() == 1) != (scores > 0)))
    best = max(victim.fooled(images.images, norm, xi)) / 100
    assert 0.5 * best < fooled <= best
    along = (found.perturbation * victim.w).sum() / (found.perturbation.norm() * victim.w.norm())
    assert abs(along) > 0.7


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", RULES)
def test_a_linear_victim_is_led_to_the_target(rule: str, norm: str) -> None:
    images = image_set(80, classes=3)
    victim, towards = targeted_victim(images.images, 1, norm)
    xi = 0.02 if norm == "linf" else 0.1
    arena, _ = arena_of(victim, images)
    found = find(arena, Threat(norm=norm, xi=xi, target=CLASS_NAMES[1]), settings_of(rule, step_size=0.5), seed=0)
    assert length(found.perturbation, p=order(norm)) <= xi * (1 + 1e-6)
    pixels = unit_pixels(images.images)
    before = float((victim(pixels).argmax(1) == 1).double().mean())
    after = float((victim(pixels + found.perturbation).argmax(1) == 1).double().mean())
    assert after > before + 0.2
    assert float((found.perturbation * towards).sum()) > 0


# The order, and what is judged


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", RULES)
def test_a_search_is_a_plain_loop_over_the_order_of_the_deck(rule: str, norm: str, target: int | None) -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    task = task_of(CNN, pool, 60, norm=norm, xi=0.08 if norm == "linf" else 0.4, target=target, seed=7)
    settings = settings_of(rule, measures_per_epoch=2)
    *_, found = walked(task, settings)

    walk, replica, deck = walk_of(task, settings), Replica(CNN, {"train": IMAGES}), task.source
    how = Visiting(walk.step, task.p, task.xi, target, clip=True, most=1)
    v, best, certainty, seen = torch.zeros(SHAPE), torch.zeros(SHAPE), -1.0, []
    for epoch in range(3):
        drawn = deck.order(seed=7000, epoch=epoch)
        for half in (drawn[:24], drawn[24:]):
            batch = Batch("train", deck.rows[half], deck.reference[half])
            v = replica.visit(v.numpy(), batch, how, AT_FIRST).v
            validation = task.members[0].validation
            logits = torch.from_numpy(pool.logits(v, validation.in_turn()))
            sure = task.objective.certainty(logits, torch.from_numpy(validation.reference))
            if sure > certainty and v.any():
                best, certainty = v, sure
            seen.extend(half.tolist())
    assert [row for rows, _ in pool.visits for row in rows] == deck.rows[seen].tolist()
    torch.testing.assert_close(found.starts[0].state.v, v, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.best, best, rtol=0, atol=1e-6)
    assert found.best.any()
    assert found.measured[-1].epoch == 3
    assert found.measured[-1].images_used == 48


def test_what_is_judged_is_the_perturbation_as_it_stands() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    for snapshot in walked(task_of(CNN, pool, 60, xi=0.3), settings_of("uap-fgsm", step_size=0.05)):
        v = snapshot.starts[0].state.v
        assert snapshot.measured[0].linf == length(v, p=math.inf)
        assert snapshot.measured[0].l2 == length(v, p=2)
    assert snapshot.measured[0].linf < 0.3


@pytest.mark.parametrize("rule", RULES)
def test_equal_searches_give_equal_bits_and_another_seed_another_perturbation(rule: str) -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    one, two, other = (list(walked(task_of(CNN, pool, 60, seed=seed), settings_of(rule)))[-1] for seed in (0, 0, 1))
    assert torch.equal(one.best, two.best)
    assert one.measured == two.measured
    assert not torch.equal(one.best, other.best)


def test_a_search_may_begin_at_a_random_point_of_the_ball() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    task = task_of(CNN, pool, 60, seed=3)
    (start,) = walk_of(task, settings_of("uap-fgsm", init="random")).begin()
    assert 0 < length(start.state.v, p=task.p) <= task.xi
    (start,) = walk_of(task, settings_of("uap-fgsm")).begin()
    assert not start.state.v.any()


def test_a_sign_step_is_a_share_of_the_radius_in_the_norm_of_the_ball() -> None:
    module = two_class(IMAGES, share=0.5).module
    pool = pool_of(module, {"train": IMAGES})
    pixels, classes = unit_pixels(IMAGES[:1]), torch.zeros(1, dtype=torch.int64)
    for norm in ("linf", "l2"):
        task = task_of(module, pool, 60, norm=norm, xi=0.4, classes=2)
        made = walk_of(task, settings_of("uap-fgsm", step_size=0.5)).step(module, pixels, classes, None)
        assert length(made.steps, p=task.p) == pytest.approx(0.2, rel=1e-6)


# Budgets


@given(st.data())
def test_no_budget_is_exceeded_and_every_count_is_true(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 60), label="images")
    held = data.draw(st.integers(1, count - 1), label="held out")
    target = data.draw(st.sampled_from([None, 0, 2]), label="target")
    budget = Budget(
        max_epochs=data.draw(st.floats(0.05, 3), label="max epochs"),
        max_image_gradients=data.draw(st.none() | st.integers(1, 300), label="max image gradients"),
        max_image_queries=data.draw(st.none() | st.integers(1, 900), label="max image queries"),
    )
    size = data.draw(st.integers(1, 20), label="batch size")
    settings = settings_of(
        data.draw(st.sampled_from(RULES)),
        batch_size=size,
        round_size=size,
        init="random",
        measures_per_epoch=data.draw(st.integers(1, 4), label="measures an epoch"),
        budget=budget,
    )
    pool = pool_of(CNN, {"train": IMAGES})
    task = task_of(CNN, pool, count, held=held, xi=0.2, target=target)
    walk, snapshots, before = walk_of(task, settings), [], count
    with contextlib.suppress(TrialError):  # of a pass in which no step was accepted
        snapshots.extend(search(walk, task, settings))
    assert pool.image_gradients <= (budget.max_image_gradients or math.inf)
    assert before + pool.image_queries <= max(budget.max_image_queries or math.inf, before)
    if snapshots and snapshots[-1].starts[0].moved:
        last = snapshots[-1]
        assert (last.image_gradients, last.image_queries) == (pool.image_gradients, before + pool.image_queries)
        assert last.measured[0].round == sum(len(rows) for rows, _ in pool.visits)
        assert last.measured[0].round < budget.max_epochs * (count - held) + 1
    starts = [walk.begin()[0], *(snapshot.starts[0] for snapshot in snapshots)]
    for earlier, later in pairwise(starts):
        rounds = later.rounds - earlier.rounds
        assert later.image_gradients - earlier.image_gradients <= rounds * walk.cost.image_gradients
        assert later.image_queries - earlier.image_queries <= rounds * walk.cost.image_queries
    assert all(len(rows) <= 2 * size for rows, _ in pool.visits)


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 2), (5, 2), (30, 29)])
@pytest.mark.parametrize("rule", RULES)
def test_few_images_are_enough(rule: str, count: int, held: int) -> None:
    images = grey_levels(60)
    module = two_class(images, share=0.5).module
    pool = pool_of(module, {"train": images})
    task = task_of(module, pool, count, held=held, xi=0.1, classes=2)
    *_, found = walked(task, settings_of(rule, step_size=1.0))
    assert found.best.isfinite().all()
    assert found.best.any()
    assert found.image_gradients == pool.image_gradients > 0


def test_a_stop_rate_stops() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    free = list(walked(task_of(CNN, pool, 60), settings_of("uap-fgsm")))
    budget = Budget(stop_rate=free[0].best_rate)
    assert len(free) == 3
    assert free[0].best_rate > 0
    (only,) = walked(task_of(CNN, pool, 60), settings_of("uap-fgsm", budget=budget))
    assert torch.equal(only.best, free[0].best)


# What is refused


@pytest.mark.parametrize("rule", RULES)
def test_a_search_in_which_no_step_is_accepted_says_so_after_one_pass(rule: str) -> None:
    arena, pool = arena_of(Flat(), image_set(40))
    with pytest.raises(TrialError, match=rf"no step of {rule} was accepted.*try a larger ") as caught:
        find(arena, Threat(xi=0.1), settings_of(rule, measures_per_epoch=3), seed=0)
    assert len(str(caught.value).splitlines()) == 1
    assert sum(len(rows) for rows, _ in pool.visits) == 32


@pytest.mark.parametrize("xi", [1e-4, 0.3])
def test_a_step_too_small_for_any_image_is_named_as_what_to_change(xi: float) -> None:
    arena, _ = arena_of(CNN, image_set(40, pixels=IMAGES[:40]))
    settings = settings_of("uap-fgsm", step_size=1e-6)
    with pytest.raises(TrialError, match="try a larger step_size"):
        find(arena, Threat(xi=xi), settings, seed=0)
    with pytest.raises(TrialError, match="try a larger step_size, or more budget"):
        find(arena, Threat(xi=xi), settings_of("uap-fgsm", step_size=1e-6, budget=Budget(max_epochs=0.5)), seed=0)


@pytest.mark.parametrize("rule", RULES)
def test_several_classifiers_are_refused(rule: str) -> None:
    arena, pool = arena_of(CNN, image_set(40))
    with pytest.raises(
        ConfigError, match=rf"^rule: {rule} goes image by image through one classifier, got 2; "
    ) as caught:
        find(arena, Threat(xi=0.1), settings_of(rule), seed=0, others=[arena])
    assert len(str(caught.value).splitlines()) == 1
    assert not pool.visits


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"starts": 4}, "starts: expected 1 for uap-fgsm"), ({"init": "gradient"}, "init: expected zero or random")],
)
def test_what_a_sequential_rule_cannot_do_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(Search, {"rule": "uap-fgsm", **changes}, origin="settings")
    assert parse(Search, {"rule": "spgd", **changes}, origin="settings")


def test_only_steps_of_a_given_length_have_an_epsilon() -> None:
    arena, _ = arena_of(CNN, image_set(60, pixels=IMAGES))
    fgsm, deepfool = (find(arena, Threat(xi=0.2), settings_of(rule), seed=0) for rule in RULES)
    assert fgsm.epsilon == pytest.approx(0.05)
    assert deepfool.epsilon is None
