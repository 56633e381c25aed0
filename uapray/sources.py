"""Images that perturbations are made from and judged on, each set with its key."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from uapray.clinical import Roles
from uapray.data.dataset import DataSet, with_attacker, with_source
from uapray.data.images import ImageSet
from uapray.records import CanonicalJson, canonical_json, key_of


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


USUAL_IMAGES = MadeFrom()
