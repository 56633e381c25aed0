"""Matched controls: what chance does that shares something with the perturbation, on the same images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from uapray.arena import Arena
from uapray.attack.control import Draw, matched_controls
from uapray.judgement import predictions
from uapray.measures import Outcome, Rate, p_value, spread
from uapray.pool import in_turn, predicted
from uapray.records import key_of
from uapray.replica import Drawn

DRAWS_EACH = 2  # that a replica is asked about at a time: one more while it answers


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """Draws of one kind of control, and the perturbation, on the same images.

    Attributes:
        kind: ``random``, ``signs``, ``permuted`` or ``scrambled``; see ``uapray.attack.control``.
        perturbation: Predictions before and after the perturbation.
        draws: The same for each draw, at least one.
        l2: Mean l2 norm of the draws, pixel units.
        linf: Mean linf norm of the draws, pixel units.
        target: Index of the class that was asked for; None: nontargeted.
    """

    kind: str
    perturbation: Outcome
    draws: tuple[Outcome, ...]
    l2: float
    linf: float
    target: int | None

    @property
    def fooling_rates(self) -> tuple[float, ...]:
        """Fooling rate of each draw."""
        return tuple(draw.fooling.share for draw in self.draws)

    @property
    def targeted_success_rates_non_target(self) -> tuple[float, ...] | None:
        """Of each draw; None without a target, or if all images are predicted as it when clean."""
        if self.target is None or not self.perturbation.towards_non_target(self.target).images:
            return None
        return tuple(draw.towards_non_target(self.target).share for draw in self.draws)

    @property
    def rate(self) -> Rate:
        """What the perturbation is compared by: its fooling rate; targeted, its success rate of non-targets."""
        return self.perturbation.fooling if self.target is None else self.perturbation.towards_non_target(self.target)

    @property
    def rates(self) -> tuple[float, ...] | None:
        """The same of each draw; None if it cannot be told."""
        return self.fooling_rates if self.target is None else self.targeted_success_rates_non_target

    @property
    def mean(self) -> float | None:
        """Mean of the draws' rates."""
        return None if self.rates is None else float(np.mean(self.rates))

    @property
    def p_value(self) -> float | None:
        """How likely a draw of this kind does at least as well as the perturbation."""
        return None if self.rates is None else p_value(self.rate.share, self.rates)


def judge_controls(
    arena: Arena,
    split: str,
    perturbation: Tensor,
    *,
    target: int | None,
    p: float,
    draws: int,
    max_images: int,
    seed: int,
    watch: Callable[[float], None] = lambda _: None,
) -> tuple[Controls, ...]:
    """Judge draws of every kind of matched control beside a perturbation.

    Args:
        arena: Where the classifier and the images are.
        split: Split that is judged.
        perturbation: ``(c, h, w)``, pixel units.
        target: Index of the class that was to be reached; None: nontargeted.
        p: Order of the norm whose ball the kind ``random`` is drawn from.
        draws: Of each kind; 0 for no controls at all.
        max_images: Upper limit of the images judged; they are spread evenly over the split.
        seed: Of the trial; a draw follows from it, the kind and the number of the draw alone.
        watch: Called with the share done after every few draws; it may raise to give up.
    """
    if not draws:
        return ()
    rows = spread(len(arena.images[split]), max_images)
    observed = predictions(arena, split, perturbation, rows)
    asked = [Draw(kind, p, draw_seed(seed, kind, number)) for kind in matched_controls(p) for number in range(draws)]
    drawn: list[Drawn] = []
    while len(drawn) < len(asked):
        next_few = asked[len(drawn) : len(drawn) + DRAWS_EACH * arena.pool.share]
        drawn += arena.pool.drawn(perturbation, next_few, in_turn(split, rows))
        watch(len(drawn) / len(asked))
    return tuple(
        _summary(asked[first].kind, observed, drawn[first : first + draws], target)
        for first in range(0, len(drawn), draws)
    )


def _summary(kind: str, observed: Outcome, drawn: Sequence[Drawn], target: int | None) -> Controls:
    l2, linf = np.mean([(one.l2, one.linf) for one in drawn], axis=0)
    draws = tuple(replace(observed, perturbed=predicted(one.logits)) for one in drawn)
    return Controls(kind, observed, draws, float(l2), float(linf), target)


def draw_seed(seed: int, kind: str, number: int) -> int:
    """Return the seed of one draw, below 2^60."""
    return int(key_of("control", {"seed": seed, "kind": kind, "draw": number})[:15], 16)
