import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from uapray.models.sampling import balanced, seeded, shuffled

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda found: np.array(found, dtype=np.int64))


@settings(deadline=None)
@given(labels, st.integers(0, 9), st.integers(0, 9))
def test_balanced_draws_each_class_and_each_image_as_often_as_it_can(own: np.ndarray, seed: int, epoch: int) -> None:
    drawn = balanced(own, seed=seed, epoch=epoch)
    assert len(drawn) == len(own)
    by_class = np.array([(own[drawn] == label).sum() for label in np.unique(own)])
    assert by_class.max() - by_class.min() <= 1
    for label in np.unique(own):
        times = np.bincount(drawn, minlength=len(own))[own == label]
        assert times.max() - times.min() <= 1


@settings(deadline=None)
@given(labels, st.integers(0, 9))
def test_shuffled_takes_every_image_once(own: np.ndarray, epoch: int) -> None:
    assert sorted(shuffled(own, seed=0, epoch=epoch)) == list(range(len(own)))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    own = np.arange(40) % 3
    for draw in (balanced, shuffled):
        first = draw(own, seed=1, epoch=2)
        assert (draw(own, seed=1, epoch=2) == first).all()
        assert (draw(own, seed=1, epoch=3) != first).any()
        assert (draw(own, seed=2, epoch=2) != first).any()


def test_generators_of_other_parts_differ() -> None:
    seeds = {seeded(*parts).initial_seed() for parts in [(1, 2), (12,), (1, 2, "a"), (1, 2, "b"), (2, 1)]}
    assert len(seeds) == 5
