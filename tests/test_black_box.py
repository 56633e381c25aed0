import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from victims import (
    CLASS_NAMES,
    HEIGHT,
    WIDTH,
    Constant,
    CountingPool,
    Flat,
    NotANumber,
    SmallCNN,
    arena_of,
    image_set,
    targeted_victim,
    two_class,
)

from uapray.attack.basis import encode
from uapray.attack.projection import length
from uapray.black_box import waves
from uapray.config import BLACK_BOX, Budget, Search, Threat
from uapray.coordinator import Snapshot
from uapray.data.images import held_out
from uapray.errors import ConfigError, TrialError
from uapray.judgement import judge
from uapray.trial import Found, find

META = ("cma-es", "pso", "de", "ga")
RULES = ("hill-climb", *META)
FULL = 8  # frequencies a side that span pictures of 8 x 7 pixels


def settings_of(rule: str, passes: float = 60.0, **changes: object) -> Search:
    small = {"frequencies": FULL, "population": 8, "race_images": 4, "budget": Budget(max_epochs=passes)}
    values = {"rule": rule, **small, **changes}
    return Search.model_validate(values)


def test_the_rules_are_all_there_are() -> None:
    assert set(RULES) == BLACK_BOX


# Known answers


@pytest.mark.parametrize("share", [0.2, 0.8])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", ["hill-climb", "cma-es"])
def test_of_a_linear_victim_the_best_is_nearly_found(rule: str, norm: str, share: float) -> None:
    """It goes the way that fools more images, and fools about as many as the optimum."""
    images = image_set(100)
    victim, xi = two_class(images.images, share=share), 0.05 if norm == "linf" else 0.3
    up, down = victim.fooled(images.images, norm, xi)
    arena, _ = arena_of(victim.module, images)
    found = find(arena, Threat(norm=norm, xi=xi), settings_of(rule, 400), seed=0).perturbation
    best = victim.best(norm, xi) * (1 if up > down else -1)
    reached = float((found * victim.w).sum() / (best * victim.w).sum())
    assert 0.8 < reached <= 1 + 1e-5
    assert judge(arena, "train", found, target=None).outcome.fooling.hits >= 0.85 * max(up, down)


@pytest.mark.parametrize(("rule", "race_images"), [("hill-climb", None), ("hill-climb", 8), ("cma-es", 8)])
def test_a_named_class_is_reached(rule: str, race_images: int | None) -> None:
    images = image_set(80, channels=3, classes=3)
    victim, towards = targeted_victim(images.images, 1, "linf")
    arena, _ = arena_of(victim, images)
    placed = "surface" if race_images else "ball"  # without a race and in the ball: as published
    settings = settings_of(rule, 300, race_images=race_images, placed=placed)
    found = find(arena, Threat(xi=0.03, target=CLASS_NAMES[1]), settings, seed=0).perturbation
    assert float((found * towards).sum()) > 0.5 * 0.03 * towards.abs().sum()


@pytest.mark.parametrize("rule", RULES)
def test_labels_alone_lead_somewhere(rule: str) -> None:
    images = image_set(100)
    victim, xi = two_class(images.images, share=0.5), 0.05
    arena, _ = arena_of(victim.module, images)
    settings = settings_of(rule, 150, feedback="labels", frequencies=4, race_images=32)
    found = find(arena, Threat(xi=xi), settings, seed=0)
    random = find(arena, Threat(xi=xi), Search(rule="random"), seed=0)
    rates = [judge(arena, "train", one.perturbation, target=None).outcome.fooling.share for one in (found, random)]
    assert rates[0] > rates[1] + 0.1


# Budgets


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("most", [251, 400, 997, 3000])
def test_no_more_is_asked_than_the_budget_allows_and_all_of_it_is_counted(rule: str, most: int) -> None:
    arena, pool = arena_of(SmallCNN(), image_set(60, classes=3))
    settings = settings_of(rule, budget=Budget(max_image_queries=most))
    seen: list[Snapshot] = []
    found = find(arena, Threat(xi=0.1), settings, seed=0, watch=seen.append)
    judged = len(seen[-1].starts)
    assert judged == 1
    assert found.image_queries <= most
    assert found.history[-1].image_queries == found.image_queries
    assert found.image_queries > 0.5 * most
    assert pool.image_gradients == found.image_gradients == 0
    assert pool.image_queries == found.image_queries + found.source_images  # the rate on the source images comes after
    assert seen[-1].share_done <= 1


@pytest.mark.parametrize("rule", RULES)
def test_a_pass_is_as_many_predictions_as_there_are_source_images(rule: str) -> None:
    arena, _ = arena_of(SmallCNN(), image_set(60, classes=3))
    found = find(arena, Threat(xi=0.1), settings_of(rule, 20), seed=0)
    assert 15 <= found.history[-1].epoch <= 20
    assert [row.image_queries for row in found.history] == sorted({row.image_queries for row in found.history})
    assert all(later.image_queries >= 1.1 * row.image_queries for row, later in pairs(found))


def pairs(found: Found) -> Iterator[tuple]:
    rows = found.history[:-1]  # the last is judged because the budget ended
    return itertools.pairwise(rows)


@pytest.mark.parametrize("rule", RULES)
def test_enough_is_enough(rule: str) -> None:
    arena, _ = arena_of(SmallCNN(), image_set(60, classes=3))
    through = find(arena, Threat(xi=0.8), settings_of(rule, 40), seed=0)
    stopped = find(arena, Threat(xi=0.8), settings_of(rule, budget=Budget(max_epochs=40, stop_rate=0.01)), seed=0)
    assert stopped.validation_rate is not None
    assert stopped.validation_rate > 0
    assert stopped.history == through.history[: len(stopped.history)]
    assert len(stopped.history) < len(through.history)
    timed = find(arena, Threat(xi=0.3), settings_of(rule, budget=Budget(max_seconds=1e-9)), seed=0)
    assert len(timed.history) == 1


@pytest.mark.parametrize("rule", RULES)
def test_a_budget_for_nothing_is_said_to_be(rule: str) -> None:
    arena, _ = arena_of(SmallCNN(), image_set(60, classes=3))
    with pytest.raises(TrialError, match="budget"):
        find(arena, Threat(xi=0.1), settings_of(rule, budget=Budget(max_image_queries=90)), seed=0)


def test_the_race_spares_predictions() -> None:
    arena, _ = arena_of(SmallCNN(), image_set(100, classes=3))
    rounds = {
        images: find(arena, Threat(xi=0.1), settings_of("cma-es", 40, race_images=images), seed=0).history[-1].round
        for images in (8, None)
    }
    assert rounds[8] > 2 * rounds[None]


# What holds for every search


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", RULES)
def test_a_find_is_on_the_surface_and_equal_seeds_give_equal_bits(rule: str, norm: str) -> None:
    def run(seed: int) -> Found:
        np.random.seed(np.random.randint(2**31))
        arena, _ = arena_of(SmallCNN(), image_set(60, classes=3))
        return find(arena, Threat(norm=norm, zeta=0.05), settings_of(rule, 8), seed=seed)

    first, again = run(3), run(3)
    assert torch.equal(first.perturbation, again.perturbation)
    assert first.history == again.history
    assert not torch.equal(first.perturbation, run(4).perturbation)
    assert length(first.perturbation, p=2 if norm == "l2" else math.inf) == pytest.approx(first.xi, rel=1e-5)
    assert first.perturbation.shape == (1, HEIGHT, WIDTH)
    assert (first.epsilon is None) == (rule in META)
    assert first.source_fooling_rate is not None


@pytest.mark.parametrize("rule", RULES)
def test_the_validation_part_is_asked_about_in_judgements_alone(rule: str) -> None:
    images = image_set(60, classes=3)
    arena, pool = arena_of(SmallCNN(), images)
    arena.clean("train")
    asked: set[int] = set()

    def population(self: CountingPool, vs: object, batches: list) -> list:
        asked.update(row for batch in batches for row in batch.indices.tolist())
        return self.pool.population(vs, batches)

    watched = type("Watched", (CountingPool,), {"population": population})(pool.pool)
    object.__setattr__(arena, "pool", watched)
    found = find(arena, Threat(xi=0.1), settings_of(rule, 8), seed=0)
    held = held_out(images.labels, images.groups, 0.2, 0)
    assert asked <= set(np.flatnonzero(~held).tolist())
    assert found.history[-1].images_used == len(asked)


@pytest.mark.parametrize("rule", META)
def test_a_meta_heuristic_keeps_to_its_frequencies(rule: str) -> None:
    arena, _ = arena_of(SmallCNN(), image_set(60, classes=3))
    settings = settings_of(rule, 8, frequencies=3)
    found = find(arena, Threat(norm="l2", xi=0.5), settings, seed=0).perturbation
    rest = encode(found, (HEIGHT, WIDTH))
    rest[:, :3, :3] = 0
    assert rest.abs().max() < 1e-5


def test_waves_come_once_each_the_lowest_first_then_ring_by_ring() -> None:
    several = waves((2, 4, 3), 2, seed=0)
    twice = [encode(next(several), (4, 3)).abs().flatten().argmax().item() for _ in range(48)]
    sides = [max(place % 12 // 3, place % 3) for place in twice]
    assert sorted(twice[:24]) == list(range(24)) == sorted(twice[24:])
    assert sides[:8] == sorted(sides[:8]) or set(sides[:8]) <= {0, 1}
    assert set(sides[8:18]) == {2}
    assert set(sides[18:24]) == {3}


@pytest.mark.parametrize("victim", [Flat(), Constant()])
@pytest.mark.parametrize("rule", RULES)
def test_a_victim_that_nothing_moves_is_said_to_be_flat(rule: str, victim: nn.Module) -> None:
    arena, _ = arena_of(victim, image_set(40))
    with pytest.raises(TrialError, match="no answer ever moved"):
        find(arena, Threat(xi=0.1), settings_of(rule, 5), seed=0)


@pytest.mark.parametrize("rule", RULES)
def test_logits_that_are_no_numbers_end_the_search(rule: str) -> None:
    images = image_set(60)
    arena, _ = arena_of(NotANumber(two_class(images.images, share=0.5).module, 0.505), images)
    with pytest.raises(TrialError, match="NaN"):
        find(arena, Threat(xi=0.05), settings_of(rule, 5), seed=0)


@pytest.mark.parametrize("rule", RULES)
def test_several_classifiers_are_refused(rule: str) -> None:
    images = image_set(40)
    one, other = arena_of(SmallCNN(classes=2), images)[0], arena_of(SmallCNN(classes=2, seed=1), images)[0]
    with pytest.raises(ConfigError, match="one classifier, got 2"):
        find(one, Threat(xi=0.1), settings_of(rule), seed=0, others=[other])
