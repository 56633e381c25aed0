"""The step that leads to a perturbation and its rows, with their keys."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uapray.config import BLACK_BOX, FP32, Arithmetic, Search, Threat
from uapray.coordinator import legs_of
from uapray.data.dataset import ATTACKER
from uapray.data.images import chosen_images
from uapray.identity import search_identity, threat_identity
from uapray.pace import pace_of
from uapray.records import key_of
from uapray.rendering import Rendering
from uapray.rounds import how_many_starts, least_rounds, leaves_out
from uapray.sources import USUAL_IMAGES, MadeFrom, Source
from uapray.victims import Victim


@dataclass(frozen=True, eq=False)
class TrialStep:
    """A perturbation to be made on a classifier and judged on splits.

    Attributes:
        victim: The classifier.
        source: The data set.
        threat: What the perturbation may be and is to do.
        search: How to look for it.
        seed: Of the search.
        splits: On which it is judged.
        arithmetic: How replicas are to take gradients.
        renderings: Under which it is judged once more.
        control_draws: Draws of each kind of matched control that it is judged beside; 0 for none.
        control_images: Images these are judged on at most.
        continued_from: Trial whose perturbation the search begins at, brought to this radius; None: it begins anew.
        rest_of_curve: The trials before it in its curve over zeta, if this one is the last, which writes the row.
        made_from: Images that it is made from.
    """

    victim: Victim
    source: Source
    threat: Threat
    search: Search
    seed: int
    splits: tuple[str, ...]
    arithmetic: Arithmetic = FP32
    renderings: tuple[Rendering, ...] = ()
    control_draws: int = 0
    control_images: int = 128
    continued_from: "TrialStep | None" = None
    rest_of_curve: tuple["TrialStep", ...] = ()
    made_from: MadeFrom = USUAL_IMAGES

    @property
    def made_on(self) -> str:
        """Split that the perturbation is made on: black-box rules know none of the classifier's training images."""
        return self.made_from.split or (ATTACKER if self.search.rule in BLACK_BOX else "train")

    @property
    def measured_on(self) -> str:
        """Split whose mean norm makes zeta a radius: that it is made on, but never images of another kind or number.

        Unless the threat asks for the images that it is made from (``Threat.xi_from``).
        """
        return self.made_on if self.made_from.identity() is None else "train"

    @property
    def rows(self) -> NDArray[np.int64] | None:
        """Which of the decoded images of that split it is made from, rising, int64 ``(n,)``; None: all."""
        if self.made_from.images is None:
            return None
        chosen = chosen_images(self.source.counts[self.made_on], self.made_from.images, self.seed)
        foreign = self.source.foreign.get(self.made_on)
        return chosen if foreign is None or foreign.chosen is None else np.searchsorted(foreign.chosen, chosen)

    @property
    def source_name(self) -> str:
        """What results call the images that it is made from."""
        name = self.made_from.name or f"{self.source.name}/{self.made_on}"
        return name if self.made_from.images is None else f"{name}[{self.made_from.images}]"

    @property
    def gradients_in(self) -> Arithmetic | None:
        """How the gradients of the search are taken; None: it takes none."""
        return self.search.gradients_in(self.arithmetic)

    @cached_property
    def trial_id(self) -> str:
        """Key of the perturbation."""
        described: dict[str, Any] = {
            "classifier": self.victim.key,
            "data": self.source.key,
            "threat": threat_identity(self.threat),
            "search": search_identity(
                self.search, self.threat, self.source.data.class_names, continues=self.continued_from is not None
            ),
            "seed": self.seed,
        }
        if self.gradients_in not in (None, FP32):
            described["gradients_in"] = str(self.gradients_in)
        if (made_from := self.made_from.identity()) is not None:
            described["made_from"] = made_from
        if self.continued_from is not None:
            described["continued_from"] = self.continued_from.trial_id
            described["refine_epochs"] = self.search.refine_epochs
        return key_of("trial", described)

    def row_keys(self, judged: Victim | None = None) -> tuple[str, ...]:
        """Return the keys of the rows of ``trials``, one a split; a row in the store is a judgement done.

        Args:
            judged: Another classifier that it is judged on; None: that it was made on.
        """
        where = "" if judged is None else f"-on-{judged.key}"
        return tuple(f"{self.trial_id}{where}-{split}" for split in self.splits)

    def rendering_keys(self, split: str) -> dict[Rendering, str]:
        """Return the key of each rendering's row: a trial judged before gets those that it has not."""
        return {one: f"{self.trial_id}-{split}-{one}" for one in self.renderings}

    def controls_key(self, split: str) -> str | None:
        """Return the key of the rows of ``controls``, which says how many draws and images; None: none are asked."""
        if not self.control_draws or self.search.rule == "random":
            return None
        return f"{self.trial_id}-{split}-{self.control_draws}x{self.control_images}"

    def curve(self) -> tuple["TrialStep", ...]:
        """Return the trials of the curve that this one is the last of, zetas rising; none if it is of none."""
        trials = (*self.rest_of_curve, self) if self.rest_of_curve else ()
        return tuple(sorted(trials, key=lambda trial: trial.threat.zeta or 0.0))

    def curve_key(self, split: str) -> str | None:
        """Return the key of the row of ``curves``; None: this trial is not the last of a curve."""
        ids = [trial.trial_id for trial in self.curve()]
        return f"{key_of('curve', {'trials': ids})}-{split}" if ids else None

    def judgements(self) -> Iterator[tuple[str, str]]:
        """Yield table and key of everything that is to stand in the store."""
        for key in self.row_keys():
            yield "trials", key
        for split in self.splits:
            for key in self.rendering_keys(split).values():
                yield "renderings", key
            if (controls := self.controls_key(split)) is not None:
                yield "controls", controls
            if (curve := self.curve_key(split)) is not None:
                yield "curves", curve

    def image_gradients(self) -> int:
        """Estimate what the search will spend."""
        continues = self.continued_from is not None
        search = self.search.refinement() if continues else self.search
        classes, count = len(self.source.data.class_names), self.source.counts[self.made_on]
        count = min(count, self.made_from.images or count)
        return _image_gradients(search, count, classes, targeted=self.threat.target is not None, continues=continues)


@lru_cache
def _image_gradients(search: Search, images: int, classes: int, *, targeted: bool, continues: bool) -> int:
    """Estimate what a search will spend."""
    budget = search.budget
    if search.rule == "random" or search.rule in BLACK_BOX:
        return 0
    if search.max_epochs == math.inf:
        return budget.max_image_gradients or 0
    starts, _ = how_many_starts(search, classes, targeted=targeted)
    source = int(images - min(images * search.validation_share, search.max_validation_images))
    halved = leaves_out(search, classes, targeted=targeted, continues=continues)
    least = least_rounds(search, classes, targeted=targeted, continues=continues)
    pace = pace_of(source, search, halved=halved, least_rounds=least)
    rounds = sum(leg.starts * leg.rounds for leg in legs_of(pace, search, starts))
    return min(rounds * pace.round_size, budget.max_image_gradients or 2**62)
