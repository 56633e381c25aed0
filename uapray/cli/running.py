"""Running a plan under the eyes of a person or a job log."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from uapray.cli.leaks import tell_shared_patients
from uapray.cli.progress import Board, board
from uapray.coordinator import Snapshot
from uapray.experiment import Summary, find_missing, run_missing
from uapray.judgement import Judgement
from uapray.models.card import Classifier
from uapray.models.training import EpochReport
from uapray.on_ray.session import LOCAL, knock, session
from uapray.plan import Plan
from uapray.resources import Resources, check_arithmetic
from uapray.run import Run, Watcher
from uapray.steps import TrialStep
from uapray.store.results import Results
from uapray.victims import Victim


def run_with_progress(
    plan: Plan, results: Results, resources: Resources, address: str | None, *, save_every_s: float = 120.0
) -> Summary:
    """Run what is missing of a plan, with progress; Ctrl-C and SIGTERM end it at the next safe point."""
    check_arithmetic(plan.grid.arithmetic, resources)
    knock(address)
    part = "/".join(map(str, plan.share)) if plan.share[1] > 1 else ""
    for source in {trial.source.key: trial.source for trial in plan.trials}.values():
        tell_shared_patients(source.data)
    with board(part) as progress:
        progress.show("looking at store, images and classifiers", 0, 1)
        missing = find_missing(plan, results)
        progress.show("looking at store, images and classifiers", 1, 1)
    total = plan.count
    if not missing.count:
        return Summary(0, total, 0)
    stop = threading.Event()
    lock = threading.Lock()
    finished = total - missing.count
    with board(part) as progress, _starting(progress, session(address)), _stopping(stop):

        def show_training(victim: Victim, epochs: int, note: str) -> None:
            assert victim.recipe is not None
            number = "" if victim.hardened is None else f", round {victim.hardened.round}"
            with lock:
                progress.show(f"training {victim.name}{number}", epochs, victim.recipe.epochs, note)

        def to_train(victim: Victim) -> None:
            show_training(victim, 0, "workers are starting")

        def training(victim: Victim, report: EpochReport) -> None:
            show_training(victim, report.epoch + 1, f"validation accuracy {report.balanced_accuracy:.3f}")

        def hardening(victim: Victim, share: float) -> None:
            assert victim.hardened is not None
            with lock:
                progress.show(f"perturbations against {victim.name}, round {victim.hardened.round}", share, 1)

        def trained(victim: Victim, _classifier: Classifier) -> None:
            assert victim.recipe is not None
            show_training(victim, victim.recipe.epochs, "done")

        def searching(step: TrialStep, snapshot: Snapshot) -> None:
            with lock:
                progress.show(label(step), snapshot.share_done, 1, f"best on validation {snapshot.best_rate:.3f}")

        def judging(step: TrialStep, share: float) -> None:
            with lock:
                progress.show(f"controls of {label(step)}", share, 1)

        def judged(step: TrialStep, judgement: Judgement) -> None:
            with lock:
                if step.search.rule != "random":
                    rate = judgement.outcome.fooling.share
                    progress.show(label(step), 1, 1, f"{judgement.split}: fooling rate {rate:.3f}")

        def done(_step: TrialStep) -> None:
            nonlocal finished
            with lock:
                finished += 1
                progress.show(f"grid {plan.grid.name}", finished, total, f"{finished} of {total} trials")

        def failed(step: str, message: str) -> None:
            with lock:
                progress.show(f"failed {step}", 1, 1, message[:120])

        watcher = Watcher(to_train, training, hardening, trained, searching, judging, judged, done, failed)
        return run_missing(Run(plan, results, resources, watcher, stop, save_every_s), missing)


@contextmanager
def _starting(progress: Board, ray: AbstractContextManager[None]) -> Iterator[None]:
    """Enter a Ray session and say so, since it takes some seconds."""
    progress.show("starting Ray", 0, 1)
    with ray:
        progress.show("starting Ray", 1, 1)
        yield


def may_grow(address: str | None) -> bool:
    """Return whether the cluster is one that was joined, which an autoscaler may enlarge."""
    return (address or os.environ.get("RAY_ADDRESS") or LOCAL) != LOCAL


def label(step: TrialStep) -> str:
    """Return a trial's name for people."""
    target = f" to {step.threat.target}" if step.threat.target else ""
    return (
        f"{step.search.rule} on {step.victim.name}, {step.threat.norm} {step.threat.zeta:g}{target}, seed {step.seed}"
    )


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into a request to stop inside the block; a second one stops at once."""

    def ask(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
