"""Joins plan, replicas and store: what the command line and a job script call."""

from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

from uapray.data.images import ImageSet
from uapray.errors import RunError, StoppedError, StoreError
from uapray.group import Floor, Group, decoded, run_group
from uapray.obtain import begin_with, model_key, sample_of
from uapray.on_ray.metrics import Metrics
from uapray.on_ray.session import expect_room
from uapray.plan import Plan
from uapray.query import query
from uapray.resources import room, share_out
from uapray.run import Run
from uapray.shelf import Shelf
from uapray.store.results import Results
from uapray.store.runs import Noting, noting

LOOK_S = 2.0  # between two looks at what the cluster has


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
        groups: The trials that are missing, by classifier and data set.
        transfers: The perturbations that are to be judged on classifiers they were not made on, when those stand.
        decoded: Images of the data set that is wanted first, by its key; who takes them removes them.
    """

    groups: tuple[Group, ...]
    transfers: tuple[Group, ...] = ()
    decoded: dict[str, dict[str, ImageSet]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many trials that is."""
        return sum(len(group.trials) for group in (*self.groups, *self.transfers))


def find_missing(plan: Plan, results: Results) -> Missing:
    """Find out what is to be done, and that it can be: every picture decodes, every classifier fits. Writes nothing.

    Raises:
        UserError: If the store, a data set or a classifier does not fit.
    """
    standing = results.judgements()
    searches = (Group(victim, source, plan.missing(mine, standing), standing) for victim, source, mine in plan.groups())
    groups = tuple(group for group in searches if group.trials)
    transfers = tuple(Group(*one, standing, transfer=True) for one in plan.transfers(standing))
    samples: dict[str, ImageSet] = {}
    kept: dict[str, dict[str, ImageSet]] = {}
    for group in {(one.victim.key, one.source.key): one for one in (*groups, *transfers)}.values():
        source, victim = group.source, group.victim
        if source.key not in samples:
            images = decoded(source, group.trials[0].splits)
            samples[source.key] = sample_of(images["train"])
            if not kept:
                kept[source.key] = images
        if not results.objects.exists(model_key(victim)):
            begin_with(victim, samples[source.key])
    if samples:
        results.objects.check()
    return Missing(groups, transfers, kept)


def run_missing(run: Run, missing: Missing) -> Summary:
    """Do what is missing of a plan; to be called inside a Ray session unless the resources are local.

    Several classifiers run side by side as far as the cluster has room. Every finished step is one write of its rows,
    so a run may be stopped or killed at any time and started again: it goes on with what is missing. Failed trials
    are written to ``failures`` and the rest goes on.

    Raises:
        ConfigError: If the cluster cannot hold the replicas or workers.
        StoppedError: If the run was asked to stop.
        ClusterError: If the replicas could not be kept alive.
        RunError: If the store failed.
    """
    wanted = run.resources
    if wanted.kind == "ray" and not wanted.may_grow:  # before anything is trained or written
        expect_room("replicas", wanted.replicas or 1, cpus=wanted.cpus, gpus=wanted.gpus)
        expect_room("workers", wanted.workers, cpus=wanted.cpus, gpus=wanted.gpus)
    asked = missing.count
    every = (*missing.groups, *missing.transfers)
    shelf = Shelf(wanted, [group.source.key for group in every], missing.decoded)
    try:
        with noting(run.results.objects, run.plan.grid.name, asked, run.plan.share) as note:
            failed = _side_by_side(run, missing.groups, shelf, note)
            failed += _side_by_side(run, missing.transfers, shelf, note)
    except StoreError as error:
        raise RunError(f"{error}; what is finished stays, and the same command goes on from there") from error
    return Summary(asked - failed, run.plan.count - asked, failed)


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """A group that runs beside others.

    Attributes:
        lineage: Keys of its classifier and of those that this is made from.
        had: Done as soon as the group has its classifier.
    """

    lineage: frozenset[str]
    had: Future[None] = field(default_factory=Future)


def next_group(waiting: Iterable[Group], lanes: Iterable[Lane]) -> Group | None:
    """Return the first group that would not wait for a classifier which another group is making now; None if all would.

    A group that waits for another's training would hold a place where a third could use its replicas.
    """
    made_now = frozenset[str]().union(*(lane.lineage for lane in lanes if not lane.had.done()))
    return next((group for group in waiting if made_now.isdisjoint(group.victim.lineage)), None)


def _side_by_side(run: Run, groups: Sequence[Group], shelf: Shelf, note: Noting) -> int:
    """Run groups, as many at a time as there is room for; return how many trials failed.

    Where more machines may come, one group more begins whenever all that began have a replica: what it waits for is
    what brings the machines.
    """
    wanted, failed, errors = run.resources, 0, list[BaseException]()
    run = replace(run, watcher=replace(run.watcher, spent=note.spent, unkept=note.unkept))
    metrics = Metrics(run.plan.grid.name) if wanted.kind == "ray" else None
    floor = Floor()
    waiting, lanes = list(groups), dict[Future[int], Lane]()
    with ThreadPoolExecutor(max(1, len(groups))) as threads:
        try:
            while waiting or lanes:
                at_once, replicas = share_out(wanted, room(wanted), len(waiting) + len(lanes))
                mine = replace(run, resources=replace(wanted, replicas=replicas))
                while (group := next_group(waiting, lanes.values())) is not None and (
                    len(lanes) < at_once or (wanted.may_grow and len(lanes) == len(floor.pools))
                ):
                    waiting.remove(group)
                    lane = Lane(group.victim.lineage)
                    lanes[threads.submit(run_group, mine, group, shelf, floor, note, lane.had)] = lane
                if not waiting and wanted.replicas is None:
                    floor.grow(replicas)
                news: list[Future[Any]] = [*lanes, *(lane.had for lane in lanes.values() if not lane.had.done())]
                wait(news, timeout=LOOK_S, return_when=FIRST_COMPLETED)
                ended = [one for one in lanes if one.done()]
                note.replicas(floor.totals())
                if metrics is not None:
                    metrics.show(note.now.totals())
                for one in ended:
                    del lanes[one]
                    if (error := one.exception()) is None:
                        failed += one.result()
                    else:
                        errors.append(error)
                        run.stop.set()
                        waiting.clear()
        except BaseException:
            run.stop.set()
            raise
    if errors:  # of a group that failed the others were stopped: that is not what is to be told
        raise min(errors, key=lambda error: isinstance(error, StoppedError))
    return failed
