"""What all threads of a process share in torch, and results must not depend on."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock

import torch

drawing = RLock()
"""Held by who draws from torch's global random state: classifiers are built side by side, each from its seed alone."""

_lock = Lock()
_inside = 0
_before = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in this process inside the block, which threads may enter at the same time.

    Several would add up the coordinator's sums in an order that depends on the machine.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = torch.get_num_threads()
            torch.set_num_threads(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.set_num_threads(_before)
