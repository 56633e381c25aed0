"""Matched controls judged beside a perturbation, on one replica in this process."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from victims import SmallCNN, arena_of, image_set, noise, targeted_victim, two_class

from uapray.attack.control import matched_controls, signs
from uapray.attack.projection import norms
from uapray.controls import Controls, draw_seed, judge_controls
from uapray.judgement import judge
from uapray.measures import p_value

IMAGES = image_set(60, classes=3)
KINDS = tuple(matched_controls(2.0))


def judged(v: torch.Tensor, **changed: object) -> tuple[Controls, ...]:
    arena, _ = arena_of(SmallCNN(), IMAGES)
    asked = {"target": None, "p": 2.0, "draws": 3, "max_images": 20, "seed": 5} | changed
    return judge_controls(arena, "train", v, **asked)  # type: ignore[arg-type]


def test_every_kind_is_judged_on_the_same_images_as_the_perturbation() -> None:
    v = noise(1, scale=0.1)
    found = judged(v)
    assert tuple(one.kind for one in found) == KINDS
    arena, pool = arena_of(SmallCNN(), IMAGES)
    whole = judge(arena, "train", v, target=None).outcome
    rows = np.unique(np.linspace(0, 59, 20).astype(int))
    for one in found:
        assert one.perturbation.images == 20
        assert one.perturbation.perturbed.tolist() == whole.perturbed[rows].tolist()
        assert one.rate == one.perturbation.fooling
        for number, outcome in enumerate(one.draws):
            draw = matched_controls(2.0)[one.kind](v, seed=draw_seed(5, one.kind, number))
            alone = judge(arena, "train", draw, target=None).outcome
            assert outcome.perturbed.tolist() == alone.perturbed[rows].tolist()
            assert outcome.labels.tolist() == IMAGES.labels[rows].tolist()
        assert one.mean == pytest.approx(np.mean(one.fooling_rates))
        assert one.p_value == p_value(one.rate.share, one.fooling_rates)
    assert pool.image_gradients == 0


def test_the_matched_norms_match() -> None:
    v = noise(2, scale=0.1)
    l2, linf = norms(v)
    sizes = {one.kind: (one.l2, one.linf) for one in judged(v)}
    for kind in ("signs", "permuted"):
        assert sizes[kind] == pytest.approx((l2, linf))
    assert sizes["scrambled"][0] == pytest.approx(l2, rel=1e-5)
    assert sizes["random"][0] <= l2


def test_the_best_direction_of_a_linear_victim_is_not_chance() -> None:
    images = image_set(100)
    victim = two_class(images.images, share=0.5)
    arena, _ = arena_of(victim.module, images)
    asked = {"target": None, "p": 2.0, "draws": 19, "max_images": 100, "seed": 0}
    best = judge_controls(arena, "train", victim.best("l2", 0.3), **asked)  # type: ignore[arg-type]
    assert [one.p_value for one in best] == [0.05] * 4


def test_what_is_chance_is_seldom_taken_for_more() -> None:
    images = image_set(40)
    victim = two_class(images.images, share=0.5)
    arena, _ = arena_of(victim.module, images)
    taken = 0
    for seed in range(40):
        chance = signs(victim.best("l2", 0.3), seed=seed)  # as likely as any of its own draws
        asked = {"target": None, "p": 2.0, "draws": 9, "max_images": 40, "seed": seed}
        found = {one.kind: one.p_value for one in judge_controls(arena, "train", chance, **asked)}  # type: ignore[arg-type]
        taken += found["signs"] == 0.1
    assert taken <= 40 * 0.1 + 3 * math.sqrt(40 * 0.1 * 0.9)


def test_with_a_target_the_success_on_non_targets_counts() -> None:
    module, towards = targeted_victim(IMAGES.images, 1, "l2")
    arena, _ = arena_of(module, IMAGES)
    asked = {"target": 1, "p": 2.0, "draws": 9, "max_images": 60, "seed": 0}
    for one in judge_controls(arena, "train", 0.1 * towards, **asked):  # type: ignore[arg-type]
        assert one.rates is not None
        assert one.rates == one.targeted_success_rates_non_target
        assert one.rate == one.perturbation.towards_non_target(1)
        assert one.p_value == p_value(one.rate.share, one.rates)


def test_where_all_images_are_of_the_target_there_is_no_p_value() -> None:
    arena, _ = arena_of(SmallCNN(), IMAGES)
    natives = np.flatnonzero(arena.clean("train") == arena.clean("train")[0])
    alike = IMAGES.select(natives)
    own, _ = arena_of(SmallCNN(), alike)
    target = int(arena.clean("train")[0])
    asked = {"target": target, "p": 2.0, "draws": 2, "max_images": 20, "seed": 0}
    for one in judge_controls(own, "train", noise(1), **asked):  # type: ignore[arg-type]
        assert (one.rates, one.mean, one.p_value) == (None, None, None)


def test_equal_seeds_give_equal_draws_and_none_asked_is_none_judged() -> None:
    v, seen = noise(4, scale=0.3), []
    first, again = judged(v), judged(v, watch=seen.append)
    assert [draw.perturbed.tolist() for one in first for draw in one.draws] == [
        draw.perturbed.tolist() for one in again for draw in one.draws
    ]
    assert [one.linf for one in first] != [one.linf for one in judged(v, seed=6)]
    assert seen == pytest.approx([place / 12 for place in range(2, 13, 2)])
    assert judged(v, draws=0) == ()


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.integers(0, 99)), unique=True))
def test_every_draw_has_a_seed_of_its_own(draws: list[tuple[int, str, int]]) -> None:
    seeds = [draw_seed(*draw) for draw in draws]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**60 for seed in seeds)


def test_draws_of_this_version() -> None:
    """What stands in stores was drawn with these."""
    assert draw_seed(0, "signs", 0) == 935415716867719687
    assert draw_seed(7, "scrambled", 18) == 674964545334376958
