"""The number of threads that torch has in the coordinator's process changes no bit, and is as it was afterwards."""

import threading
from collections.abc import Iterator

import pytest
import torch

from uapray.attack.partial import PartialUpdate
from uapray.attack.rules import spgd
from uapray.steady import one_thread


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def moved(threads: int) -> torch.Tensor:
    """Return what a rule remembers after steps whose sums are longer than one thread would take."""
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    rule = spgd(p=2, xi=1.0, step_size=0.5, step_decay=1.0, momentum=0.9)
    with one_thread():
        state = rule.start(torch.zeros(3, 299, 299))
        for _ in range(4):
            gradients = torch.randn(3, 299, 299, dtype=torch.float64, generator=draw)
            state = rule.step(state, PartialUpdate(gradients, 1), 0.0)
    assert torch.get_num_threads() == threads
    return state.memory


def test_steps_are_the_same_bits_with_any_number_of_threads() -> None:
    one = moved(1)
    for threads in (2, 3, 4):
        assert torch.equal(moved(threads), one)


def test_the_last_to_leave_puts_it_back() -> None:
    torch.set_num_threads(3)
    inside, leave, seen = threading.Barrier(3), threading.Event(), list[int]()

    def enter(patient: bool) -> None:
        with one_thread():
            inside.wait()
            if patient:
                leave.wait()
            seen.append(torch.get_num_threads())

    first, last = (threading.Thread(target=enter, args=(patient,)) for patient in (False, True))
    first.start()
    last.start()
    inside.wait()
    first.join()
    leave.set()
    last.join()
    assert seen == [1, 1]
    assert torch.get_num_threads() == 3
