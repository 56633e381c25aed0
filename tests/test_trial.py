import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from victims import (
    CLASS_NAMES,
    HEIGHT,
    WIDTH,
    Constant,
    Flat,
    NotANumber,
    SmallCNN,
    arena_of,
    grey_levels,
    image_set,
    noise,
    targeted_victim,
    two_class,
)

from uapray.arena import radius
from uapray.attack.control import random_perturbation
from uapray.attack.projection import length
from uapray.config import Budget, Norm, Search, Threat
from uapray.coordinator import Snapshot
from uapray.data.dataset import load_images
from uapray.data.images import chosen_images, class_index, held_out
from uapray.errors import ConfigError, DataError, TrialError, UaprayError
from uapray.judgement import judge
from uapray.measures import likeness, visibility
from uapray.trial import Found, find, rule_of

RULES = ("spgd", "sga")


def settings_of(rule: str = "spgd", **changes: object) -> Search:
    return Search.model_validate({"rule": rule, "batch_size": 8, "round_size": 8, "inner_rounds": 2, **changes})


# Known answers


@pytest.mark.parametrize("share", [0.2, 0.8])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", RULES)
def test_of_a_linear_victim_the_best_is_found_and_fools_as_many_as_arithmetic_says(
    rule: str, norm: str, share: float
) -> None:
    images = image_set(100)
    victim, xi = two_class(images.images, share=share), 0.05 if norm == "linf" else 0.3
    up, down = victim.fooled(images.images, norm, xi)
    assert abs(up - down) > 30
    arena, _ = arena_of(victim.module, images)
    found = find(arena, Threat(norm=norm, xi=xi), settings_of(rule), seed=0)
    best = victim.best(norm, xi) * (1 if up > down else -1)
    torch.testing.assert_close(found.perturbation, best, rtol=0, atol=1e-6 * xi)
    judged = judge(arena, "train", found.perturbation, target=None).outcome
    assert judged.fooling.hits == max(up, down)
    assert judged.dominant == (1 if up > down else 0)
    opposite = judge(arena, "train", -found.perturbation, target=None).outcome
    assert opposite.fooling.hits == min(up, down)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_a_linear_victim_the_best_way_to_a_named_class_is_found(norm: str) -> None:
    images = image_set(80, channels=3, classes=3)
    victim, towards = targeted_victim(images.images, 1, norm)
    arena, _ = arena_of(victim, images)
    threat = Threat(norm=norm, xi=0.01, target=CLASS_NAMES[1])
    found = find(arena, threat, settings_of(), seed=0)
    torch.testing.assert_close(found.perturbation, 0.01 * towards, rtol=0, atol=1e-8)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", RULES)
def test_a_search_that_continues_starts_at_the_new_surface_and_loses_nothing(rule: str, norm: str) -> None:
    images = image_set(100)
    victim = two_class(images.images, share=0.2)
    smaller, larger = (0.02, 0.05) if norm == "linf" else (0.1, 0.3)
    arena, pool = arena_of(victim.module, images)
    first = find(arena, Threat(norm=norm, xi=smaller), settings_of(rule), seed=0)
    before = pool.image_gradients
    settings = settings_of(rule, refine_epochs=0.5)
    found = find(arena, Threat(norm=norm, xi=larger), settings, seed=0, begin_at=first.perturbation)
    torch.testing.assert_close(found.perturbation, victim.best(norm, larger), rtol=0, atol=1e-6 * larger)
    assert found.history[0].round == 0
    assert found.history[0].linf == pytest.approx(larger if norm == "linf" else found.history[0].linf)
    assert pool.image_gradients - before == found.image_gradients == 8 * math.ceil(0.5 * (80 // 8))
    again = find(arena, Threat(norm=norm, xi=larger), settings, seed=0, begin_at=first.perturbation)
    assert torch.equal(again.perturbation, found.perturbation)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_a_search_that_continues_leaves_out_the_images_that_are_where_it_leads(share: float) -> None:
    images = image_set(100)
    victim = two_class(images.images, share=share)
    arena, pool = arena_of(victim.module, images)
    settings = settings_of("aimed-ascent", refine_epochs=0.5, starts=4)
    first = find(arena, Threat(xi=0.02), settings, seed=0)
    outcome = judge(arena, "train", first.perturbation, target=None).outcome
    (leads_to,) = {int(said) for said, clean in zip(outcome.perturbed, outcome.clean, strict=True) if said != clean}
    clean = arena.clean("train")
    assert {int(clean[place]) for batch in pool.gradients[-4:] for place in batch} == {1 - leads_to}
    pool.gradients.clear()
    found = find(arena, Threat(xi=0.05), settings, seed=0, begin_at=first.perturbation)
    assert {int(clean[place]) for batch in pool.gradients for place in batch} == {1 - leads_to}
    assert pool.image_gradients == found.image_gradients == 4 * math.ceil(0.5 * (80 // 8))
    assert length(found.perturbation - first.perturbation * 2.5, p=math.inf) < 1e-6, "the best one, which is linear"


@pytest.mark.parametrize("rule", RULES)
def test_a_budget_too_small_to_refine_keeps_what_it_began_with(rule: str) -> None:
    images = image_set(100)
    victim = two_class(images.images, share=0.2)
    arena, _ = arena_of(victim.module, images)
    settings = settings_of(rule, budget=Budget(max_image_gradients=1))
    best = victim.best("linf", 0.01)
    found = find(arena, Threat(norm="linf", xi=0.05), settings, seed=0, begin_at=best)
    torch.testing.assert_close(found.perturbation, 5 * best)
    assert found.image_gradients == 0


@pytest.mark.parametrize("victim", [Flat(), Constant()])
@pytest.mark.parametrize("rule", RULES)
def test_a_victim_without_gradients_is_said_to_have_none(rule: str, victim: nn.Module) -> None:
    arena, _ = arena_of(victim, image_set(40))
    with pytest.raises(TrialError, match="gradient") as caught:
        find(arena, Threat(xi=0.1), settings_of(rule), seed=0)
    assert len(str(caught.value)) > 40
    assert "\n" not in str(caught.value)


class Stairs(nn.Module):
    """Brightness counted in steps: random noise changes the class of a few, and the gradient is zero."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        score = (pixels.flatten(1) - 0.5).sign().mean(1)
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize("rule", RULES)
def test_a_random_draw_is_not_passed_off_as_the_find_of_a_search_without_gradients(rule: str) -> None:
    arena, _ = arena_of(Stairs(), image_set(40))
    with pytest.raises(TrialError, match="gradient"):
        find(arena, Threat(xi=0.1), settings_of(rule), seed=0)


@pytest.mark.parametrize("limit", [0.0, 0.505])
@pytest.mark.parametrize("rule", RULES)
def test_logits_that_are_no_numbers_never_end_in_a_perturbation_that_is_none(rule: str, limit: float) -> None:
    images = image_set(60)
    victim = NotANumber(two_class(images.images, share=0.5).module, limit)
    arena, _ = arena_of(victim, images)
    with pytest.raises(TrialError, match=r"not finite|NaN"):
        find(arena, Threat(xi=0.02), settings_of(rule), seed=0)


def test_a_prediction_that_is_no_number_is_not_counted_as_a_class() -> None:
    images = image_set(20)
    arena, _ = arena_of(NotANumber(two_class(images.images, share=0.5).module, 0.5), images)
    with pytest.raises(UaprayError, match=r"not finite|NaN"):
        judge(arena, "train", torch.zeros(1, HEIGHT, WIDTH), target=None)


# A search as a whole


@pytest.mark.parametrize("count", [12, 30])
def test_sga_of_few_images_walks_no_further_than_it_is_measured(count: int) -> None:
    """With the defaults, 12 or 30 images make fewer rounds than an inner walk of ten would have."""
    arena, _ = arena_of(SmallCNN(classes=2), image_set(count))
    found = find(arena, Threat(xi=0.05), Search(rule="sga"), seed=0).perturbation
    draws = [random_perturbation((1, HEIGHT, WIDTH), p=math.inf, xi=0.05, seed=index) for index in range(4)]
    assert not any(torch.equal(found.sign(), draw.sign()) for draw in draws)
    assert found.any()


def test_sga_on_a_robust_victim_does_not_blame_the_gradients() -> None:
    arena, _ = arena_of(SmallCNN(classes=2), image_set(60))
    found = find(arena, Threat(xi=1e-6), Search(rule="sga"), seed=0)
    assert found.perturbation.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", [*RULES, "random"])
def test_the_same_seed_gives_the_same_bits_and_another_others(rule: str, norm: str) -> None:
    def bits(seed: int) -> torch.Tensor:
        arena, _ = arena_of(SmallCNN(), image_set(60, classes=3))
        return find(arena, Threat(norm=norm, zeta=0.05), settings_of(rule), seed=seed).perturbation

    first = bits(3)
    assert torch.equal(bits(3), first)
    assert not torch.equal(bits(4), first)
    assert first.dtype == torch.float32
    assert first.shape == (1, HEIGHT, WIDTH)


def test_a_find_is_in_the_ball_and_its_counts_are_those_of_the_pool() -> None:
    images = image_set(61, classes=3)
    arena, pool = arena_of(SmallCNN(), images)
    found = find(arena, Threat(norm="l2", zeta=0.05), settings_of(), seed=0)
    assert length(found.perturbation, p=2) == pytest.approx(found.xi, rel=1e-6)
    assert found.epsilon == pytest.approx(0.4 * found.xi)
    assert found.image_gradients == pool.image_gradients
    held = held_out(images.labels, images.groups, 0.2, 0)
    judged_at_last = found.source_images  # on what it was made from, which is no part of the search
    assert found.image_queries == pool.image_queries - judged_at_last
    assert found.source_images == 61 - held.sum()
    source = {row for batch in pool.gradients for row in batch}
    assert not source & set(np.flatnonzero(held).tolist())
    assert found.history[-1].image_gradients == found.image_gradients
    assert found.history[-1].image_queries == found.image_queries


def test_no_patient_is_on_both_sides() -> None:
    images = image_set(60, groups=[f"patient {i // 5}" for i in range(60)])
    arena, pool = arena_of(SmallCNN(classes=2), images)
    find(arena, Threat(xi=0.05), settings_of(), seed=0)
    source = {images.groups[row] for batch in pool.gradients for row in batch}
    assert 0 < len(source) < 12
    held = held_out(images.labels, images.groups, 0.2, 0)
    assert source.isdisjoint(images.groups[row] for row in np.flatnonzero(held))


def test_the_validation_part_has_an_upper_limit() -> None:
    arena, pool = arena_of(SmallCNN(classes=2), image_set(60))
    found = find(arena, Threat(xi=0.05), settings_of(max_validation_images=5, starts=1), seed=0)
    assert found.source_images == pytest.approx(55, abs=1)
    assert pool.queries[1] == 60 - found.source_images


def test_clean_predictions_are_asked_for_once() -> None:
    arena, pool = arena_of(SmallCNN(), image_set(30, classes=3))
    first = arena.clean("train")
    assert np.array_equal(arena.clean("train"), first)
    judge(arena, "train", noise(0, scale=0.1), target=None)
    assert pool.queries == [30, 30]
    deck = arena.deck("train", np.array([4, 2, 9]))
    assert deck.reference.tolist() == first[[4, 2, 9]].tolist()


def test_a_control_costs_nothing_and_is_a_draw() -> None:
    arena, pool = arena_of(SmallCNN(), image_set(30, classes=3))
    found = find(arena, Threat(norm="l2", xi=0.3), Search(rule="random"), seed=9)
    assert torch.equal(found.perturbation, random_perturbation((1, HEIGHT, WIDTH), p=2, xi=0.3, seed=9))
    assert (found.history, found.image_gradients, found.image_queries, found.source_images) == ((), 0, 0, 0)
    assert found.epsilon is None
    assert pool.image_gradients == pool.image_queries == 0


def test_a_watcher_sees_every_snapshot_and_may_end_the_search() -> None:
    arena, pool = arena_of(SmallCNN(), image_set(60, classes=3))
    seen: list[Snapshot] = []
    found = find(arena, Threat(xi=0.05), settings_of(), seed=0, watch=seen.append)
    assert tuple(row for snapshot in seen for row in snapshot.measured) == found.history
    assert torch.equal(seen[-1].best, found.perturbation)
    spent = pool.image_gradients

    def enough(_: Snapshot) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(arena, Threat(xi=0.05), settings_of(), seed=0, watch=enough)
    assert pool.image_gradients - spent == seen[0].image_gradients


# What is asked for


@pytest.mark.parametrize("budget", [Budget(max_image_gradients=7), Budget(max_image_queries=30)])
def test_a_budget_too_small_for_anything_is_said_to_be(budget: Budget) -> None:
    arena, _ = arena_of(SmallCNN(), image_set(30, classes=3))
    with pytest.raises(TrialError, match="budget"):
        find(arena, Threat(xi=0.05), settings_of(budget=budget), seed=0)


def test_an_unknown_class_is_refused_before_anything_is_spent() -> None:
    arena, pool = arena_of(SmallCNN(), image_set(30, classes=3))
    with pytest.raises(ConfigError, match="target: expected one of CLEAR, OPACITY, EFFUSION, got 'CAT'"):
        find(arena, Threat(xi=0.05, target="CAT"), settings_of(), seed=0)
    assert pool.image_gradients == 0
    assert class_index(CLASS_NAMES, None) is None
    assert class_index(CLASS_NAMES, "EFFUSION") == 2


def test_one_patient_is_too_few_and_two_are_enough() -> None:
    with pytest.raises(DataError, match="two or more patients"):
        find(arena_of(SmallCNN(classes=2), image_set(1))[0], Threat(xi=0.05), settings_of(), seed=0)
    found = find(arena_of(SmallCNN(classes=2), image_set(2))[0], Threat(xi=0.05), settings_of(), seed=0)
    assert found.source_images == 1


def test_no_images_are_said_to_be_none() -> None:
    with pytest.raises(UaprayError, match="image"):
        find(arena_of(SmallCNN(classes=2), image_set(0))[0], Threat(zeta=0.05), settings_of(), seed=0)


@pytest.mark.parametrize("count", [9, 257])
def test_zeta_is_a_share_of_the_mean_norm_of_the_images(count: int) -> None:
    images = image_set(count, channels=3, pixels=grey_levels(count, channels=3, low=0, high=255))
    arena, _ = arena_of(SmallCNN(3), images)
    for norm, p in (("l2", 2), ("linf", math.inf), ("l2", 2)):
        mean = np.mean([np.linalg.norm(image.ravel() / 255, ord=p) for image in images.images])
        assert radius(arena, "train", Threat(norm=norm, zeta=0.04)) == pytest.approx(0.04 * mean, rel=1e-12)
        assert radius(arena, "train", Threat(norm=norm, xi=0.3)) == 0.3


@pytest.mark.parametrize(("norm", "rule"), [(norm, rule) for norm in ("l2", "linf") for rule in RULES])
def test_the_step_is_as_long_as_set(norm: str, rule: str) -> None:
    threat = Threat(norm=norm, xi=0.2)
    _, epsilon = rule_of(Search(rule=rule, step_size=0.3), threat, 0.2, 100, 3)
    assert epsilon == pytest.approx(0.06)
    _, default = rule_of(Search(rule=rule), threat, 0.2, 100, 3)
    assert 0.2 * 0.2 <= default <= 0.2 * 0.8


def test_earlier_gradients_are_kept_where_there_are_more_than_two_classes() -> None:
    arena, _ = arena_of(SmallCNN(classes=3), image_set(60, classes=3))

    def searched(**changes: object) -> torch.Tensor:
        settings = Search.model_validate({"rule": "aimed-ascent", "budget": {"max_epochs": 2}, **changes})
        return find(arena, Threat(xi=0.05), settings, seed=0).perturbation

    usual = searched()
    assert torch.equal(usual, searched(momentum=0.5))
    assert not torch.equal(usual, searched(momentum=0))
    assert [Search(momentum=given).kept(classes) for given, classes in ((None, 2), (0.2, 2), (0.2, 3))] == [0, 0.2, 0.2]
    assert Search(rule="spgd").kept(3) == 0


@pytest.mark.parametrize("rule", ["spgd", "aimed-ascent"])
def test_gradients_are_filtered_where_it_is_asked_for(rule: str) -> None:
    arena, _ = arena_of(SmallCNN(classes=3), image_set(60, classes=3))

    def searched(wiener_rounds: float | None, norm: Norm = "l2") -> torch.Tensor:
        settings = Search.model_validate(
            {
                "rule": rule,
                "budget": {"max_epochs": 3},
                "batch_size": 4,
                "round_size": 4,
                "wiener_rounds": wiener_rounds,
            }
        )
        return find(arena, Threat(norm=norm, zeta=0.1), settings, seed=0).perturbation

    assert torch.equal(searched(2), searched(2))
    assert not torch.equal(searched(2), searched(0))
    torch.testing.assert_close(searched(1e12), searched(0), atol=1e-4, rtol=1e-3)
    assert torch.equal(searched(None), searched(4 if rule == "aimed-ascent" else 0))
    assert torch.equal(searched(None, "linf"), searched(0, "linf"))


def test_starts_are_compared_by_their_rates() -> None:
    def queries(norm: Norm, classes: int, **changes: object) -> int:
        arena, _ = arena_of(SmallCNN(classes=classes), image_set(60, classes=classes))
        settings = Search.model_validate({"rule": "aimed-ascent", "budget": {"max_epochs": 2}, **changes})
        return find(arena, Threat(norm=norm, xi=0.5 if norm == "l2" else 0.05), settings, seed=0).image_queries

    for norm, (classes, starts) in itertools.product(("linf", "l2"), ((2, 2), (3, 4))):
        by_certainty = queries(norm, classes, screen_images=0)
        assert queries(norm, classes, screen_images=7) == by_certainty + starts * 7
        assert queries(norm, classes) == queries(norm, classes, screen_images=256) > by_certainty


def test_few_image_gradients_towards_one_of_two_classes_make_small_rounds() -> None:
    images = image_set(60, classes=2)
    arena, _ = arena_of(two_class(images.images, share=0.5).module, images)

    def rounds(target: str | None, gradients: int, **changes: object) -> int:
        values = {"rule": "aimed-ascent", "budget": {"max_image_gradients": gradients}, **changes}
        found = find(arena, Threat(norm="linf", xi=0.05, target=target), Search.model_validate(values), seed=0)
        assert gradients - 4 < found.image_gradients <= gradients
        return found.history[-1].round

    name = images.class_names[0]
    assert rounds(name, 40) == 40, "of one image each"
    assert rounds(name, 40, least_rounds=0) == 10, "of four, half of a batch"
    assert rounds(name, 40, least_rounds=20) == 20
    assert rounds(None, 40) == rounds(None, 40, least_rounds=0), "starts that are compared see as many images as ever"


# Judging


def test_no_perturbation_fools_nobody() -> None:
    arena, _ = arena_of(SmallCNN(), image_set(70, classes=3))
    judged = judge(arena, "train", torch.zeros(1, HEIGHT, WIDTH), target=1)
    assert judged.outcome.fooling.hits == 0
    assert judged.outcome.clean_accuracy == judged.outcome.robust_accuracy
    assert judged.visibility.psnr is None
    assert (judged.split, judged.target) == ("train", 1)


def test_256_images_spread_evenly_say_how_visible_it_is() -> None:
    images, v = image_set(300, classes=3), noise(0, scale=0.2)
    arena, _ = arena_of(SmallCNN(), images)
    some = images.images[np.unique(np.linspace(0, 299, 256).astype(int))]
    clean = torch.tensor(some).permute(0, 3, 1, 2).float() / 255
    expected = visibility(likeness(clean, (clean + v).clamp(0, 1)).numpy())
    found = judge(arena, "train", v, target=None).visibility
    assert found.ssim == pytest.approx(expected.ssim, abs=1e-6)
    assert found.psnr == pytest.approx(expected.psnr, abs=1e-5)


def test_pixels_are_clipped_before_they_are_judged() -> None:
    """A victim that only looks at how far the pixels go beyond [0, 1] is not fooled."""

    class Overshoot(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            beyond = (pixels - pixels.clamp(0, 1)).abs().flatten(1).sum(1)
            return torch.stack([torch.full_like(beyond, 1e-6), beyond], 1)

    arena, _ = arena_of(Overshoot(), image_set(10))
    assert judge(arena, "train", noise(0, scale=3), target=None).outcome.fooling.hits == 0


def test_on_real_images_of_the_retina(real_data: Path) -> None:
    images = load_images(str(real_data / "oct_224_sample.parquet"), split="test", size=(32, 32))
    victim = SmallCNN(classes=4)
    victim.size = images.size

    def run(rule: str) -> Found:
        arena, pool = arena_of(victim, images)
        found = find(arena, Threat(zeta=0.04), Search(rule=rule, budget=Budget(max_epochs=1)), seed=0)
        assert found.image_gradients == pool.image_gradients
        return found

    searched, again, drawn = run("spgd"), run("spgd"), run("random")
    assert torch.equal(searched.perturbation, again.perturbation)
    assert 0 < searched.xi == drawn.xi <= 0.04
    assert length(searched.perturbation, p=math.inf) <= searched.xi * (1 + 1e-6)


@given(known=st.integers(2, 200), seed=st.integers(0, 9), data=st.data())
def test_fewer_source_images_are_among_more(known: int, seed: int, data: st.DataObject) -> None:
    fewer, more = sorted(data.draw(st.lists(st.integers(2, known), min_size=2, max_size=2)))
    chosen = [chosen_images(known, wanted, seed) for wanted in (fewer, more)]
    assert [len(one) for one in chosen] == [fewer, more]
    assert set(chosen[0]) <= set(chosen[1]) <= set(range(known))
    assert all((np.diff(one) > 0).all() for one in chosen)
    assert np.array_equal(chosen_images(known, None, seed), np.arange(known))
    with pytest.raises(ConfigError, match=f"at most {known}"):
        chosen_images(known, known + 1, seed)
