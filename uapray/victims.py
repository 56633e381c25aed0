"""Classifiers to be attacked, and the steps that make them, each with its key."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from uapray import objects
from uapray.config import Threat
from uapray.identity import search_identity
from uapray.models import foreign
from uapray.models.hardening import Hardening
from uapray.models.recipe import Recipe
from uapray.models.tensors import hash_tensors
from uapray.records import key_of
from uapray.rendering import Rendering
from uapray.sources import Source


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
                "rule": search_identity(self.settings.rule, self.threat, self.source.data.class_names),
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


def _initial_key(initial: str) -> str:
    return initial if initial in ("random", "pretrained") else _content(initial)


def _content(reference: str) -> str:
    """Return what stands for a classifier's content: the hash of a file, or of the weights a function returns."""
    if foreign.is_reference(reference):
        return hash_tensors(foreign.call(reference).state_dict(), reference)
    return key_of("bytes", {"hex": _sha256(objects.read_uri(reference))})


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
