import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from victims import SmallCNN, grey_levels, noise, unit_pixels

from uapray.attack.objective import Objective
from uapray.attack.partial import PartialUpdate, add_in_order
from uapray.pool import FORWARD_BATCH_SIZE, Deck, LocalPool, in_turn
from uapray.replica import Batch, Replica

IMAGES = 40
POOL = LocalPool(Replica(SmallCNN(), {"train": grey_levels(IMAGES, seed=3)}))


def some_batches(seed: int, count: int, size: int) -> list[Batch]:
    rng = np.random.default_rng(seed)
    return [Batch("train", rng.choice(IMAGES, size, replace=False), rng.integers(0, 3, size)) for _ in range(count)]


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 9), st.integers(1, 6))
def test_how_batches_are_dealt_to_calls_changes_no_bit(seed: int, count: int, size: int, hand: int) -> None:
    v, batches = noise(seed, scale=0.05), some_batches(seed, count, size)
    together = POOL.gradient(v, batches, Objective())
    one_by_one = [POOL.gradient(v, [batch], Objective()) for batch in reversed(batches)][::-1]
    assert torch.equal(add_in_order(one_by_one).total, together.total)
    assert together.count == count * size

    replica = Replica(SmallCNN(), {"train": grey_levels(IMAGES, seed=3)})
    hands: list[PartialUpdate] = []
    for first in range(0, count, hand):
        hands.extend(replica.gradient(v.numpy(), batches[first : first + hand], Objective()))
    assert torch.equal(add_in_order(hands).total, together.total)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_predictions_come_in_the_order_of_the_batches(seed: int, count: int) -> None:
    v, batches = noise(seed, scale=0.05), some_batches(seed, count, 5)
    rows = np.concatenate([batch.indices for batch in batches])
    images = grey_levels(IMAGES, seed=3)
    expected = SmallCNN()((unit_pixels(images[rows]) + v).clamp(0, 1)).argmax(1)
    assert POOL.logits(v, batches).argmax(1).tolist() == expected.tolist()


def test_threads_may_share_a_pool() -> None:
    requests = [(noise(seed, scale=0.05), some_batches(seed, 3, 8), Objective(seed % 3)) for seed in range(24)]
    serial = [(POOL.gradient(*request).total, POOL.logits(*request[:2]).argmax(1)) for request in requests]
    with ThreadPoolExecutor(4) as threads:
        gradients = threads.map(lambda request: POOL.gradient(*request).total, requests)
        predictions = threads.map(lambda request: POOL.logits(*request[:2]).argmax(1), requests)
        for (gradient, classes), shared, said in zip(serial, gradients, predictions, strict=True):
            assert torch.equal(gradient, shared)
            assert np.array_equal(classes, said)


def deck(count: int) -> Deck:
    """Return a deck whose reference tells the row: rows are spread out, the reference is their half."""
    rows = np.arange(count) * 2 + 1
    return Deck("train", rows, rows // 2)


@given(st.integers(1, 200))
def test_a_visit_in_turn_sees_each_image_once_in_order(count: int) -> None:
    batches = deck(count).in_turn()
    assert np.concatenate([batch.indices for batch in batches]).tolist() == deck(count).rows.tolist()
    assert {len(batch.indices) for batch in batches[:-1]} <= {FORWARD_BATCH_SIZE}
    assert 0 < len(batches[-1].indices) <= FORWARD_BATCH_SIZE
    assert {batch.deck for batch in batches} == {"train"}
    assert len(in_turn("x", np.arange(count))) == len(batches)


@given(st.integers(1, 100), st.integers(1, 40), st.integers(0, 10**6), st.integers(0, 20))
def test_a_shuffled_pass_sees_no_image_twice_in_batches_of_one_size(
    count: int, size: int, seed: int, epoch: int
) -> None:
    batches = deck(count).shuffled(batch_size=size, seed=seed, epoch=epoch)
    rows = np.concatenate([batch.indices for batch in batches])
    assert {len(batch.indices) for batch in batches} == {min(size, count)}
    assert len(rows) == len(set(rows.tolist())) > count - size
    assert set(rows.tolist()) <= set(deck(count).rows.tolist())
    for batch in batches:
        assert batch.reference is not None
        assert (batch.reference == batch.indices // 2).all()


@given(st.integers(0, 10**6), st.integers(0, 20))
def test_the_order_of_a_pass_follows_from_seed_and_epoch_alone(seed: int, epoch: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = deck(30).shuffled(batch_size=7, seed=seed, epoch=epoch)
        return [int(row) for batch in batches for row in batch.indices]

    first = order(seed, epoch)
    np.random.default_rng(0).random(5)
    assert order(seed, epoch) == first
    assert order(seed, epoch + 1) != first
    assert order(seed + 1, epoch) != first


@given(known=st.integers(1, 50), wanted=st.integers(1, 60))
def test_a_spread_of_images_is_even_and_no_more_than_was_asked_for(known: int, wanted: int) -> None:
    deck = Deck("train", np.arange(known) * 3, np.arange(known) * 5)
    spread = deck.spread(wanted)
    assert len(spread) == min(known, wanted)
    assert np.array_equal(spread.reference * 3, spread.rows * 5)
    assert spread.rows[0] == 0
    if len(spread) > 1:
        assert spread.rows[-1] == deck.rows[-1]
        assert np.ptp(np.diff(spread.rows)) <= 3


def test_the_order_of_a_pass_is_the_same_on_every_machine() -> None:
    batches = deck(50).shuffled(batch_size=10, seed=7, epoch=3)
    text = ",".join(str(row) for batch in batches for row in batch.indices)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "d28c5ef30030667f"


def test_over_the_passes_every_image_is_seen() -> None:
    seen: set[int] = set()
    for epoch in range(12):
        seen.update(int(row) for batch in deck(23).shuffled(batch_size=8, seed=0, epoch=epoch) for row in batch.indices)
    assert len(seen) == 23


@given(st.integers(0, 1000), st.booleans())
def test_a_sum_travels_with_all_its_bits_and_may_be_written_to(seed: int, read_only: bool) -> None:
    sent = PartialUpdate(noise(seed).double() / 3, seed)
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(sent, protocol=5, buffer_callback=buffers.append)
    assert sum(buffer.raw().nbytes for buffer in buffers) == sent.total.nbytes, "it is not copied into the message"
    there = [buffer.raw().tobytes() if read_only else bytearray(buffer.raw()) for buffer in buffers]
    came = pickle.loads(body, buffers=there)
    assert torch.equal(came.total, sent.total)
    assert (came.count, came.total.dtype) == (seed, torch.float64)
    came.total.zero_()
    assert bytes(there[0]) == sent.total.numpy().tobytes(), "what others read is as it was"
