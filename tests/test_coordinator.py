import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from victims import CountingPool, SmallCNN, TwoClass, decks_of, grey_levels, pool_of, targeted_victim, two_class

from uapray.attack.objective import Objective
from uapray.attack.projection import extend, length, order
from uapray.attack.rules import Rule, sga, spgd
from uapray.config import Budget, Search
from uapray.coordinator import Snapshot, Task, legs_of, search
from uapray.pace import pace_of
from uapray.panel import Member, rate
from uapray.rounds import Rounds

SHAPE = (1, 8, 7)
RULES = ("spgd", "sga")


def rule_of(name: str, p: float, xi: float) -> Rule:
    if name == "sga":
        return sga(p=p, xi=xi, step_size=0.4, step_decay=0.6, inner_rounds=2)
    return spgd(p=p, xi=xi, step_size=0.8, step_decay=0.6)


def task_of(
    module: nn.Module,
    pool: CountingPool,
    count: int,
    *,
    norm: str = "linf",
    xi: float = 0.05,
    held: int | None = None,
    target: int | None = None,
    classes: int = 3,
    seed: int = 0,
    screened: int = 0,
) -> Task:
    source, validation = decks_of(module, pool, count, count // 4 if held is None else held)
    return Task(order(norm), xi, Objective(target), SHAPE, classes, (Member(pool, source, validation),), seed, screened)


def walked(task: Task, settings: Search) -> Iterator[Snapshot]:
    return search(Rounds(rule_of(settings.rule, task.p, task.xi), task, settings), task, settings)


def last(task: Task, settings: Search) -> Snapshot:
    *_, snapshot = walked(task, settings)
    return snapshot


def settings_of(rule: str, *, size: int = 8, **changes: object) -> Search:
    pace = {"batch_size": size, "round_size": size, "screen_rounds": 3, "measures_per_epoch": 2}
    return Search.model_validate({"rule": rule, **pace, "starts": 4, "budget": Budget(max_epochs=4), **changes})


# Known answers


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", RULES)
def test_of_a_linear_victim_the_best_perturbation_is_found(rule: str, norm: str, share: float) -> None:
    images = grey_levels(80)
    victim, xi = two_class(images, share=share), 0.02 if norm == "linf" else 0.1
    up, down = victim.fooled(images[60:], norm, xi)
    assert up != down
    pool = pool_of(victim.module, {"train": images})
    task = task_of(victim.module, pool, 80, norm=norm, xi=xi, held=20, classes=2)
    found = last(task, settings_of(rule))
    best = victim.best(norm, xi) * (1 if up > down else -1)
    assert found.best_rate == max(up, down) / 20
    torch.testing.assert_close(found.best, best, rtol=0, atol=1e-6 * xi)


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", RULES)
def test_of_a_linear_victim_the_best_way_to_a_target_is_found(rule: str, norm: str, target: int) -> None:
    images = grey_levels(80)
    victim, towards = targeted_victim(images, target, norm)
    xi = 0.01 if norm == "linf" else 0.06
    pool = pool_of(victim, {"train": images})
    task = task_of(victim, pool, 80, norm=norm, xi=xi, held=20, target=target)
    found = last(task, settings_of(rule))
    torch.testing.assert_close(found.best, xi * towards, rtol=0, atol=1e-6 * xi)
    pixels = torch.from_numpy(images[60:]).permute(0, 3, 1, 2).double() / 255
    reached = victim.double()(pixels + xi * towards.double()).argmax(1) == target
    assert found.best_rate == float(reached.double().mean())
    assert 0.2 < found.best_rate < 1, "the victim should be neither won nor lost beforehand"


@pytest.mark.parametrize("rule", RULES)
def test_a_victim_so_sure_that_its_gradients_vanish_is_beaten_by_the_directed_starts(rule: str) -> None:
    images = grey_levels(80)
    plain = two_class(images, share=0.3)
    sure = TwoClass(plain.w * 3000, plain.b * 3000)
    pool = pool_of(sure.module, {"train": images})
    found = last(task_of(sure.module, pool, 80, xi=0.02, held=20, classes=2), settings_of(rule))
    assert found.best_rate == max(plain.fooled(images[60:], "linf", 0.02)) / 20


def test_rates_of_predictions() -> None:
    said, clean = np.array([0, 1, 2, 2]), np.array([0, 0, 2, 1])
    assert rate(said, clean, Objective()) == 0.5
    assert rate(said, clean, Objective(2)) == 0.5
    assert rate(said, clean, Objective(0)) == 0.25


# Where it begins


@given(
    starts=st.integers(1, 7),
    target=st.sampled_from([None, 0, 2]),
    norm=st.sampled_from(["linf", "l2"]),
    seed=st.integers(0, 50),
)
def test_starts_aim_at_rare_classes_first_and_lie_in_the_ball(
    starts: int, target: int | None, norm: str, seed: int
) -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    task = task_of(CNN, pool, len(IMAGES), norm=norm, target=target, seed=seed)
    walk = Rounds(rule_of("spgd", task.p, task.xi), task, Search(starts=starts))
    made, again = walk.begin(), walk.begin()
    count = min(starts, 4) if target is None else 1  # one a class and one that aims nowhere
    assert [start.index for start in made] == list(range(count))
    assert all(torch.equal(a.state.v, b.state.v) for a, b in zip(made, again, strict=True))
    aims = [start.aim for start in made]
    directed = [aim.target for aim in aims if aim != task.objective]
    if target is None:
        images = np.bincount(task.source.reference, minlength=3)
        assert len(directed) == count - 1
        assert directed == sorted(range(3), key=lambda label: images[label])[: len(directed)]
        assert aims[: len(directed)] == [Objective(label) for label in directed]
    else:
        assert directed == []
    assert not any(start.state.v.any() for start in made)
    drawn = [start.state.v for start in replace(walk, settings=Search(starts=starts, init="random")).begin()]
    assert all(0 < length(v, p=task.p) <= task.xi * (1 + 1e-6) for v in drawn)
    assert len({v.numpy().tobytes() for v in drawn}) == len(drawn)


# The same bits


CNN = SmallCNN(seed=5)
IMAGES = grey_levels(60, seed=8)


def bits(seed: int = 0, rule: str = "spgd", norm: str = "linf", target: int | None = None) -> torch.Tensor:
    pool = pool_of(CNN, {"train": IMAGES})
    return last(task_of(CNN, pool, 60, norm=norm, target=target, seed=seed), settings_of(rule)).best


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", RULES)
def test_equal_searches_give_equal_bits_whatever_goes_on_around_them(rule: str, norm: str, target: int | None) -> None:
    alone = bits(rule=rule, norm=norm, target=target)
    torch.set_num_threads(2)
    torch.manual_seed(99)
    np.random.seed(99)
    try:
        with ThreadPoolExecutor(3) as threads:
            others = [threads.submit(bits, rule=rule, norm=norm, target=target) for _ in range(3)]
            assert all(torch.equal(other.result(), alone) for other in others)
    finally:
        torch.set_num_threads(1)


def test_searches_that_share_a_pool_do_not_disturb_each_other() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    tasks = [task_of(CNN, pool, 60, seed=seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as threads:
        shared = list(threads.map(lambda task: last(task, settings_of("spgd")).best, tasks))
    assert all(torch.equal(best, bits(seed)) for seed, best in enumerate(shared))


@pytest.mark.parametrize("rule", RULES)
def test_another_seed_gives_another_perturbation(rule: str) -> None:
    assert not torch.equal(bits(0, rule), bits(1, rule))


def test_a_search_can_be_followed_step_by_step() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    task = task_of(CNN, pool, 60)
    settings = settings_of("spgd", starts=4, survivors=2, screen_rounds=3, measures_per_epoch=2)
    best, share, gradients, queries, seen = -1.0, 0.0, 0, 60, []
    kept = torch.zeros(SHAPE)
    for snapshot in walked(task, settings):
        assert snapshot.best_certainty >= best
        assert share < snapshot.share_done <= 1
        assert len(snapshot.measured) == (4 if snapshot.share_done < 0.3 else 2)
        for row in snapshot.measured:
            assert (row.image_gradients, row.image_queries) >= (gradients, queries)
            assert row.image_queries > queries
            gradients, queries = row.image_gradients, row.image_queries
            seen.append((row.certainty, row.fooling_rate))
            assert row.linf == pytest.approx(task.xi, rel=1e-6)
            assert row.linf < row.l2 <= task.xi * math.sqrt(56) * (1 + 1e-6)
            assert row.targeted_success_rate is None
        assert (snapshot.image_gradients, snapshot.image_queries) == (gradients, queries)
        assert (snapshot.best_certainty, snapshot.best_rate) == max(seen)
        assert len(snapshot.starts) == 2
        if snapshot.best_certainty == best:
            assert torch.equal(snapshot.best, kept)
        kept = snapshot.best
        best, share = snapshot.best_certainty, snapshot.share_done
    assert share == 1
    assert snapshot.measured[-1].epoch == settings.max_epochs


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", RULES)
def test_a_search_with_one_start_is_a_plain_loop(rule: str, norm: str) -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    task = task_of(CNN, pool, 60, norm=norm, seed=7)
    budget = {"max_epochs": 2}
    settings = Search.model_validate(
        {"rule": rule, "batch_size": 5, "round_size": 10, "starts": 1, "measures_per_epoch": 2, "budget": budget}
    )
    found = last(task, settings)
    asked = list(pool.gradients)

    played = rule_of(rule, task.p, task.xi)
    state, best, best_rate, certainty = played.start(torch.zeros(SHAPE)), torch.zeros(SHAPE), -1.0, -1.0
    pool.gradients.clear()
    for number in range(8):  # 45 images are nine batches, which are four rounds of two
        batches = task.source.shuffled(batch_size=5, seed=7000, epoch=number // 4)
        within = batches[number % 4 * 2 :][:2]
        state = played.step(state, pool.gradient(state.point, within, Objective()), number / 4)
        if number % 2:
            candidate = extend(state.v, p=task.p, xi=task.xi)
            logits, clean = (
                pool.logits(candidate, task.members[0].validation.in_turn()),
                task.members[0].validation.reference,
            )
            sure = Objective().certainty(torch.from_numpy(logits), torch.from_numpy(clean))
            if sure > certainty and state.v.any():
                best, best_rate, certainty = candidate, float(np.mean(logits.argmax(1) != clean)), sure
    assert asked == pool.gradients
    assert torch.equal(found.starts[0].state.v, state.v)
    assert torch.equal(found.best, best)
    assert found.best_rate == best_rate > 0


def test_starts_aim_at_classes_while_they_are_screened_and_nowhere_afterwards() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    task = task_of(CNN, pool, 60)
    settings = settings_of("spgd", starts=5, survivors=2, screen_rounds=3, measures_per_epoch=2)
    legs = walked(task, settings)
    next(legs)
    assert set(pool.objectives) == {Objective(), *(Objective(label) for label in range(3))}
    count = len(pool.objectives)
    next(legs)
    assert set(pool.objectives[count:]) == {Objective()}


def test_the_best_starts_survive_in_their_order() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    settings = settings_of("spgd", starts=5, survivors=2, measures_per_epoch=1, screen_rounds=6)
    first, second, *_ = walked(task_of(CNN, pool, 60), settings)
    ranked = sorted(first.measured, key=lambda row: (-row.certainty, row.start))
    assert [row.start for row in second.measured] == sorted(row.start for row in ranked[:2])


@given(seed=st.integers(0, 99), screened=st.sampled_from([1, 20, 45, 99]), survivors=st.integers(1, 3))
def test_heats_of_rates_are_won_by_the_rate_on_validation_and_source_images(
    seed: int, screened: int, survivors: int
) -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    settings = settings_of("spgd", survivors=survivors, screen_rounds=8)
    task = task_of(CNN, pool, 60, xi=0.2, seed=seed, screened=screened)
    first, second, *_ = walked(task, settings)
    walk = Rounds(rule_of("spgd", task.p, task.xi), task, settings)
    (member,) = task.members
    decks = (member.validation, member.source.spread(screened))
    assert len(decks[1]) == min(screened, 45)

    def hits(v: torch.Tensor) -> int:
        return sum(int((pool.logits(v, deck.in_turn()).argmax(1) != deck.reference).sum()) for deck in decks)

    starts = [walk.advance(start, 2, start.aim) for start in walk.begin()]
    ranked = sorted(starts, key=lambda start: (-hits(walk.candidate(start)), start.index))
    assert [start.index for start in first.starts] == sorted(start.index for start in ranked[:survivors])
    assert max(row.certainty for row in second.measured) == second.best_certainty, "a heat's best gives way"


def test_what_a_comparison_asks_is_counted_and_without_it_none_is_asked() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    settings = settings_of("spgd", survivors=2, screen_rounds=8)
    first = next(walked(task_of(CNN, pool, 60, screened=20), settings))
    assert pool.image_queries == first.image_queries - 60
    plain = next(walked(task_of(CNN, pool, 60), settings))
    assert first.image_queries == plain.image_queries + 4 * 20
    assert torch.equal(first.best, plain.best)


def test_a_targeted_search_reports_both_rates() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    task = task_of(CNN, pool, 60, target=2)
    found = last(task, settings_of("spgd"))
    said = pool.logits(found.best, task.members[0].validation.in_turn()).argmax(1)
    assert found.best_rate == float(np.mean(said == 2))
    for row in found.measured:
        assert row.targeted_success_rate is not None
        assert row.targeted_success_rate <= found.best_rate


# Budgets


@given(st.data())
def test_no_budget_is_exceeded_and_every_count_is_true(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 50), label="images")
    held = data.draw(st.integers(1, count - 1), label="held out")
    size = data.draw(st.integers(1, 20), label="batch size")
    starts = data.draw(st.integers(1, 5), label="starts")
    budget = Budget(
        max_epochs=data.draw(st.floats(0.05, 2), label="max epochs"),
        max_image_gradients=data.draw(st.none() | st.integers(1, 300), label="max image gradients"),
        max_image_queries=data.draw(st.none() | st.integers(1, 400), label="max image queries"),
    )
    settings = Search(
        rule=data.draw(st.sampled_from(RULES)),
        batch_size=size,
        round_size=size * data.draw(st.integers(1, 3), label="batches a round"),
        starts=starts,
        survivors=data.draw(st.integers(1, 5), label="survivors"),
        screen_rounds=data.draw(st.integers(1, 9), label="screen rounds"),
        measures_per_epoch=data.draw(st.integers(1, 4), label="measures an epoch"),
        budget=budget,
    )
    module = two_class(IMAGES, share=0.5).module
    pool = pool_of(module, {"train": IMAGES})
    screened = data.draw(st.sampled_from([0, 1, 7, 99]), label="screened")
    task = task_of(module, pool, count, held=held, classes=2, screened=screened)
    queries_before = count
    snapshots = list(walked(task, settings))

    spent = snapshots[-1].image_gradients if snapshots else 0
    asked = snapshots[-1].image_queries if snapshots else queries_before
    assert spent == pool.image_gradients <= (budget.max_image_gradients or math.inf)
    assert asked == queries_before + pool.image_queries
    assert not snapshots or asked <= (budget.max_image_queries or math.inf)
    # A pass leaves out what does not fill a round; one more round is begun for a broken share of a pass.
    source = count - held
    in_a_round = min(size, source) * min(max(1, settings.round_size // min(size, source)), source // min(size, source))
    in_a_pass = source // in_a_round * in_a_round
    for snapshot in snapshots:
        for row in snapshot.measured:
            assert row.round * in_a_round < budget.max_epochs * in_a_pass + in_a_round
            assert row.epoch == pytest.approx(row.round * in_a_round / in_a_pass)
    history = [row for snapshot in snapshots for row in snapshot.measured]
    for earlier, later in pairwise(history):
        assert later.image_gradients >= earlier.image_gradients
        assert later.image_queries > earlier.image_queries


def test_a_budget_that_is_not_in_the_way_changes_no_bit() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    free = last(task_of(CNN, pool, 60), settings_of("spgd"))
    wide = Budget(max_image_gradients=free.image_gradients, max_image_queries=free.image_queries, stop_rate=1)
    held = last(task_of(CNN, pool, 60), settings_of("spgd", budget=wide))
    assert torch.equal(held.best, free.best)
    assert held.image_gradients == free.image_gradients


def test_a_stop_rate_stops() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    free = list(walked(task_of(CNN, pool, 60, xi=0.3), settings_of("spgd")))
    assert free[0].best_rate > 0.2
    budget = Budget(stop_rate=free[0].best_rate)
    task = task_of(CNN, pool, 60, xi=0.3)
    (only,) = walked(task, settings_of("spgd", budget=budget))
    assert torch.equal(only.best, free[0].best)


def test_time_stops() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    settings = settings_of("spgd", budget=Budget(max_seconds=1e-6))
    assert len(list(walked(task_of(CNN, pool, 60), settings))) == 1


@pytest.mark.parametrize(("passes", "rounds"), [(0.25, 1), (0.5, 2), (1, 4), (1.5, 6), (2, 8)])
def test_passes_are_kept_to_the_round(passes: float, rounds: int) -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    settings = settings_of("spgd", starts=1, budget=Budget(max_epochs=passes))
    found = last(task_of(CNN, pool, 40, held=8), settings)
    assert found.measured[-1].round == rounds
    assert found.image_gradients == rounds * 8


def test_passes_that_are_whole_rounds_but_for_rounding_are_not_rounded_up() -> None:
    """0.07 of a hundred rounds are 7.000000000000001 in floating point."""
    images = grey_levels(101)
    module = two_class(images, share=0.5).module
    pool = pool_of(module, {"train": images})
    settings = settings_of("spgd", size=1, starts=1, budget=Budget(max_epochs=0.07))
    assert last(task_of(module, pool, 101, held=1, classes=2), settings).measured[-1].round == 7


def test_images_used_are_those_that_gradients_were_taken_of() -> None:
    images = grey_levels(27)
    module = two_class(images, share=0.5).module
    pool = pool_of(module, {"train": images})
    settings = settings_of("spgd", size=8, starts=1, measures_per_epoch=1, budget=Budget(max_epochs=3))
    task = task_of(module, pool, 27, held=4, classes=2)
    for snapshot in walked(task, settings):
        distinct = {row for batch in pool.gradients for row in batch}
        assert snapshot.measured[0].images_used == len(distinct)


@pytest.mark.parametrize(("count", "held", "size"), [(2, 1, 16), (3, 1, 16), (3, 2, 1), (6, 1, 4), (17, 1, 16)])
@pytest.mark.parametrize("rule", RULES)
def test_few_images_are_enough(rule: str, count: int, held: int, size: int) -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    found = last(task_of(CNN, pool, count, held=held), settings_of(rule, size=size))
    assert found.image_gradients == pool.image_gradients > 0
    assert found.best.isfinite().all()


# Legs


@given(
    images=st.integers(1, 300),
    starts=st.integers(1, 9),
    survivors=st.integers(1, 4),
    screen=st.integers(1, 8),
    passes=st.floats(0.05, 6),
)
def test_legs_lead_to_the_last_round_and_each_heat_is_won_by_a_quarter(
    images: int, starts: int, survivors: int, screen: int, passes: float
) -> None:
    settings = settings_of("spgd", screen_rounds=screen, survivors=survivors, budget=Budget(max_epochs=passes))
    pace = pace_of(images, settings)
    legs = list(legs_of(pace, settings, starts))
    assert [leg.until for leg in legs] == list(np.cumsum([leg.rounds for leg in legs]))
    assert legs[-1].until == math.ceil(passes * pace.rounds_an_epoch - 1e-9)
    assert legs[0].starts == starts
    assert all(later.starts == earlier.survivors for earlier, later in pairwise(legs))
    heats = [leg for leg in legs if leg.heat]
    assert legs[: len(heats)] == heats
    assert all(leg.survivors == max(survivors, math.ceil(leg.starts / 4)) < leg.starts for leg in heats)
    assert all(leg.rounds == max(2, screen // leg.starts) for leg in heats[:-1])
    assert legs[-1].heat or legs[-1].starts == min(starts, max(survivors, legs[-1].starts))


@given(
    images=st.integers(1, 300),
    batch=st.integers(1, 40),
    batches=st.integers(1, 3),
    gradients=st.integers(1, 4000),
    least=st.integers(1, 500),
    halved=st.booleans(),
)
def test_few_image_gradients_make_the_least_rounds(
    images: int, batch: int, batches: int, gradients: int, least: int, halved: bool
) -> None:
    """Rounds are as large as without a least number, or so small that there are as many, or of one image a batch."""
    budget = Budget(max_image_gradients=gradients)
    settings = settings_of("spgd", batch_size=batch, round_size=batch * batches, budget=budget)
    usual, pace = (pace_of(images, settings, halved=halved, least_rounds=each) for each in (0, least))
    assert pace.batches_a_round == usual.batches_a_round
    assert pace.batch_size == usual.batch_size or gradients // pace.round_size >= least or pace.batch_size == 1
    assert pace.batch_size <= usual.batch_size
    assert pace.rounds_an_epoch >= usual.rounds_an_epoch
    unlimited = settings_of("spgd", batch_size=batch, round_size=batch * batches)
    assert pace_of(images, unlimited, halved=halved, least_rounds=least) == usual


def test_a_limit_that_is_named_takes_the_place_of_the_passes() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    task = task_of(CNN, pool, 60)
    gradients = last(task, settings_of("spgd", starts=1, budget=Budget(max_image_gradients=3000))).image_gradients
    assert 3000 - 8 < gradients <= 3000
    queries = last(task, settings_of("spgd", starts=1, budget=Budget(max_image_queries=1000))).image_queries
    assert 1000 - 15 < queries <= 1000
    *_, timed = walked(task, settings_of("spgd", starts=1, budget=Budget(max_seconds=0.2)))
    assert timed.measured[-1].epoch > 0
    usual = settings_of("spgd", starts=1, budget=Budget(stop_rate=1.0))
    assert last(task, usual).measured[-1].epoch <= usual.max_epochs


# Several classifiers


def test_of_several_classifiers_each_has_its_voice() -> None:
    """Two linear victims: with all the weight on one of them its own best perturbation is found."""
    images = grey_levels(80)
    victims = [two_class(images, share=0.4, seed=seed) for seed in (1, 2)]
    pools = [pool_of(victim.module, {"train": images}) for victim in victims]
    for weights in ((1.0, 1e-6), (1e-6, 1.0)):
        members = tuple(
            Member(pool, *decks_of(victim.module, pool, 80, 20), weight)
            for victim, pool, weight in zip(victims, pools, weights, strict=True)
        )
        task = Task(math.inf, 0.02, Objective(0), SHAPE, 2, members, 0)
        found = last(task, settings_of("spgd"))
        alone = victims[weights.index(1.0)].best("linf", 0.02)
        torch.testing.assert_close(found.best, -alone, rtol=0, atol=1e-8)
        assert found.image_gradients == sum(pool.image_gradients for pool in pools)
        for pool in pools:
            pool.gradients.clear()
    assert {tuple(batch) for batch in pools[0].gradients} == {tuple(batch) for batch in pools[1].gradients}


# Which images are asked


@given(seed=st.integers(0, 20), target=st.sampled_from([None, 0, 1]), size=st.integers(1, 12))
def test_of_two_classes_those_of_the_aim_are_left_out_and_the_others_asked_in_turn(
    seed: int, target: int | None, size: int
) -> None:
    victim = two_class(IMAGES, share=0.4)
    pool = pool_of(victim.module, {"train": IMAGES})
    task = task_of(victim.module, pool, len(IMAGES), target=target, classes=2, seed=seed)
    settings = settings_of("aimed-ascent", size=size, screen_rounds=2)
    for snapshot in walked(task, settings):
        walked_by = snapshot.starts[0].rounds
    assert snapshot.image_gradients == pool.image_gradients
    (winner,) = snapshot.starts
    aim = winner.aim.target
    walk = Rounds(rule_of("spgd", task.p, task.xi), task, settings)
    asked = np.concatenate(list(walk._asked(winner, 0, walked_by)))
    others = np.flatnonzero(task.source.reference != aim)
    half = max(1, min(size, len(task.source)) // 2)
    assert len(asked) == walked_by * half
    assert set(asked) <= set(others)
    lap = len(others) // half * half
    for first in range(0, len(asked) - lap + 1, lap):
        assert len(set(asked[first : first + lap])) == lap, "each once before any a second time"
    assert walk.images_seen(winner) == len(set(asked))


def test_nothing_is_left_out_of_many_classes_without_an_aim_or_where_too_few_would_be_left() -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    task, settings = task_of(CNN, pool, len(IMAGES), target=1), settings_of("aimed-ascent")
    assert not Rounds(rule_of("spgd", task.p, task.xi), task, settings).leaves_out
    victim = two_class(IMAGES, share=0.4)
    two = task_of(victim.module, pool_of(victim.module, {"train": IMAGES}), len(IMAGES), classes=2)
    for changes in ({"starts": 1}, {"leave_out": False}):
        other = Search.model_validate({**settings.model_dump(), **changes})
        assert not Rounds(rule_of("spgd", two.p, two.xi), two, other).leaves_out
    (member,) = two.members
    one_sided = replace(member, source=replace(member.source, reference=np.zeros_like(member.source.reference)))
    lost = replace(two, members=(one_sided,))
    walk = Rounds(rule_of("spgd", lost.p, lost.xi), lost, settings)
    assert walk.leaves_out
    rarest = walk.begin()[0]
    assert rarest.aim.target == 1
    for start, images in zip(walk.begin(), (len(two.source), len(two.source)), strict=True):
        lap = images // walk.pace.round_size
        assert len(set(np.concatenate(list(walk._asked(start, 0, lap))))) == lap * walk.pace.round_size


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_leading_direction_is_that_of_the_singular_value_decomposition(norm: str) -> None:
    pool = pool_of(CNN, {"train": IMAGES})
    task = task_of(CNN, pool, 60, norm=norm)
    settings = settings_of("spgd", size=1, starts=1, init="gradient")
    walk = Rounds(rule_of("spgd", task.p, task.xi), task, settings)
    (begun,) = walk.begin()
    rounds = walk.pace.rounds_a_leg // 3
    assert begun.image_gradients == 3 * rounds == pool.image_gradients
    batches = task.source.shuffled(batch_size=1, seed=0, epoch=0)[:rounds]
    each = torch.stack([pool.gradient(torch.zeros(SHAPE), [batch], Objective()).total.flatten() for batch in batches])
    leading = torch.linalg.svd(each, full_matrices=False).Vh[0]
    reached = begun.state.v.double().flatten()
    best = leading.sign() if norm == "linf" else leading
    assert abs(float(reached @ best)) > 0.9 * float(reached.norm() * best.norm())
    assert length(begun.state.v, p=task.p) == pytest.approx(task.xi, rel=1e-5)
