"""The classifiers that a perturbation is made on: one, or several at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uapray.attack.objective import Objective
from uapray.attack.partial import PartialUpdate, add_in_order
from uapray.pool import Deck, ReplicaPool, predicted
from uapray.replica import Batch

Asked = TypeVar("Asked")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Member:
    """A classifier with the images that it is asked about.

    Attributes:
        pool: Its replicas.
        source: The images that gradients are taken of, with its own clean predictions.
        validation: The images that the best perturbation is chosen on.
        weight: Its voice, where there are several.
    """

    pool: ReplicaPool
    source: Deck
    validation: Deck
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a perturbation does to images, the mean over the classifiers.

    Attributes:
        fooling_rate: Share of images whose predicted class changed.
        targeted_success_rate: Share predicted as the target; None when nontargeted.
        certainty: Mean probability that the objective is reached.
        image_queries: Forward passes that it took, each of one image.
    """

    fooling_rate: float
    targeted_success_rate: float | None
    certainty: float
    image_queries: int

    @property
    def rate(self) -> float:
        """What the search maximises: targeted success rate, or fooling rate."""
        return self.fooling_rate if self.targeted_success_rate is None else self.targeted_success_rate


def gradient(
    members: Sequence[Member],
    batches: Callable[[Deck], Sequence[Batch]],
    v: Tensor,
    objective: Objective,
    along: Tensor | None = None,
) -> PartialUpdate:
    """Return the gradients of some images, added over the classifiers in their order.

    Of several classifiers each one's sum is brought to unit l1 length and multiplied with its weight: the size of raw
    gradients differs by orders of magnitude between architectures, and the loudest would speak alone.

    Args:
        members: The classifiers.
        batches: Chooses the batches out of a classifier's deck; the same images for each.
        v: Where the gradients are taken, ``(c, h, w)``.
        objective: What is to be raised.
        along: As in ``Replica.gradient``.

    Raises:
        TrialError: If a gradient is not finite.
    """

    def ask(member: Member) -> PartialUpdate:
        return member.pool.gradient(v, batches(member.source), objective, along).finite()

    if len(members) == 1:
        return ask(members[0])
    return add_in_order(map(_with_weight, at_once(ask, members), (member.weight for member in members)))


def verdict(members: Sequence[Member], v: Tensor, objective: Objective) -> Verdict:
    """Judge a perturbation on the validation part, after clipping to valid pixels."""
    each = at_once(partial(_verdict, v=v, objective=objective), members)
    targeted = [one.targeted_success_rate for one in each if one.targeted_success_rate is not None]
    return Verdict(
        fooling_rate=float(np.mean([one.fooling_rate for one in each])),
        targeted_success_rate=float(np.mean(targeted)) if targeted else None,
        certainty=float(np.mean([one.certainty for one in each])),
        image_queries=sum(one.image_queries for one in each),
    )


def hit(predictions: NDArray[np.int64], clean: NDArray[np.int64], objective: Objective) -> NDArray[np.bool_]:
    """Return which images ``(n,)`` are fooled, or taken for the target."""
    hits: NDArray[np.bool_] = predictions != clean if objective.target is None else predictions == objective.target
    return hits


def rate(predictions: NDArray[np.int64], clean: NDArray[np.int64], objective: Objective) -> float:
    """Return what a search maximises: fooling rate, or targeted success rate."""
    return float(np.mean(hit(predictions, clean, objective)))


def _verdict(member: Member, v: Tensor, objective: Objective) -> Verdict:
    deck = member.validation
    logits = member.pool.logits(v, deck.in_turn())
    predictions = predicted(logits)
    return Verdict(
        fooling_rate=rate(predictions, deck.reference, Objective()),
        targeted_success_rate=None if objective.target is None else rate(predictions, deck.reference, objective),
        certainty=objective.certainty(torch.from_numpy(logits), torch.from_numpy(deck.reference)),
        image_queries=len(deck),
    )


def _with_weight(update: PartialUpdate, weight: float) -> PartialUpdate:
    length = update.total.abs().sum()
    return PartialUpdate(update.total * (weight / length) if length > 0 else update.total, update.count)


def at_once(ask: Callable[[Asked], T], those: Sequence[Asked]) -> tuple[T, ...]:
    """Ask all at the same time; answers in their order."""
    if len(those) == 1:
        return (ask(those[0]),)
    with ThreadPoolExecutor(len(those)) as threads:
        return tuple(threads.map(ask, those))
