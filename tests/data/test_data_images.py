import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from uapray.data.images import ImageSet, held_out, hold_out
from uapray.errors import DataError

quick = settings(deadline=None, max_examples=60)


def image_set(labels: list[int], groups: list[str | None]) -> ImageSet:
    n = len(labels)
    pixels = np.arange(n * 6, dtype=np.uint8).reshape(n, 2, 3, 1)
    ids = tuple(f"i{i}" for i in range(n))
    classes = ("A", "B", "C")
    return ImageSet(pixels, np.array(labels, dtype=np.int64), ids, tuple(groups), classes, "made", "train")


@st.composite
def labels_and_groups(draw, one_class_a_group: bool = False):
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=40))
    labels, groups = [], []
    for number, size in enumerate(sizes):
        known = size > 1 or draw(st.booleans())
        of_group = draw(st.integers(0, 2))
        for _ in range(size):
            labels.append(of_group if one_class_a_group else draw(st.integers(0, 2)))
            groups.append(f"p{number}" if known else None)
    return np.array(labels, dtype=np.int64), groups


shares = st.floats(0.02, 0.98)
seeds = st.integers(0, 2**32)


@quick
@given(labels_and_groups(), shares, seeds)
def test_every_image_is_in_exactly_one_part_and_no_group_in_both(made, share, seed):
    images = image_set(made[0].tolist(), made[1])
    kept, held = hold_out(images, share, seed)
    assert sorted(kept.ids + held.ids) == sorted(images.ids)
    assert len(kept)
    assert len(held)
    assert not (set(kept.groups) - {None}) & (set(held.groups) - {None})
    where = {name: place for place, name in enumerate(images.ids)}
    for part in (kept, held):
        places = [where[name] for name in part.ids]
        assert places == sorted(places)
        assert np.array_equal(part.images, images.images[places])
        assert np.array_equal(part.labels, images.labels[places])


@quick
@given(labels_and_groups(), shares, seeds)
def test_same_arguments_same_split(made, share, seed):
    assert np.array_equal(held_out(*made, share, seed), held_out(*made, share, seed))


@quick
@given(labels_and_groups(one_class_a_group=True), shares, seeds)
def test_share_of_each_class_is_kept_to_about_half_a_group(made, share, seed):
    labels, groups = made
    held = held_out(labels, groups, share, seed)
    classes, totals = np.unique(labels, return_counts=True)
    wanted = {c: share * t for c, t in zip(classes, totals, strict=True)}
    assume(sum(wanted.values()) > 5 and sum(totals) - sum(wanted.values()) > 5)  # else one group is forced over
    for c in classes:
        ofclass = [g for g, label in zip(groups, labels, strict=True) if label == c and g]
        largest = max((ofclass.count(g) for g in ofclass), default=1)
        assert abs(held[labels == c].sum() - wanted[c]) <= 0.7 * largest  # half of it, but for ties


@quick
@given(labels_and_groups(), shares, seeds)
def test_no_change_of_one_group_makes_the_classes_more_even(made, share, seed):
    labels, groups = made
    held = held_out(labels, groups, share, seed)
    assume(1 < held.sum() < len(labels) - 1)
    totals = np.bincount(labels, minlength=3)

    def distance(mask):
        off = np.bincount(labels[mask], minlength=3) - share * totals
        return (off[totals > 0] ** 2 / totals[totals > 0]).sum() + 0.1 * off.sum() ** 2 / len(labels)

    keys = [("own", i) if g is None else ("group", g) for i, g in enumerate(groups)]
    parts = [np.array([k == key for k in keys]) for key in set(keys)]
    changed = [held ^ part for part in parts]
    best = min((distance(m) for m in changed if m.any() and not m.all()), default=np.inf)
    # a forced group (share less than any group) is the one exception
    assert best >= distance(held) - 1e-6 or distance(np.zeros_like(held)) <= distance(held) + 1e-6


def test_large_groups_are_not_preferred():
    sizes = [1] * 60 + [4] * 15
    groups = [f"p{p}" for p, size in enumerate(sizes) for _ in range(size)]
    held = [held_out(np.zeros(120, np.int64), groups, 0.25, seed) for seed in range(40)]
    in_large = np.mean([mask[60:].sum() for mask in held])
    assert 11 < in_large < 19  # half of 30


def test_seeds_differ():
    labels = np.arange(60) % 3
    assert not np.array_equal(held_out(labels, [None] * 60, 0.3, 0), held_out(labels, [None] * 60, 0.3, 1))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_refuses_other_shares(share):
    with pytest.raises(DataError, match="share to hold out"):
        hold_out(image_set([0, 1], [None, None]), share, 0)


def test_refuses_one_patient():
    with pytest.raises(DataError, match="two or more patients"):
        hold_out(image_set([0, 1], ["p", "p"]), 0.5, 0)


def test_is_read_only_and_leaves_the_callers_array_alone():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    images = ImageSet(pixels, np.array([0, 1]), ("a", "b"), (None, None), ("A", "B"), "made", "train")
    with pytest.raises(ValueError, match="read-only"):
        images.images[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        images.labels[0] = 1
    pixels[0] = 1
    assert (images.channels, images.size, len(images)) == (3, (4, 4), 2)


def test_select_by_places_and_by_mask():
    images = image_set([0, 1, 2], ["p", None, "q"])
    chosen = images.select(np.array([2, 0]))
    assert (chosen.ids, chosen.groups, chosen.labels.tolist()) == (("i2", "i0"), ("q", "p"), [2, 0])
    assert images.select(np.array([False, True, False])).ids == ("i1",)
    assert len(images.select(np.array([], np.int64))) == 0


def test_pickles():
    images = image_set([0, 1], ["p", None])
    again = pickle.loads(pickle.dumps(images))
    assert np.array_equal(again.images, images.images)
    assert again.groups == images.groups


@pytest.mark.parametrize(
    ("pixels", "labels", "ids", "text"),
    [
        (np.zeros((2, 4, 4, 3)), [0, 1], ("a", "b"), "expected uint8"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], ("a", "b"), "expected uint8"),
        (np.zeros((2, 4, 4, 4), np.uint8), [0, 1], ("a", "b"), "expected uint8"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0], ("a", "b"), "one label"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0, 1], ("a",), "one label"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0, 2], ("a", "b"), "labels 0 to 1"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0, -1], ("a", "b"), "labels 0 to 1"),
    ],
)
def test_refuses_what_does_not_fit(pixels, labels, ids, text):
    with pytest.raises(DataError, match=text):
        ImageSet(pixels, np.array(labels), ids, (None, None), ("A", "B"), "made", "train")
