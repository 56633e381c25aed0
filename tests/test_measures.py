import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from victims import HEIGHT, WIDTH, grey_levels, noise

from uapray.measures import Outcome, Paired, Rate, Visibility, likeness, p_value, paired, spread
from uapray.measures import visibility as over_images

CLASSES = 4


def visibility(images: NDArray[np.uint8], v: torch.Tensor) -> Visibility:
    clean = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    return over_images(likeness(clean, (clean + v).clamp(0, 1)).numpy())


def wilson(hits: int, images: int) -> tuple[float, float]:
    """Return the interval by its formula (Wilson 1927), z the 97.5 % point of the normal distribution."""
    z, share = 1.959963984540054, hits / images
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    return middle - half, middle + half


counts = st.integers(1, 5000).flatmap(lambda images: st.tuples(st.integers(0, images), st.just(images)))


@given(counts)
def test_interval_is_wilsons(count: tuple[int, int]) -> None:
    rate = Rate(*count)
    low, high = rate.interval
    assert (low, high) == pytest.approx(wilson(*count), abs=1e-9)
    assert -1e-12 <= low <= rate.share <= high + 1e-12 <= 1 + 2e-12


def test_intervals_known_by_heart() -> None:
    assert Rate(432, 540).interval == pytest.approx((0.7642, 0.8315), abs=1e-4)
    assert Rate(0, 10).interval == pytest.approx((0, 0.2775), abs=1e-4)
    assert Rate(10, 10).interval == pytest.approx((0.7225, 1), abs=1e-4)


def test_no_images_say_nothing() -> None:
    assert math.isnan(Rate(0, 0).share)
    assert Rate(0, 0).interval == (0, 1)


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    count = draw(st.integers(1, 40))
    classes = st.lists(st.integers(0, CLASSES - 1), min_size=count, max_size=count)
    labels, clean, perturbed = (np.array(draw(classes), dtype=np.int64) for _ in range(3))
    return Outcome(labels, clean, perturbed, CLASSES)


@given(outcomes())
def test_rates_count_what_they_say(outcome: Outcome) -> None:
    triples = list(zip(outcome.labels.tolist(), outcome.clean.tolist(), outcome.perturbed.tolist(), strict=True))
    assert outcome.images == len(triples)
    assert outcome.clean_accuracy == pytest.approx(sum(y == c for y, c, _ in triples) / len(triples))
    assert outcome.robust_accuracy == pytest.approx(sum(y == p for y, _, p in triples) / len(triples))
    assert outcome.fooling == Rate(sum(c != p for _, c, p in triples), len(triples))
    for target in range(CLASSES):
        assert outcome.towards(target) == Rate(sum(p == target for _, _, p in triples), len(triples))
        asked = [p for _, c, p in triples if c != target]
        assert outcome.towards_non_target(target) == Rate(sum(p == target for p in asked), len(asked))


@given(outcomes())
def test_ceiling_is_what_sending_all_to_the_dominant_class_would_reach(outcome: Outcome) -> None:
    totals = Counter(outcome.perturbed.tolist())
    assert totals[outcome.dominant] == max(totals.values())
    assert outcome.dominant == min(label for label in totals if totals[label] == max(totals.values()))
    everybody = np.full_like(outcome.perturbed, outcome.dominant)
    sent = Outcome(outcome.labels, outcome.clean, everybody, CLASSES)
    assert sent.fooling.share == pytest.approx(outcome.ceiling)
    assert sent.ceiling == outcome.ceiling


def test_ceiling_of_two_balanced_classes_is_one_half() -> None:
    clean = np.array([0, 1] * 10)
    assert Outcome(clean, clean, np.ones(20, np.int64), 2).ceiling == 0.5


@given(outcomes())
def test_flows_add_up(outcome: Outcome) -> None:
    flows = outcome.flows()
    assert all(images > 0 for *_, images in flows)
    assert len({way[:3] for way in flows}) == len(flows)
    assert sum(images for *_, images in flows) == outcome.images
    assert sum(images for _, clean, perturbed, images in flows if clean != perturbed) == outcome.fooling.hits
    for label in range(CLASSES):
        assert sum(images for way, *_, images in flows if way == label) == (outcome.labels == label).sum()


@given(st.integers(0, 1000), st.integers(1, 6), st.sampled_from([1, 3]), st.sampled_from([0.001, 0.05, 0.5]))
def test_psnr_is_the_mean_over_images_after_clipping(seed: int, count: int, channels: int, scale: float) -> None:
    images = grey_levels(count, channels=channels, low=0, high=255, seed=seed)
    v = noise(seed, (channels, HEIGHT, WIDTH), scale)
    clean = images.transpose(0, 3, 1, 2) / 255
    error = np.clip(clean + v.numpy(), 0, 1) - clean
    expected = np.mean([-10 * math.log10(float((one**2).mean())) for one in error])
    assert visibility(images, v).psnr == pytest.approx(expected, abs=1e-3)


@given(st.integers(0, 1000), st.integers(1, 5), st.sampled_from([1, 3]))
def test_ssim_is_the_mean_over_images(seed: int, count: int, channels: int) -> None:
    images = grey_levels(count, channels=channels, seed=seed)
    v = noise(seed, (channels, HEIGHT, WIDTH), 0.05)
    each = [visibility(images[place : place + 1], v).ssim for place in range(count)]
    assert visibility(images, v).ssim == pytest.approx(np.mean(each), abs=1e-5)


@given(st.integers(0, 1000), st.sampled_from([1, 3]), st.sampled_from([0.003, 0.03, 0.3]), st.integers(7, 40))
def test_ssim_is_the_formula(seed: int, channels: int, scale: float, size: int) -> None:
    clean = torch.rand((2, channels, size, size + 1), generator=torch.Generator().manual_seed(seed))
    perturbed = (clean + noise(seed, (channels, size, size + 1), scale)).clamp(0, 1)
    width = min(11, size - 1 + size % 2)
    bell = torch.exp(-((torch.arange(width).double() - width // 2) ** 2) / (2 * 1.5**2))
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(values.double().flatten(0, 1)[:, None], window)

    at, there = mean(clean), mean(perturbed)
    spreads = mean(clean.double() ** 2) - at**2 + mean(perturbed.double() ** 2) - there**2
    together = mean(clean.double() * perturbed.double()) - at * there
    index = (2 * at * there + 0.01**2) * (2 * together + 0.03**2) / ((at**2 + there**2 + 0.01**2) * (spreads + 0.03**2))
    expected = index.mean((1, 2, 3)).reshape(2, channels).mean(1)
    assert likeness(clean, perturbed)[:, 1].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_one_grey_level_everywhere_is_48_decibels() -> None:
    found = visibility(grey_levels(3), torch.full((1, HEIGHT, WIDTH), 1 / 255))
    assert found.psnr == pytest.approx(20 * math.log10(255), abs=1e-3)
    assert 0.99 < found.ssim < 1


def test_nothing_changed_is_perfect_and_has_no_psnr() -> None:
    images = grey_levels(3)
    still = visibility(images, torch.zeros(1, HEIGHT, WIDTH))
    assert (still.psnr, still.ssim) == (None, 1.0)
    white = np.full_like(images, 255)
    assert visibility(white, torch.full((1, HEIGHT, WIDTH), 0.1)).psnr is None


@given(st.integers(0, 100), st.sampled_from([1, 3]))
def test_more_noise_is_less_alike(seed: int, channels: int) -> None:
    images = grey_levels(4, channels=channels, seed=seed)
    v = noise(seed, (channels, HEIGHT, WIDTH), 0.01)
    alike = [visibility(images, v * factor).ssim for factor in (1, 3, 9)]
    assert 1 > alike[0] > alike[1] > alike[2] > -1


def test_an_image_that_clipping_leaves_alone_does_not_hide_the_others() -> None:
    images = grey_levels(4)
    images[0] = 0
    found = visibility(images, torch.full((1, HEIGHT, WIDTH), -0.1))
    assert found.psnr is not None
    assert math.isfinite(found.psnr)


def test_p_values_known_by_heart() -> None:
    assert p_value(0.5, [0.1] * 19) == 0.05
    assert p_value(0.5, [0.1] * 18 + [0.5]) == 0.1, "a draw that does as well counts"
    assert p_value(0.0, [0.0] * 19) == 1
    assert p_value(0.5, []) == 1, "no draws say nothing"


@given(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=40))
def test_a_p_value_counts_the_draws_that_do_at_least_as_well(observed: float, draws: list[float]) -> None:
    ranked = sorted([observed, *draws], reverse=True)
    place = max(index for index, one in enumerate(ranked) if one == observed)
    assert p_value(observed, draws) == (place + 1) / (len(draws) + 1)


@pytest.mark.parametrize(
    ("counts", "difference", "interval"),
    [
        ((36, 12, 2, 0), 0.2, (0.0569, 0.3404)),  # Newcombe 1998, table II, method 10
        ((0, 54, 0, 0), 1.0, (0.9061, 1.0)),  # the same
        ((1, 1, 7, 12), -0.2857, (-0.5069, -0.0256)),  # Bentur et al. 2009, as in Fagerland et al. 2017, ch. 8
    ],
)
def test_paired_intervals_known_by_heart(
    counts: tuple[int, int, int, int], difference: float, interval: tuple[float, float]
) -> None:
    found = Paired(*counts)
    assert found.difference == pytest.approx(difference, abs=1e-4)
    assert found.interval == pytest.approx(interval, abs=1e-4)


def test_mcnemars_exact_test_known_by_heart() -> None:
    assert Paired(1, 1, 7, 12).p_value == pytest.approx(2 * (1 + 8) / 2**8)
    assert Paired(3, 0, 0, 4).p_value == 1
    assert Paired(0, 6, 0, 0).p_value == pytest.approx(2 / 2**6)


fooled = st.integers(1, 60).flatmap(lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n)] * 2))


@given(fooled)
def test_a_paired_comparison_counts_what_it_says_and_turns_with_its_sides(pair: tuple[list[bool], list[bool]]) -> None:
    first, second = map(np.array, pair)
    found, turned = paired(first, second), paired(second, first)
    assert (found.first.share, found.second.share) == pytest.approx((first.mean(), second.mean()))
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert found.first_only == int((first & ~second).sum())
    low, high = found.interval
    assert -1 <= low <= found.difference + 1e-12
    assert found.difference - 1e-12 <= high <= 1
    assert turned.interval == pytest.approx((-high, -low))
    assert turned.p_value == found.p_value
    assert 0 < found.p_value <= 1


def test_the_paired_interval_covers_the_truth() -> None:
    rng, missed = np.random.default_rng(0), 0
    shares = (0.3, 0.25, 0.1, 0.35)  # both, first only, second only, neither
    for counts in rng.multinomial(60, shares, size=400):
        low, high = Paired(*map(int, counts)).interval
        missed += not low <= 0.15 <= high
    assert missed / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@given(st.integers(1, 500), st.integers(1, 300))
def test_spread_places_are_different_and_reach_from_end_to_end(count: int, at_most: int) -> None:
    places = spread(count, at_most)
    assert len(places) == min(count, at_most)
    assert places[0] == 0
    assert places[-1] == (count - 1 if at_most > 1 else 0)
    assert (np.diff(places) >= 1).all()
    assert len(places) < 3 or np.ptp(np.diff(places)) <= 1
