"""The steps that lead to results, each with the key of what comes out."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uapray import objects
from uapray.clinical import Roles
from uapray.config import BLACK_BOX, FP32, USUAL_XI_FROM, Arithmetic, Search, Threat
from uapray.coordinator import legs_of
from uapray.data.dataset import ATTACKER, DataSet, with_attacker, with_source
from uapray.data.images import ImageSet, chosen_images
from uapray.models import foreign
from uapray.models.hardening import Hardening
from uapray.models.recipe import Recipe
from uapray.models.tensors import hash_tensors
from uapray.pace import pace_of
from uapray.records import CanonicalJson, canonical_json, key_of
from uapray.rendering import Rendering
from uapray.rounds import how_many_starts, least_rounds, leaves_out, screened_on


@dataclass(frozen=True, eq=False)
class Foreign:
    """Images of another data set than the judged one.

    Attributes:
        data: The opened file.
        split: Of it.
        chosen: Which images of the split somebody makes a perturbation from, rising, int64 ``(n,)``; None: all.
    """

    data: DataSet
    split: str
    chosen: NDArray[np.int64] | None = None

    @cached_property
    def known(self) -> int:
        """How many images the split has, those that nobody chose among them."""
        return len(self.data.rows(self.split))


@dataclass(frozen=True, eq=False)
class Source:
    """A data set at a size.

    Attributes:
        name: How results call it.
        data: The opened file.
        size: Height and width in pixels; None: as stored.
        attacker_share: Share of the test images that are the split ``attacker``.
        roles: What its classes mean to a clinician; no part of the key.
        foreign: Images of other data sets that perturbations are made from, by the name of the split they are in here.
    """

    name: str
    data: DataSet
    size: tuple[int, int] | None
    attacker_share: float = 0.0
    roles: Roles = field(default_factory=Roles)
    foreign: Mapping[str, Foreign] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Key of the images: content, names of the classes, size, and what the attacker has of them."""
        content = {"sha256": self.data.sha256, "class_names": list(self.data.class_names), "size": self.size}
        return key_of("data", content | ({"attacker_share": self.attacker_share} if self.attacker_share else {}))

    @cached_property
    def dealt(self) -> DataSet:
        """The data set, with the attacker's split if he has one, and the splits that come from others."""
        dealt = with_attacker(self.data, self.attacker_share) if self.attacker_share else self.data
        for name, one in self.foreign.items():
            dealt = with_source(dealt, name, one.data, one.split, one.chosen)
        return dealt

    def images(self, split: str) -> ImageSet:
        """Decode a split."""
        return self.dealt.images(split, self.size)

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many images each split has, those that nobody chose among them, without decoding."""
        known = Counter(self.dealt.table["split"].to_pylist())
        return known | Counter({name: one.known for name, one in self.foreign.items()})


@dataclass(frozen=True)
class MadeFrom:
    """What a perturbation is made from, where that is not all of the usual split.

    Attributes:
        split: Of the judged data set's images and of those that came to it; None: the usual one.
        images: How many, in an order drawn from the seed; None: all.
        name: How results call it; None: after the data set and the split.
        content: Hash of the other data set and name of its split; None: the judged data set.
    """

    split: str | None = None
    images: int | None = None
    name: str | None = None
    content: tuple[str, str] | None = None

    def identity(self) -> CanonicalJson | None:
        """Return what decides a search's result; None: nothing beside the usual."""
        split = None if self.content else self.split
        values = {"split": split, "images": self.images, "content": self.content and list(self.content)}
        return canonical_json(values) if any(values.values()) else None


@dataclass(frozen=True, eq=False)
class TrainStep:
    """A classifier to be trained."""

    source: Source
    architecture: str
    initial_weights: str
    recipe: Recipe
    seed: int

    @cached_property
    def key(self) -> str:
        """Key of the classifier that comes out."""
        return key_of(
            "train",
            {
                "data": self.source.key,
                "architecture": self.architecture,
                "initial_weights": _initial_key(self.initial_weights),
                "recipe": self.recipe.model_dump(mode="json"),
                "seed": self.seed,
            },
        )


@dataclass(frozen=True, eq=False)
class InterpolateStep:
    """A classifier part of the way from the weights that its training began with to those that it ended with.

    Attributes:
        base: The trained classifier.
        share: Of the way.
    """

    base: "Victim"
    share: float

    @cached_property
    def key(self) -> str:
        """Key of the classifier that comes out."""
        return key_of("interpolate", {"classifier": self.base.bare_key, "share": self.share, "norms": "measured"})


@dataclass(frozen=True, eq=False)
class HardenStep:
    """A round of hardening.

    Attributes:
        base: The classifier that it begins with: of the round before, or as it was.
        source: The data set whose split ``train`` it is trained on.
        settings: How.
        round: Which one, from 1.
    """

    base: "Victim"
    source: Source
    settings: Hardening
    round: int

    @cached_property
    def key(self) -> str:
        """Key of the classifier that comes out."""
        return key_of(
            "harden",
            {
                "classifier": self.base.bare_key,
                "data": self.source.key,
                "settings": self.settings.identity(),
                "rule": _identity(self.settings.rule, self.threat, self.source.data.class_names),
                "round": self.round,
            },
        )

    @property
    def threat(self) -> Threat:
        """What the perturbations may be and are to do."""
        return Threat(norm=self.settings.norm, zeta=self.settings.zeta, target=self.settings.target)


@dataclass(frozen=True, eq=False)
class Victim:
    """A classifier to be attacked: trained by a step of the plan, or there already.

    Attributes:
        name: How results call it.
        train: Step that trains it; None: it is there.
        reference: Where it is.
        filter: What images go through before it is asked; None: nothing.
        interpolated: How its weights are taken from the way of its training; None: from the end.
        hardened: The last round of its hardening after that; None: it is not hardened.
    """

    name: str
    train: TrainStep | None
    reference: str | None
    filter: Rendering | None = None
    interpolated: InterpolateStep | None = None
    hardened: HardenStep | None = None

    @cached_property
    def key(self) -> str:
        """Key of the classifier with its filter."""
        if self.filter is None:
            return self.bare_key
        return key_of("filtered", {"classifier": self.bare_key, "filter": str(self.filter)})

    @property
    def learnt_on(self) -> str | None:
        """Key of the data set that it is trained or hardened on in this plan; None: on none."""
        if self.hardened is not None:
            return self.hardened.source.key
        return None if self.train is None else self.train.source.key

    @property
    def recipe(self) -> Recipe | None:
        """How it is trained or, in the last round of its hardening, trained on; None: it is there."""
        if self.hardened is not None:
            return self.hardened.settings.recipe
        return None if self.train is None else self.train.recipe

    @property
    def tuned(self) -> float | None:
        """Share of the way of its training that its weights have gone; None: it is there."""
        if self.interpolated is not None:
            return self.interpolated.share
        return None if self.train is None else 1.0

    @property
    def hardening(self) -> str | None:
        """Method and rounds of its hardening; None: it is not hardened."""
        return None if self.hardened is None else f"{self.hardened.settings.method}:{self.hardened.round}"

    @property
    def lineage(self) -> frozenset[str]:
        """Keys of the classifier without its filter and of those that it is made from."""
        step = self.hardened or self.interpolated
        return frozenset({self.bare_key}) | (step.base.lineage if step is not None else frozenset())

    @property
    def undefended(self) -> "Victim":
        """The classifier before its first round of hardening; itself if it is not hardened."""
        return self if self.hardened is None else self.hardened.base.undefended

    @cached_property
    def bare_key(self) -> str:
        """Key of the classifier without its filter: of the step that makes it, or of its file's content."""
        if self.hardened is not None:
            return self.hardened.key
        if self.interpolated is not None:
            return self.interpolated.key
        if self.train is not None:
            return self.train.key
        assert self.reference is not None
        return key_of("file", {"content": _content(self.reference)})


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
    made_from: MadeFrom = MadeFrom()

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
            "threat": _plain(self.threat),
            "search": _identity(
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

    def judgements(self) -> frozenset[tuple[str, str]]:
        """Return table and key of everything that is to stand in the store."""
        rows = {("trials", key) for key in self.row_keys()}
        for split in self.splits:
            rows |= {("renderings", key) for key in self.rendering_keys(split).values()}
            if (key := self.controls_key(split)) is not None:
                rows.add(("controls", key))
            if (key := self.curve_key(split)) is not None:
                rows.add(("curves", key))
        return frozenset(rows)

    def image_gradients(self) -> int:
        """Estimate what the search will spend."""
        continues = self.continued_from is not None
        search = self.search.refinement() if continues else self.search
        classes, count = len(self.source.data.class_names), self.source.counts[self.made_on]
        count = min(count, self.made_from.images or count)
        return _image_gradients(search, count, classes, targeted=self.threat.target is not None, continues=continues)


def _initial_key(initial: str) -> str:
    return initial if initial in ("random", "pretrained") else _content(initial)


def _content(reference: str) -> str:
    """Return what stands for a classifier's content: the hash of a file, or of the weights a function returns."""
    if foreign.is_reference(reference):
        return hash_tensors(foreign.call(reference).state_dict(), reference)
    return key_of("bytes", {"hex": _sha256(objects.read_uri(reference))})


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


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


@lru_cache
def _plain(threat: Threat) -> CanonicalJson:
    usual = {"xi_from"} if threat.xi_from == USUAL_XI_FROM else None
    return canonical_json(threat.model_dump(mode="json", exclude=usual))


@lru_cache
def _identity(
    search: Search, threat: Threat, class_names: tuple[str, ...], *, continues: bool = False
) -> CanonicalJson:
    """Return the settings that decide a search's result, the rule's own among them; a control has none."""
    if search.rule == "random":
        return canonical_json({"rule": search.rule})
    targeted = threat.target is not None
    leaves = leaves_out(search, len(class_names), targeted=targeted, continues=continues)
    described = search.model_dump(mode="json", exclude={"refine_epochs"} if leaves else {"refine_epochs", "leave_out"})
    limit = None if search.max_epochs == math.inf else search.max_epochs
    budget = {**described["budget"], "max_epochs": limit}
    loss, step_size = search.raised(targeted=targeted), search.first_step(threat.norm)
    kept = search.kept(len(class_names))
    resolved: dict[str, Any] = {"loss": loss, "step_size": step_size, "momentum": kept, "budget": budget}
    del described["least_rounds"], described["screen_images"], described["wiener_rounds"]
    if least := least_rounds(search, len(class_names), targeted=targeted, continues=continues):
        resolved["least_rounds"] = least
    screened = screened_on(search, threat.norm, len(class_names), targeted=targeted, continues=continues)
    if screened:
        resolved["screen_images"] = screened
    if search.filtered(threat.norm):
        resolved["wiener_rounds"] = search.filtered(threat.norm)
        resolved["wiener_bands"] = "by colour axis"  # other bits than of all channels together, as they once were
    if limit is not None:  # else a step that falls with the budget falls with image-gradients by the number of images
        resolved["step_decay"] = search.decay()
    return canonical_json({**described, **resolved})
