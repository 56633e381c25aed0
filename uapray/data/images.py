"""Decoded images with their labels, which class is which, and the split of a part of them by patient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uapray.errors import ConfigError, DataError

_TIE_WEIGHT = 0.1


@dataclass(frozen=True, eq=False, slots=True)
class ImageSet:
    """Images of one split, decoded, all of one size; nothing in it is ever written again.

    Attributes:
        images: uint8 ``(n, h, w, c)``, C-contiguous, read-only; c is 1 or 3.
        labels: int64 ``(n,)``, read-only, indices into ``class_names``.
        ids: Name of each image.
        groups: Patient or lesion of each image; None where unknown.
        class_names: Names of the classes, in the order of their labels.
        name: Name of the data set.
        split: ``train``, ``test`` or ``val``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: tuple[str, ...]
    groups: tuple[str | None, ...]
    class_names: tuple[str, ...]
    name: str
    split: str

    def __post_init__(self) -> None:
        images, n = self.images, len(self.images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise DataError(f"images: expected uint8 (n, h, w, 1 or 3), got {images.dtype} {images.shape}")
        if self.labels.shape != (n,) or len(self.ids) != n or len(self.groups) != n:
            counts = f"{self.labels.shape} labels, {len(self.ids)} ids, {len(self.groups)} groups"
            raise DataError(f"images: expected one label, id and group for each of {n}, got {counts}")
        labels = self.labels.astype(np.int64)
        if n and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            span = f"{labels.min()} to {labels.max()}"
            raise DataError(f"images: expected labels 0 to {len(self.class_names) - 1}, got {span}")
        object.__setattr__(self, "images", _read_only(images))
        object.__setattr__(self, "labels", _read_only(labels))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return int(self.images.shape[3])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.images.shape[1]), int(self.images.shape[2])

    def select(self, indices: NDArray[Any]) -> "ImageSet":
        """Return the images at ``indices`` (whole numbers, any order), or where a mask ``(n,)`` is true."""
        places = np.flatnonzero(indices) if indices.dtype == np.bool_ else indices
        return ImageSet(
            self.images[places],
            self.labels[places],
            tuple(self.ids[i] for i in places),
            tuple(self.groups[i] for i in places),
            self.class_names,
            self.name,
            self.split,
        )


def chosen_images(known: int, wanted: int | None, seed: int) -> NDArray[np.int64]:
    """Return which images a perturbation is made from, rising; those of a smaller number are among those of a larger.

    Raises:
        ConfigError: If more are wanted than there are.
    """
    if wanted is None:
        return np.arange(known)
    if wanted > known:
        raise ConfigError(f"images: expected at most {known}, which is all there are, got {wanted}")
    return np.sort(np.random.default_rng([seed, known]).permutation(known)[:wanted])


def class_index(class_names: tuple[str, ...], name: str | None) -> int | None:
    """Return the index of a target class; None stays None.

    Raises:
        ConfigError: If there is no such class.
    """
    if name is None:
        return None
    if name not in class_names:
        raise ConfigError(f"target: expected one of {', '.join(class_names)}, got {name!r}")
    return class_names.index(name)


def hold_out(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return the images that stay and those held out, no patient in both; each in the order it had.

    An image without a group is a patient of its own. Same images, share and seed: same split.

    Raises:
        DataError: As `held_out`.
    """
    held = held_out(images.labels, images.groups, share, seed)
    return images.select(~held), images.select(held)


def held_out(labels: NDArray[np.int64], groups: Sequence[str | None], share: float, seed: int) -> NDArray[np.bool_]:
    """Return which images ``(n,)`` to hold out: about ``share`` of every class, whole groups only.

    Groups come in an order drawn from ``seed`` (large ones must not come first, or they would all be held
    out) and are taken while that brings the classes closer to their share; then single groups change sides
    until no change helps.

    Raises:
        DataError: If ``share`` is not between 0 and 1, or there are fewer than two groups.
    """
    if not 0 < share < 1:
        raise DataError(f"share to hold out: expected more than 0 and less than 1, got {share}")
    group_of, counts = _group_counts(labels, groups)
    if len(counts) < 2:
        raise DataError(f"hold out: expected images of two or more patients, got {len(labels)} of {len(counts)}")
    taken = _draw(counts, share, np.random.default_rng(seed))
    _settle(taken, counts, share)
    if taken.all() or not taken.any():  # the share is less than any group: one group is the least
        taken[np.argmin(_cost_of_change(taken, counts, share))] ^= True
    mask: NDArray[np.bool_] = taken[group_of]
    return mask


def _group_counts(
    labels: NDArray[np.int64], groups: Sequence[str | None]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each image's group ``(n,)`` and the images per group and class ``(groups, classes + 1)``.

    The last column is all classes together, at a weight that only decides between equally even splits.
    """
    number: dict[Any, int] = {}
    keys = [(place,) if group is None else group for place, group in enumerate(groups)]
    group_of = np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)
    classes, class_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(number), len(classes)))
    np.add.at(counts, (group_of, class_of), 1)
    return group_of, np.column_stack([counts, _TIE_WEIGHT * counts.sum(axis=1)])


def _draw(counts: NDArray[np.float64], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    totals = counts.sum(axis=0)
    short = share * totals
    taken = np.zeros(len(counts), dtype=np.bool_)
    for group in rng.permutation(len(counts)):
        if (counts[group] * (counts[group] - 2 * short) / totals).sum() < 0:
            taken[group] = True
            short = short - counts[group]
    return taken


def _settle(taken: NDArray[np.bool_], counts: NDArray[np.float64], share: float) -> None:
    while True:
        cost = _cost_of_change(taken, counts, share)
        best = int(np.argmin(cost))
        if cost[best] >= -1e-9:
            return
        taken[best] ^= True


def _cost_of_change(taken: NDArray[np.bool_], counts: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Return what a change of side of each group adds to the squared distance from the share.

    Distances are in images, squared and divided by the class's images, so that rare classes weigh as much.
    """
    totals = counts.sum(axis=0)
    short = share * totals - counts[taken].sum(axis=0)
    step = np.where(taken[:, None], -counts, counts)
    cost: NDArray[np.float64] = (step * (step - 2 * short) / totals).sum(axis=1)
    return cost


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
