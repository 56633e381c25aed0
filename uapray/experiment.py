"""Joins plan, replicas and store: what the command line and a job script call."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from uapray.attack.objective import Objective
from uapray.attack.partial import PartialUpdate
from uapray.attack.sequential import Ahead, Visit, Visiting
from uapray.data.dataset import ATTACKER
from uapray.data.images import ImageSet
from uapray.errors import ClusterError, DataError, RunError, StoppedError, StoreError, UserError
from uapray.models.card import Classifier, check_fits
from uapray.models.scores import classifier_rows
from uapray.models.weights import load_classifier, load_for, save_classifier
from uapray.on_ray.session import expect_room
from uapray.plan import Plan, Source, TrialStep, Victim, chains
from uapray.pool import ReplicaPool
from uapray.query import query
from uapray.rendering import Rendering
from uapray.replica import Batch
from uapray.resources import open_pool
from uapray.run import Run
from uapray.store.results import Results
from uapray.store.runs import Noting, noting
from uapray.train_step import initial_classifier, train_classifier
from uapray.trial import Arena
from uapray.trial_step import run_trial

STOPPED = "stopped; what is finished stays, and the same command goes on from here"


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        done: Trials finished by this run.
        standing: Trials that stood before.
        failed: Trials that failed for good.
    """

    done: int
    standing: int
    failed: int


def standing_rows(results: Results) -> set[tuple[str, str]]:
    """Return table and key of the judgements that stand in a store, whichever grid asked for them."""
    return {(table, key) for table in ("trials", "renderings", "controls", "curves") for _, key in results.keys(table)}


def unmended(results: Results) -> list[dict[str, Any]]:
    """Return the last failure of each step that has not succeeded since, the latest first."""
    last = query(
        results,
        """WITH ended AS (SELECT trial_id, finished_at FROM trials UNION ALL
        SELECT trial_id, finished_at FROM renderings UNION ALL SELECT trial_id, finished_at FROM controls UNION ALL
        SELECT trial_id, finished_at FROM curves)
        SELECT DISTINCT ON (grid, failures.trial_id, step) failures.*, finished FROM failures LEFT JOIN
        (SELECT trial_id, max(finished_at) AS finished FROM ended GROUP BY trial_id) USING (trial_id)
        ORDER BY "at" DESC""",
    ).to_pylist()
    trained = {key for key in results.objects.keys("models/") if key.endswith(".safetensors")}
    return sorted(
        (
            one
            for one in last
            if f"models/{one['trial_id']}.safetensors" not in trained
            and (one["finished"] is None or one["finished"] < one["at"])
        ),
        key=lambda one: one["at"],
        reverse=True,
    )


@dataclass(frozen=True, slots=True)
class Missing:
    """What of a plan is to be done, found to be possible.

    Attributes:
        groups: Classifier, data set and the trials on them that are missing.
        initial: For each group the classifier, or the one its training begins with; None: in the store.
        standing: Table and key of the judgements that stand.
    """

    groups: tuple[tuple[Victim, Source, tuple[TrialStep, ...]], ...]
    initial: tuple[Classifier | None, ...]
    standing: Set[tuple[str, str]]


def find_missing(plan: Plan, results: Results) -> Missing:
    """Find out what is to be done, and that it can be: every picture decodes, every classifier fits. Writes nothing.

    Raises:
        UserError: If the store, a data set or a classifier does not fit.
    """
    standing = standing_rows(results)
    groups, initial = [], []
    samples: dict[str, ImageSet] = {}
    for victim, source, trials in plan.groups():
        left = plan.missing(trials, standing)
        if left:
            if source.key not in samples:
                samples[source.key] = _sample(source, left[0].splits)
            groups.append((victim, source, left))
            initial.append(_prepare(victim, samples[source.key], results))
    if groups:
        results.objects.check()
    return Missing(tuple(groups), tuple(initial), standing)


def run_missing(run: Run, missing: Missing) -> Summary:
    """Do what is missing of a plan; to be called inside a Ray session unless the resources are local.

    Every finished step is one write of its rows, so a run may be stopped or killed at any time and started
    again: it goes on with what is missing. Failed trials are written to ``failures`` and the rest goes on.

    Raises:
        ConfigError: If the cluster cannot hold the replicas or workers.
        StoppedError: If the run was asked to stop.
        ClusterError: If the replicas could not be kept alive.
        RunError: If the store failed.
    """
    failed = 0
    wanted = run.resources
    if wanted.kind == "ray" and not wanted.may_grow:  # before anything is trained or written
        expect_room("replicas", wanted.replicas, cpus=wanted.cpus, gpus=wanted.gpus)
        expect_room("workers", wanted.workers, cpus=wanted.cpus, gpus=wanted.gpus)
    asked = sum(len(trials) for _, _, trials in missing.groups)
    images: dict[str, ImageSet] = {}
    decoded = ""
    try:
        with noting(run.results.objects, run.plan.grid.name, asked) as note:
            for (victim, source, trials), initial in zip(missing.groups, missing.initial, strict=True):
                if source.key != decoded:
                    images = {split: source.images(split) for split in _splits(source, trials[0].splits)}
                    decoded = source.key
                failed += _run_group(run, victim, images, trials, initial, missing.standing, note)
    except StoreError as error:
        raise RunError(f"{error}; what is finished stays, and the same command goes on from there") from error
    return Summary(asked - failed, len(run.plan.trials) - asked, failed)


def _run_group(
    run: Run,
    victim: Victim,
    images: Mapping[str, ImageSet],
    trials: Sequence[TrialStep],
    initial: Classifier | None,
    standing: Set[tuple[str, str]],
    note: Noting,
) -> int:
    """Run the trials that share a classifier and a data set; return how many failed."""

    def check() -> None:
        if run.stop.is_set():
            raise StoppedError(STOPPED)

    try:
        classifier = _obtain(run, victim, images, initial, check)
    except (UserError, ClusterError, StoppedError):
        raise
    except Exception as error:
        _write_failure(run, victim.key, "train", error)
        return len(trials)
    check_fits(classifier, images["train"])
    decks = {split: images[split] for split in {*(trial.made_on for trial in trials), "train", *trials[0].splits}}
    with open_pool(classifier, decks, run.resources, check, run.plan.grid.arithmetic) as pool:
        return _run_trials(run, Arena(_Stoppable(pool, check), decks), classifier, trials, standing, note)


def _splits(source: Source, judged: Sequence[str]) -> list[str]:
    """Return the splits that a grid needs of a data set: to train on, to choose by, to judge on."""
    return sorted({"train", *judged} | {"val", ATTACKER} & set(source.dealt.splits()))


def _sample(source: Source, judged: Sequence[str]) -> ImageSet:
    """Decode all that a grid needs of a data set, and return two images that stand for it.

    Raises:
        DataError: If a picture is damaged or of another size than the others.
    """
    kept = {split: source.images(split) for split in _splits(source, judged)}
    sizes = {split: f"{images.size[0]}x{images.size[1]} px" for split, images in kept.items()}
    if len(set(sizes.values())) > 1:
        came = ", ".join(f"{split} {size}" for split, size in sizes.items())
        raise DataError(f"{source.name}: expected splits of one size, got {came}; name a 'size' to bring them to")
    return kept["train"].select(np.arange(min(2, len(kept["train"]))))


def _prepare(victim: Victim, sample: ImageSet, results: Results) -> Classifier | None:
    """Find out before anything is written whether a classifier can be had; None: it is in the store."""
    if victim.train is None:
        assert victim.reference is not None
        classifier = load_for(victim.reference, sample)
        check_fits(classifier, sample)
        return classifier
    if results.objects.exists(_model_key(victim)):
        return None
    return initial_classifier(victim.train, sample)


def _model_key(victim: Victim) -> str:
    return f"models/{victim.key}.safetensors"


def _obtain(
    run: Run,
    victim: Victim,
    images: Mapping[str, ImageSet],
    prepared: Classifier | None,
    check: Callable[[], None],
) -> Classifier:
    """Return the classifier: given, out of the store, or trained now and stored."""
    if victim.train is None:
        assert prepared is not None
        return prepared
    objects, key = run.results.objects, _model_key(victim)
    if prepared is None or objects.exists(key):
        return load_classifier(f"{objects.uri}/{key}")
    run.watcher.to_train(victim)
    classifier, scores = train_classifier(
        victim.train, images, prepared, run.resources, lambda report: run.watcher.training(victim, report), check
    )
    if objects.exists(key):  # another run was faster; where training is not exact, all trials go by one classifier
        return load_classifier(f"{objects.uri}/{key}")
    for split, one in scores.items():
        rows_of = classifier_rows(classifier, one, split=split)
        run.results.write_rows("classifiers", run.plan.grid.name, f"{victim.key}-{split}", rows_of)
    save_classifier(classifier, f"{objects.uri}/{key}")
    run.watcher.trained(victim, classifier)
    return classifier


@dataclass(frozen=True, slots=True)
class _Stoppable:
    """A pool that serves until the run is asked to stop: between two rounds, not two measurements."""

    pool: ReplicaPool
    check: Callable[[], None]

    def gradient(
        self, v: Tensor, batches: Sequence[Batch], objective: Objective, along: Tensor | None = None
    ) -> PartialUpdate:
        self.check()
        return self.pool.gradient(v, batches, objective, along)

    def logits(
        self, v: Tensor | None, batches: Sequence[Batch], rendering: Rendering | None = None
    ) -> NDArray[np.float32]:
        self.check()
        return self.pool.logits(v, batches, rendering)

    def visit(self, v: Tensor, batch: Batch, how: Visiting, ahead: Ahead) -> Visit:
        self.check()
        return self.pool.visit(v, batch, how, ahead)

    def population(self, vs: Sequence[Tensor], batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        self.check()
        return self.pool.population(vs, batches)


def _run_trials(
    run: Run,
    arena: Arena,
    classifier: Classifier,
    trials: Sequence[TrialStep],
    standing: Set[tuple[str, str]],
    note: Noting,
) -> int:
    """Run trials, some at a time and those of a curve one after another; return how many failed."""
    failed = 0
    waiting = deque(iter(chain) for chain in chains(trials))
    with ThreadPoolExecutor(run.resources.concurrency) as threads:
        under_way: dict[Future[None], tuple[TrialStep, Iterator[TrialStep]]] = {}
        try:
            while True:
                while waiting and len(under_way) < run.resources.concurrency:
                    chain = waiting.popleft()
                    if (step := next(chain, None)) is not None:
                        begun = threads.submit(run_trial, run, arena, classifier, step, standing)
                        under_way[begun] = (step, chain)
                        note.begun()
                if not under_way:
                    return failed
                for ended in wait(under_way, return_when=FIRST_COMPLETED).done:
                    step, chain = under_way.pop(ended)
                    waiting.appendleft(chain)
                    try:
                        ended.result()
                    except (UserError, ClusterError, StoppedError):
                        raise
                    except Exception as error:
                        failed += 1
                        kind = "evaluate" if run.results.has_array(step.trial_id) else "perturb"
                        _write_failure(run, step.trial_id, kind, error)
                    note.done()
        except BaseException:
            run.stop.set()
            raise


def _write_failure(run: Run, key: str, kind: str, error: Exception) -> None:
    """Keep why a step failed; the attempt counts the failures of that step before."""
    grid = run.plan.grid.name
    attempt = 1 + sum(name.startswith(f"{key}-") for _, name in run.results.keys("failures"))
    run.results.write_rows(
        "failures",
        grid,
        f"{key}-{attempt}",
        [
            {
                "trial_id": key,
                "step": kind,
                "error": type(error).__name__,
                "message": str(error).strip() or type(error).__name__,
                "attempt": attempt,
                "at": datetime.now(UTC),
            }
        ],
    )
    run.watcher.failed(key, str(error))
