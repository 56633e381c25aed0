"""Training with Ray Train: one worker or many, on one machine or many; and batch norms measured again."""

import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt
from torch import Tensor, nn

from uapray.data.images import ImageSet
from uapray.errors import TrialError, UaprayError
from uapray.models.blocks import frozen
from uapray.models.disturbance import Disturbance
from uapray.models.norms import measure_norms
from uapray.models.recipe import Recipe
from uapray.models.scores import predict_probabilities
from uapray.models.training import EpochReport, FitResult, fit
from uapray.on_ray.session import expect_room

TRIES = 3
_POLL_S = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What training on a cluster gives.

    Attributes:
        fitted: See `FitResult`.
        probabilities: Of the classes, float64 ``(n, k)``, by the name of each set that was to be judged.
    """

    fitted: FitResult
    probabilities: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


class _Mailbox:
    """What the first worker has to say; it lives beside the driver, so no shared disk is needed."""

    def __init__(self) -> None:
        self._reports: list[EpochReport] = []
        self._result: Trained | None = None

    def report(self, report: EpochReport) -> None:
        self._reports.append(report)

    def finish(self, result: Trained) -> None:
        self._result = result

    def reports(self, since: int) -> list[EpochReport]:
        return self._reports[since:]

    def result(self) -> Trained | None:
        return self._result


def _work(config: dict[str, Any]) -> None:
    """What each worker does."""
    module, train, validation = ray.get([config["module"], config["train"], config["validation"]])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config["threads"])
    if world > 1:
        with frozen(module, config["recipe"].frozen_blocks):  # it looks once which weights learn
            module = prepare_model(module)
    mailbox = config["mailbox"]
    first = rank == 0
    result = fit(
        module,
        train,
        validation,
        config["recipe"],
        seed=config["seed"],
        rank=rank,
        world=world,
        device=get_device(),
        disturbance=config["disturbance"],
        on_epoch=(lambda report: mailbox.report.remote(report)) if first else (lambda _: None),
    )
    if first:
        inner = module.module if world > 1 else module
        judged = {
            name: predict_probabilities(inner, ray.get(images), device=get_device())
            for name, images in config["judged"].items()
        }
        ray.get(mailbox.finish.remote(Trained(result, judged)))


def fit_on_ray(
    module: nn.Module,
    train: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    workers: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    may_grow: bool = False,
    judged: Mapping[str, ImageSet] = MappingProxyType({}),
    disturbance: Disturbance | None = None,
    on_epoch: Callable[[EpochReport], None] = lambda _: None,
    while_waiting: Callable[[], None] = lambda: None,
) -> Trained:
    """Train on the connected cluster; the arguments are those of ``fit`` and what a worker gets.

    A worker that is lost costs the epochs made so far: training begins again, up to `TRIES` times in all.

    Args:
        module: The classifier with its initial weights.
        train: Images to learn from.
        validation: Images that decide when to stop.
        recipe: How.
        seed: Of the order of images and of the augmentation.
        workers: Processes that share each batch.
        cpus: Cores of a worker, which are also its threads.
        gpus: GPUs of a worker.
        may_grow: Whether more nodes may come; then workers that do not fit yet are waited for.
        judged: Image sets, by name, that the first worker judges the trained classifier on.
        disturbance: What training images are perturbed with; None: nothing.
        on_epoch: Called here after each epoch.
        while_waiting: Called here twice a second; it may raise to end the training.

    Raises:
        TrialError: If a worker failed.
        ConfigError: If the cluster cannot hold the workers.
    """
    if not may_grow:
        expect_room("workers", workers, cpus=cpus, gpus=gpus)
    need = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    refs = {id(images): ray.put(images) for images in (train, validation, *judged.values())}
    config = {
        "module": ray.put(module),
        "train": refs[id(train)],
        "validation": refs[id(validation)],
        "judged": {name: refs[id(images)] for name, images in judged.items()},
        "recipe": recipe,
        "seed": seed,
        "disturbance": disturbance,
        "threads": max(1, int(cpus)),
    }
    scaling = ScalingConfig(num_workers=workers, use_gpu=bool(gpus), resources_per_worker=need)
    again = Retrying(stop=stop_after_attempt(TRIES), retry=retry_if_exception_type(_LostError), reraise=True)
    try:
        return again(_once, config, scaling, on_epoch, while_waiting)
    except _LostError as error:
        cause = error.__cause__
        raise TrialError(f"training failed {TRIES} times: {type(cause).__name__}: {cause}") from cause


def measure_norms_on_ray(
    module: nn.Module,
    images: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    cpus: float = 1.0,
    gpus: float = 0.0,
    may_grow: bool = False,
    while_waiting: Callable[[], None] = lambda: None,
) -> None:
    """Measure the batch norms of a module again in place, on one worker; see `measure_norms` and `fit_on_ray`.

    Raises:
        TrialError: If the worker failed, or was lost `TRIES` times.
        ConfigError: If the cluster cannot hold it.
    """
    if not may_grow:
        expect_room("workers", 1, cpus=cpus, gpus=gpus)
    tries = {"max_restarts": TRIES - 1, "max_task_retries": TRIES - 1}
    worker = ray.remote(_Measurer).options(num_cpus=cpus, num_gpus=gpus, **tries).remote()
    found = worker.measure.remote(module, images, recipe, seed, max(1, int(cpus)), "cuda" if gpus else "cpu")
    try:
        while not ray.wait([found], timeout=_POLL_S)[0]:
            while_waiting()
        module.load_state_dict(ray.get(found), strict=False)
    except ray.exceptions.RayError as error:
        cause = _innermost(error)
        said = next(iter(str(cause).splitlines()), "")
        raise TrialError(f"measuring batch norms failed: {type(cause).__name__}: {said}") from error
    finally:
        ray.kill(worker)


class _Measurer:
    """What measures: an actor, since Ray ends the driver where a task is cancelled at the moment that it is done."""

    def measure(
        self, module: nn.Module, images: ImageSet, recipe: Recipe, seed: int, threads: int, device: str
    ) -> dict[str, Tensor]:
        """Return the buffers of a module, those of its batch norms measured."""
        torch.set_num_threads(threads)
        measure_norms(module, images, recipe, seed=seed, device=device)
        return {name: value.cpu() for name, value in module.named_buffers()}


class _LostError(Exception):
    """Training ended for a reason that may not be there the next time."""


def _once(
    config: dict[str, Any],
    scaling: ScalingConfig,
    on_epoch: Callable[[EpochReport], None],
    while_waiting: Callable[[], None],
) -> Trained:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    try:
        with tempfile.TemporaryDirectory(prefix="uapray-train-") as scratch:
            where = RunConfig(storage_path=scratch, name="train")
            trainer = TorchTrainer(
                _work, train_loop_config={**config, "mailbox": mailbox}, scaling_config=scaling, run_config=where
            )
            _run(trainer, mailbox, on_epoch, while_waiting)
        result: Trained | None = ray.get(mailbox.result.remote())
    finally:
        ray.kill(mailbox)
    if result is None:
        raise TrialError("training ended without a result")
    return result


def _run(
    trainer: Any, mailbox: Any, on_epoch: Callable[[EpochReport], None], while_waiting: Callable[[], None]
) -> None:
    """Run the trainer and hand on what the first worker reports, as it comes."""
    failure: list[Exception] = []

    def train() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failure.append(error)

    running = threading.Thread(target=train, daemon=True)
    running.start()
    told = 0
    while True:
        running.join(_POLL_S)
        while_waiting()
        for report in ray.get(mailbox.reports.remote(told)):
            on_epoch(report)
            told += 1
        if not running.is_alive():
            break
    if failure:
        cause = _innermost(failure[0])
        if isinstance(cause, UaprayError):
            raise cause
        raise _LostError from cause


def _innermost(error: BaseException) -> BaseException:
    """Return what went wrong in the worker, out of what Ray wraps around it."""
    for name in ("cause", "training_failed_error", "__cause__"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _innermost(inner)
    worker_failures = getattr(error, "worker_failures", None)
    if worker_failures:
        return _innermost(next(iter(worker_failures.values())))
    return error
