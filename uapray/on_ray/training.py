"""Training with Ray Train: one worker or many, on one machine or many."""

import tempfile
import threading
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import nn

from uapray.data.images import ImageSet
from uapray.errors import TrialError
from uapray.models.recipe import Recipe
from uapray.models.training import EpochReport, FitResult, fit
from uapray.on_ray.session import expect_room

_POLL_S = 0.5


class _Mailbox:
    """What the first worker has to say; any node reaches it, so no shared disk is needed."""

    def __init__(self) -> None:
        self._reports: list[EpochReport] = []
        self._result: FitResult | None = None

    def report(self, report: EpochReport) -> None:
        self._reports.append(report)

    def finish(self, result: FitResult) -> None:
        self._result = result

    def reports(self, since: int) -> list[EpochReport]:
        return self._reports[since:]

    def result(self) -> FitResult | None:
        return self._result


def _work(config: dict[str, Any]) -> None:
    """What each worker does."""
    module, train, validation = ray.get([config["module"], config["train"], config["validation"]])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config["threads"])
    if world > 1:
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
        on_epoch=(lambda report: mailbox.report.remote(report)) if first else (lambda _: None),
    )
    if first:
        ray.get(mailbox.finish.remote(result))


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
    on_epoch: Callable[[EpochReport], None] = lambda _: None,
    while_waiting: Callable[[], None] = lambda: None,
) -> FitResult:
    """Train on the connected cluster; the arguments are those of ``fit`` and what a worker gets.

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
        on_epoch: Called here after each epoch.
        while_waiting: Called here twice a second; it may raise to end the training.

    Raises:
        TrialError: If a worker failed.
        ConfigError: If the cluster cannot hold the workers.
    """
    if not may_grow:
        expect_room("workers", workers, cpus=cpus, gpus=gpus)
    mailbox = ray.remote(_Mailbox).options(num_cpus=0).remote()
    need = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    with tempfile.TemporaryDirectory(prefix="uapray-train-") as scratch:
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "module": ray.put(module),
                "train": ray.put(train),
                "validation": ray.put(validation),
                "recipe": recipe,
                "seed": seed,
                "threads": max(1, int(cpus)),
                "mailbox": mailbox,
            },
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(gpus), resources_per_worker=need),
            run_config=RunConfig(storage_path=scratch, name="train"),
        )
        _run(trainer, mailbox, on_epoch, while_waiting)
    result: FitResult | None = ray.get(mailbox.result.remote())
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
        if isinstance(cause, TrialError):
            raise cause
        raise TrialError(f"training failed: {type(cause).__name__}: {cause}") from failure[0]


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
