"""The trials of a run that share a classifier and a data set: the classifier is had, replicas come, trials run."""

from collections import deque
from collections.abc import Iterator, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock

from uapray.arena import Arena
from uapray.data.dataset import ATTACKER
from uapray.data.images import ImageSet
from uapray.errors import ClusterError, DataError, StoppedError, UserError
from uapray.filtered import filtered
from uapray.models.card import Classifier, check_fits
from uapray.obtain import obtain
from uapray.on_ray.pool import RayPool
from uapray.plan import chains
from uapray.pool import ReplicaPool
from uapray.resources import open_pool
from uapray.run import Run
from uapray.shelf import Shelf
from uapray.sources import Source
from uapray.steps import TrialStep
from uapray.stoppable import StoppablePool
from uapray.store.runs import Noting
from uapray.trial_step import judge_transfer, run_trial
from uapray.victims import Victim

STOPPED = "stopped; what is finished stays, and the same command goes on from here"
_THREADS = 256


@dataclass(frozen=True, slots=True)
class Group:
    """Trials on the same classifier and the same images.

    Attributes:
        victim: The classifier.
        source: The data set.
        trials: Those that are missing.
        standing: Table and key of the judgements that stand.
        transfer: Whether the trials were made on other classifiers and are only judged on this one.
    """

    victim: Victim
    source: Source
    trials: tuple[TrialStep, ...]
    standing: Set[tuple[str, str]]
    transfer: bool = False

    @property
    def splits(self) -> list[str]:
        """The splits that are needed: to train on, to choose by, to judge on."""
        return splits_of(self.source, self.trials[0].splits)


@dataclass(slots=True)
class Floor:
    """The replicas of all groups that run now, those that harden a classifier included; threads share it.

    Attributes:
        pools: Of the groups that have replicas, one each at a time.
        lost: Replicas lost by groups that have ended.
        dealt_again: Requests dealt a second time by groups that have ended.
    """

    pools: list[RayPool] = field(default_factory=list)
    lost: int = 0
    dealt_again: int = 0
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def entered(self, pool: ReplicaPool) -> Iterator[None]:
        """Count the replicas of a group inside the block."""
        mine = [pool] if isinstance(pool, RayPool) else []
        with self._lock:
            self.pools.extend(mine)
        try:
            yield
        finally:
            with self._lock:
                for one in mine:
                    self.pools.remove(one)
                    self.lost, self.dealt_again = self.lost + one.lost, self.dealt_again + one.dealt_again

    def totals(self) -> dict[str, float]:
        """Return what the metrics say of replicas."""
        with self._lock:
            replicas, busy = (sum(getattr(pool, name) for pool in self.pools) for name in ("size", "busy"))
            return {
                "uapray_replicas": replicas,
                "uapray_replicas_busy_share": busy / replicas if replicas else 0.0,
                "uapray_replicas_lost": self.lost + sum(pool.lost for pool in self.pools),
                "uapray_retries": self.dealt_again + sum(pool.dealt_again for pool in self.pools),
            }

    def grow(self, replicas: int) -> None:
        """Let each group have that many replicas at least."""
        with self._lock:
            for pool in self.pools:
                pool.grow(replicas)


def run_group(run: Run, group: Group, shelf: Shelf, floor: Floor, note: Noting, had: Future[None]) -> int:
    """Run the trials of a group; return how many failed. ``had`` is done as soon as it has its classifier.

    Raises:
        StoppedError: If the run was asked to stop.
        ClusterError: If the replicas could not be kept alive.
        StoreError: If the store failed.
    """

    def check() -> None:
        if run.stop.is_set():
            raise StoppedError(STOPPED)

    with shelf.taken(group.source, group.splits) as held:
        check()
        try:
            bare = obtain(run, group.victim, held, group.trials[0].splits, shelf, check, floor.entered)
            rendering = group.victim.filter
            classifier = bare if rendering is None else filtered(bare, rendering)
            had.set_result(None)
        except (UserError, ClusterError, StoppedError):
            raise
        except Exception as error:
            kind = "train" if group.victim.hardened is None else "harden"
            _write_failure(run, group.victim.bare_key, kind, error)
            note.failed(len(group.trials))
            return len(group.trials)
        check_fits(classifier, held.images["train"])
        made_on = set() if group.transfer else {trial.made_on for trial in group.trials}
        needed = {*made_on, "train", *group.trials[0].splits}
        decks = held.select(needed)
        replicas = open_pool(classifier, decks, run.resources, check, run.plan.grid.arithmetic)
        with replicas as pool, floor.entered(pool):
            return _run_trials(run, Arena(StoppablePool(pool, check), decks.images), classifier, group, note)


def splits_of(source: Source, judged: tuple[str, ...]) -> list[str]:
    """Return the splits that a grid needs of a data set: to train on, to choose by, to judge on."""
    return sorted({"train", *judged, *source.foreign} | {"val", ATTACKER} & set(source.dealt.splits()))


def decoded(source: Source, judged: tuple[str, ...]) -> dict[str, ImageSet]:
    """Return all that a grid needs of a data set, by split.

    Raises:
        DataError: If a picture is damaged or of another size than the others.
    """
    kept = {split: source.images(split) for split in splits_of(source, judged)}
    sizes = {split: f"{images.size[0]}x{images.size[1]} px" for split, images in kept.items()}
    if len(set(sizes.values())) > 1:
        came = ", ".join(f"{split} {size}" for split, size in sizes.items())
        raise DataError(f"{source.name}: expected splits of one size, got {came}; name a 'size' to bring them to")
    return kept


def _run_trials(run: Run, arena: Arena, classifier: Classifier, group: Group, note: Noting) -> int:
    """Run trials, some at a time and those of a curve one after another; return how many failed."""
    failed = 0
    waiting = deque(iter(chain) for chain in chains(group.trials))

    def work(step: TrialStep) -> None:
        if group.transfer:
            judge_transfer(run, arena, classifier, group.victim, step)
        else:
            run_trial(run, arena, classifier, step, group.standing)

    with ThreadPoolExecutor(_THREADS) as threads:
        under_way: dict[Future[None], tuple[TrialStep, Iterator[TrialStep]]] = {}
        try:
            while True:
                while waiting and len(under_way) < min(_THREADS, run.resources.trials_at_once(arena.pool.size)):
                    chain = waiting.popleft()
                    if (step := next(chain, None)) is not None:
                        begun = threads.submit(work, step)
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
                        judging = group.transfer or run.results.has_array(step.trial_id)
                        kind = "evaluate" if judging else "perturb"
                        _write_failure(run, step.trial_id, kind, error)
                        note.failed(1, under_way=1)
                    else:
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
