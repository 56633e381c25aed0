"""Classifiers whose best perturbation is known in closed form, and images to try them on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uapray.arena import Arena
from uapray.ascent import Ascending, Ascent
from uapray.attack.control import Draw
from uapray.attack.objective import Objective
from uapray.attack.partial import PartialUpdate
from uapray.attack.rules import State
from uapray.attack.sequential import Ahead, Visit, Visiting
from uapray.data.images import ImageSet
from uapray.pool import Deck, LocalPool
from uapray.rendering import Rendering
from uapray.replica import Batch, Drawn, Replica

HEIGHT, WIDTH = 8, 7
CLASS_NAMES = ("CLEAR", "OPACITY", "EFFUSION", "NODULE")


def grey_levels(count: int, *, channels: int = 1, low: int = 64, high: int = 192, seed: int = 0) -> NDArray[np.uint8]:
    """Return uint8 noise ``(n, 8, 7, c)``, away from black and white unless asked otherwise."""
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, (count, HEIGHT, WIDTH, channels), dtype=np.uint8, endpoint=True)


def image_set(
    count: int,
    *,
    channels: int = 1,
    classes: int = 2,
    seed: int = 0,
    groups: Sequence[str | None] | None = None,
    pixels: NDArray[np.uint8] | None = None,
) -> ImageSet:
    """Return noise with labels in turn; by default each image is a patient of its own."""
    return ImageSet(
        grey_levels(count, channels=channels, seed=seed) if pixels is None else pixels,
        np.arange(count, dtype=np.int64) % classes,
        tuple(f"image {i}" for i in range(count)),
        (None,) * count if groups is None else tuple(groups),
        CLASS_NAMES[:classes],
        "noise",
        "train",
    )


def unit_pixels(images: NDArray[np.uint8]) -> Tensor:
    """Return float32 ``(n, c, h, w)`` in [0, 1]."""
    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255


def noise(seed: int, shape: tuple[int, ...] = (1, HEIGHT, WIDTH), scale: float = 1.0) -> Tensor:
    """Return seeded normal noise, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


class Linear(nn.Module):
    """Logits ``weight · pixels + bias``.

    Args:
        weight: ``(k, c, h, w)``.
        bias: ``(k,)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.flatten(1).clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.weight.T + self.bias


@dataclass(frozen=True, slots=True)
class TwoClass:
    """A linear victim with classes 0 and 1 and the score ``w · x + b``, the difference of its logits.

    Of all perturbations in a ball, ``+xi * d`` or ``-xi * d`` fools most images that are not clipped, where
    ``d`` is sign(w) for linf and w / |w| for l2: it moves every score by as much as any can.
    """

    w: Tensor
    b: float

    @property
    def module(self) -> Linear:
        return Linear(torch.stack([-self.w / 2, self.w / 2]), torch.tensor([-self.b / 2, self.b / 2]))

    def scores(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        w = self.w.double().numpy().transpose(1, 2, 0)
        scores: NDArray[np.float64] = (images / 255 * w).sum((1, 2, 3)) + self.b
        return scores

    def best(self, norm: str, xi: float) -> Tensor:
        """Return the perturbation that raises the score most; its negative lowers it most."""
        w = self.w.double()
        return (xi * (w.sign() if norm == "linf" else w / w.norm())).float()

    def fooled(self, images: NDArray[np.uint8], norm: str, xi: float) -> tuple[int, int]:
        """Return how many images the best perturbation fools upwards and downwards, by arithmetic alone."""
        w = self.w.double()
        reach = xi * float(w.abs().sum() if norm == "linf" else w.norm())
        scores = self.scores(images)
        assert min(np.abs(scores).min(), np.abs(np.abs(scores) - reach).min()) > 1e-5, "an image on the border"
        up = int(((scores < 0) & (scores + reach > 0)).sum())
        down = int(((scores > 0) & (scores - reach < 0)).sum())
        return up, down


def two_class(images: NDArray[np.uint8], *, share: float, seed: int = 1) -> TwoClass:
    """Return a victim that predicts about ``share`` of the images as class 1."""
    channels = images.shape[-1]
    w = noise(seed, (channels, HEIGHT, WIDTH))
    w = w + 0.1 * w.sign()
    free = TwoClass(w, 0.0).scores(images)
    return TwoClass(w, float(np.float32(-np.quantile(free, 1 - share))))


def targeted_victim(images: NDArray[np.uint8], target: int, norm: str, seed: int = 2) -> tuple[Linear, Tensor]:
    """Return a linear victim of three classes, and the direction in which each image nears the target most.

    The weights of the other classes oppose the target's in every pixel (linf) or as a whole (l2), so that one
    direction is the best against both of them at once.
    """
    u = noise(seed, (images.shape[-1], HEIGHT, WIDTH))
    u = u + 0.1 * u.sign()
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand((2, *u.shape) if norm == "linf" else (2, 1, 1, 1), generator=generator) + 0.2
    others = list(-shares * u)
    weight = torch.stack([*others[:target], 2 * u, *others[target:]])
    free = (weight.flatten(1) @ unit_pixels(images).flatten(1).T).mean(1)
    return Linear(weight, -free), u.sign() if norm == "linf" else u / u.norm()


class Flat(nn.Module):
    """Logits that no pixel changes, though a gradient can be asked for: it is zero."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tensor([3.0, -1.0]) + 0 * pixels.flatten(1)[:, :2]


class Constant(nn.Module):
    """Logits that have nothing to do with the pixels, as of a forward pass that cut the graph."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tensor([[3.0, -1.0]]).repeat(len(pixels), 1)


class NotANumber(nn.Module):
    """A linear victim whose logits are NaN for images brighter on the whole than a limit."""

    def __init__(self, victim: nn.Module, limit: float) -> None:
        super().__init__()
        self.victim = victim
        self.limit = limit

    def forward(self, pixels: Tensor) -> Tensor:
        bright = pixels.mean((1, 2, 3)) > self.limit
        return self.victim(pixels) * torch.where(bright, torch.nan, 1.0)[:, None]


class SmallCNN(nn.Module):
    """Two convolutions, one of them with batch norm that is not that of a fresh module, and a linear layer."""

    def __init__(self, channels: int = 1, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.channels, self.size = channels, (HEIGHT, WIDTH)
        self.first = nn.Conv2d(channels, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 3, stride=2)
        self.last = nn.Linear(8, classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.5)
            nn.init.uniform_(self.norm.weight, 0.5, 2)
            nn.init.normal_(self.norm.running_mean, std=0.3)
            nn.init.uniform_(self.norm.running_var, 0.2, 2)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(pixels - 0.5)))
        logits: Tensor = self.last(torch.relu(self.second(hidden)).mean((2, 3)) * 4)
        return logits


@dataclass(frozen=True, slots=True)
class CountingPool:
    """A real pool that counts the images it is asked about."""

    pool: LocalPool
    gradients: list[tuple[int, ...]] = field(default_factory=list)
    objectives: list[Objective] = field(default_factory=list)
    queries: list[int] = field(default_factory=list)
    visits: list[tuple[tuple[int, ...], Visit]] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    @property
    def size(self) -> int:
        return self.pool.size

    def gradient(
        self, v: Tensor, batches: Sequence[Batch], objective: Objective, along: Tensor | None = None
    ) -> PartialUpdate:
        with self._lock:
            self.gradients.extend(tuple(batch.indices.tolist()) for batch in batches)
            self.objectives.append(objective)
        return self.pool.gradient(v, batches, objective, along)

    def logits(
        self, v: Tensor | None, batches: Sequence[Batch], rendering: Rendering | None = None
    ) -> NDArray[np.float32]:
        with self._lock:
            self.queries.append(sum(len(batch.indices) for batch in batches))
        return self.pool.logits(v, batches, rendering)

    def likeness(self, v: Tensor, batches: Sequence[Batch]) -> NDArray[np.float32]:
        return self.pool.likeness(v, batches)

    def drawn(self, v: Tensor, draws: Sequence[Draw], batches: Sequence[Batch]) -> list[Drawn]:
        with self._lock:
            self.queries.extend([sum(len(batch.indices) for batch in batches)] * len(draws))
        return self.pool.drawn(v, draws, batches)

    @property
    def share(self) -> int:
        return self.pool.share

    def ascend(self, state: State, images: Batch, first: int, how: Ascending) -> Ascent:
        came = self.pool.ascend(state, images, first, how)
        with self._lock:
            made = images.indices[: came.rounds * how.pace.round_size].reshape(-1, how.pace.batch_size)
            self.gradients.extend(map(tuple, made.tolist()))
            self.objectives.extend([how.objective] * came.rounds)
        return came

    def visit(self, v: Tensor, batch: Batch, how: Visiting, ahead: Ahead) -> Visit:
        came = self.pool.visit(v, batch, how, ahead)
        with self._lock:
            self.visits.append((tuple(batch.indices.tolist()), came))
        return came

    def population(self, vs: Sequence[Tensor], batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        with self._lock:
            self.queries.append(len(vs) * sum(len(batch.indices) for batch in batches))
        return self.pool.population(vs, batches)

    @property
    def image_gradients(self) -> int:
        return sum(map(len, self.gradients)) + sum(came.image_gradients for _, came in self.visits)

    @property
    def image_queries(self) -> int:
        return sum(self.queries) + sum(came.image_queries for _, came in self.visits)


def pool_of(module: nn.Module, decks: Mapping[str, NDArray[np.uint8]]) -> CountingPool:
    """Return one replica in this process that counts."""
    return CountingPool(LocalPool(Replica(module, decks)))


def arena_of(module: nn.Module, images: ImageSet) -> tuple[Arena, CountingPool]:
    """Return a victim with its images, and the pool that counts what is asked."""
    pool = pool_of(module, {"train": images.images})
    return Arena(pool, {"train": images}), pool


def decks_of(module: nn.Module, pool: CountingPool, count: int, held: int) -> tuple[Deck, Deck]:
    """Return the first images of array ``train`` as source and the last ``held`` as validation part."""
    clean = pool.pool.logits(None, [Batch("train", np.arange(count))]).argmax(1)
    rows = np.arange(count)
    source, validation = rows[: count - held], rows[count - held :]
    return Deck("train", source, clean[source]), Deck("train", validation, clean[validation])
