"""The training loop: plain torch, on one worker or as one of several that step together."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

from uapray.data.images import ImageSet
from uapray.errors import ConfigError, DataError, TrialError
from uapray.models.augmentation import draw_motions, move
from uapray.models.blocks import frozen
from uapray.models.disturbance import Disturbance, Disturbing
from uapray.models.recipe import Recipe, learning_rate_at
from uapray.models.sampling import balanced, seeded, shuffled
from uapray.models.scores import predict_probabilities

_SMALLEST = 1e-12  # of a probability in the loss, so that one certain mistake does not make it infinite


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One epoch; all but ``train_loss`` and ``seconds`` is the same on every worker.

    Attributes:
        epoch: From 0.
        learning_rate: At its end.
        train_loss: Mean cross-entropy of this worker's augmented training images.
        loss: Mean cross-entropy on validation.
        accuracy: On validation.
        balanced_accuracy: On validation: mean sensitivity of the classes that occur there.
        best: Whether no epoch before was as good.
        seconds: Wall time.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    loss: float
    accuracy: float
    balanced_accuracy: float
    best: bool
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class FitResult:
    """What training found.

    Attributes:
        state: State dict of the module at its best epoch, on the CPU.
        best_epoch: From 0.
        epochs: Epochs made.
        history: A report each.
        perturbations: What images were perturbed with at the end, float32 ``(k, c, h, w)``; None: they were not.
    """

    state: dict[str, Tensor]
    best_epoch: int
    epochs: int
    history: tuple[EpochReport, ...]
    perturbations: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Worker:
    """What stays the same over the epochs."""

    module: nn.Module
    train: ImageSet
    validation: ImageSet
    recipe: Recipe
    seed: int
    rank: int
    world: int
    device: torch.device
    average: Callable[[nn.Module], None] | None
    disturbing: Disturbing | None
    still: Sequence[nn.Module]


def ignore(_report: EpochReport) -> None:
    """Take an epoch's report and do nothing with it."""


def fit(
    module: nn.Module,
    train: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
    device: str | torch.device = "cpu",
    average: Callable[[nn.Module], None] | None = None,
    disturbance: Disturbance | None = None,
    on_epoch: Callable[[EpochReport], None] = ignore,
) -> FitResult:
    """Train a classifier in place and leave it, in evaluation mode, at its best epoch by validation.

    Several workers call this with the same arguments but ``rank``, and either a module wrapped in
    `torch.nn.parallel.DistributedDataParallel` or a function that averages the gradients. Each takes its
    slice of every batch; orders and motions do not depend on their number (batch norm's statistics do).

    Args:
        module: Takes [0, 1] pixels ``(n, c, h, w)``, returns logits.
        train: Images to learn from.
        validation: Images to choose the epoch on, of other patients; the whole set is judged on each worker.
        recipe: See `Recipe`.
        seed: Of order, motions and dropout; initial weights are the module's own.
        rank: Of this worker, from 0.
        world: Number of workers.
        device: Where the module is put; the images stay in main memory.
        average: Called with the module after each backward pass; it averages gradients over the workers.
        disturbance: What training images are perturbed with, after they are moved; None: nothing.
        on_epoch: Called after each epoch.

    Raises:
        DataError: If a part holds too few images.
        ConfigError: If a batch has fewer than two images for each worker, or fewer blocks are there than are frozen.
        TrialError: If the loss is no longer finite.
    """
    place = torch.device(device)
    disturbing = None if disturbance is None else Disturbing(disturbance, len(train), seed=seed, device=place)
    inner = _inner(module)
    with frozen(inner, recipe.frozen_blocks) as still:
        worker = _Worker(module, train, validation, recipe, seed, rank, world, place, average, disturbing, still)
        state, best_epoch, history = _fit(worker, on_epoch)
    inner.load_state_dict(state)
    module.eval()
    met = None if disturbing is None else disturbing.perturbations
    return FitResult(state, best_epoch, len(history), tuple(history), met)


def _fit(worker: _Worker, on_epoch: Callable[[EpochReport], None]) -> tuple[dict[str, Tensor], int, list[EpochReport]]:
    """Make the epochs; return the weights of the best one, which one it is, and a report of each."""
    module, recipe = worker.module, worker.recipe
    batch = _batch_size(worker)
    module.to(worker.device)
    inner = _inner(module)
    if inner is module:
        # As uint8 images lie already, and faster. Not under DDP: its buckets keep the strides they saw.
        module.to(memory_format=torch.channels_last)
    optimizer = _optimizer(module, recipe)
    history: list[EpochReport] = []
    best, best_epoch, state = (-float("inf"), 0.0), 0, _copied(inner)
    for epoch in range(recipe.epochs):
        started = time.monotonic()
        train_loss = _train_epoch(worker, optimizer, epoch, batch)
        report = _judge(worker, epoch, train_loss)
        merit = _merit(report, recipe)
        if merit > best:
            best, best_epoch, state = merit, epoch, _copied(inner)
        report = replace(report, best=epoch == best_epoch, seconds=time.monotonic() - started)
        history.append(report)
        on_epoch(report)
        if recipe.patience is not None and epoch - best_epoch >= recipe.patience:
            break
    return state, best_epoch, history


def _batch_size(worker: _Worker) -> int:
    """Return how many images all workers take together in one step."""
    train, validation, recipe, world = worker.train, worker.validation, worker.recipe, worker.world
    for part, least in ((train, 2), (validation, 1)):
        if len(part) < least:
            raise DataError(f"{part.name} {part.split}: expected at least {least} images to train, got {len(part)}")
    batch = min(recipe.batch_size, len(train)) // world * world
    if batch // world < 2:
        # Batch norm has no variance of one image.
        raise ConfigError(
            f"batch_size: expected at least 2 images for each of {world} workers, "
            f"got {recipe.batch_size} of {len(train)} images; use fewer workers"
        )
    return batch


def _train_epoch(worker: _Worker, optimizer: torch.optim.Optimizer, epoch: int, batch: int) -> float:
    """Make one pass; the images that do not fill a last batch are left to other epochs' orders."""
    draw = balanced if worker.recipe.balanced else shuffled
    order = draw(worker.train.labels, seed=worker.seed, epoch=epoch)
    steps = len(order) // batch
    worker.module.train()
    for part in worker.still:
        part.eval()
    losses = []
    with _own_randomness(worker, epoch):
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(worker.recipe, epoch + step / steps)
            pixels, labels = _batch(worker, order[step * batch : (step + 1) * batch], epoch, step)
            logits = worker.module(pixels)
            loss = cross_entropy(logits, labels)
            pull = None if worker.disturbing is None else worker.disturbing.pull(logits)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if worker.average is not None:
                worker.average(worker.module)
            if worker.disturbing is not None:
                worker.disturbing.rise(pull, _average)
            optimizer.step()
            losses.append(loss.detach())
    mean = float(torch.stack(losses).mean())
    if not np.isfinite(mean):
        raise TrialError(
            f"training: the loss is {mean} in epoch {epoch}; lower learning_rate ({worker.recipe.learning_rate:g})"
        )
    return mean


def _batch(worker: _Worker, indices: NDArray[np.int64], epoch: int, step: int) -> tuple[Tensor, Tensor]:
    """Return this worker's slice of a batch, augmented: pixels ``(n, c, h, w)`` and labels ``(n,)``."""
    recipe, train = worker.recipe, worker.train
    generator = seeded(worker.seed, epoch, step, "motions")
    motions = draw_motions(recipe, len(indices), train.size, generator)[worker.rank :: worker.world]
    own = indices[worker.rank :: worker.world]
    grey = torch.from_numpy(train.images[own]).to(worker.device)
    pixels = grey.permute(0, 3, 1, 2).float().div_(255)
    if recipe.rotation_degrees or recipe.shift_share or recipe.flip:
        pixels = move(pixels, motions.to(worker.device))
    if worker.disturbing is not None:
        pixels = worker.disturbing.on(pixels, own)
    return pixels, torch.from_numpy(train.labels[own]).to(worker.device)


def _judge(worker: _Worker, epoch: int, train_loss: float) -> EpochReport:
    """Judge the module on the validation images; every worker gets the first one's figures."""
    inner, validation = _inner(worker.module), worker.validation
    if _together():
        for buffer in inner.buffers():
            distributed.broadcast(buffer, src=0)
    probabilities = predict_probabilities(inner, validation, device=worker.device)
    if not np.isfinite(probabilities).all():
        raise TrialError(
            f"training: the logits are not finite after epoch {epoch}; "
            f"lower learning_rate ({worker.recipe.learning_rate:g})"
        )
    right = probabilities.argmax(1) == validation.labels
    own = probabilities[np.arange(len(validation)), validation.labels].clip(_SMALLEST)
    figures = torch.tensor(
        [
            -np.log(own).mean(),
            right.mean(),
            np.mean([right[validation.labels == label].mean() for label in np.unique(validation.labels)]),
        ],
        dtype=torch.float32,
        device=worker.device,
    )
    if _together():
        # Last bits differ between machines; a stop that only some take would leave the others waiting.
        distributed.broadcast(figures, src=0)
    loss, accuracy, balanced_accuracy = figures.tolist()
    rate = learning_rate_at(worker.recipe, epoch + 1)
    return EpochReport(epoch, rate, train_loss, loss, accuracy, balanced_accuracy, best=False, seconds=0.0)


def _merit(report: EpochReport, recipe: Recipe) -> tuple[float, float]:
    """Return what is compared between epochs; equal accuracies are told apart by the loss."""
    match recipe.selection:
        case "loss":
            return (-report.loss, 0.0)
        case "accuracy":
            return (report.accuracy, -report.loss)
        case "balanced_accuracy":
            return (report.balanced_accuracy, -report.loss)
        case "last":
            return (float(report.epoch), 0.0)


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        weights,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


@contextmanager
def _own_randomness(worker: _Worker, epoch: int) -> Iterator[None]:
    """Seed what layers such as dropout draw from, by (seed, epoch, worker), and put the global state back."""
    devices = [worker.device] if worker.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seeded(worker.seed, epoch, worker.rank, "layers").initial_seed())
        yield


def _inner(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.parallel.DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    return module


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _average(gradient: Tensor) -> None:
    if _together():
        distributed.all_reduce(gradient, op=distributed.ReduceOp.SUM)
        gradient /= distributed.get_world_size()


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }
