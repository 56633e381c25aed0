"""What a grid of many small trials costs beside the sum of its bare computation.

    python benchmarks/many_trials.py [--trials 200] [--cores 2]

Bare: the same searches and judgements one after another, nothing stored, in seconds of computation; a loop in a process
for each core, all at once, since cores that work together may each be slower than one alone, half before the grid and
half after it, since machines change their speed. The grid: through Ray with
a replica a core, every row and array in a local folder, in seconds of wall time times cores, from the moment that Ray
is up. Printed is the ratio; 1.0 would be a grid that costs nothing; and what a trial took of the driver's processor.
A machine may change its speed from the one to the other, so the same ratio is printed to what the replicas computed
meanwhile, in seconds of their processors.
With ``--whole`` trials are judged as a grid judges them unless told otherwise, with controls and renderings, for which
there is no bare loop: only the driver's part is printed then.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from statistics import fmean
from threading import Event, Thread

import psutil
import torch

from uapray.arena import Arena
from uapray.data.images import class_index
from uapray.experiment import find_missing, run_missing
from uapray.grid import parse_grid
from uapray.judgement import judge
from uapray.obtain import begin_with
from uapray.on_ray.session import session
from uapray.plan import plan_grid
from uapray.resources import Resources, open_pool
from uapray.run import Run
from uapray.store.results import open_results
from uapray.trial import find

GRID = """
name: many
data: [{{uri: "phantom:chest?images={images}&size={size}"}}]
classifiers: [{{architecture: {architecture}, initial_weights: random, recipe: {{base: quick, epochs: 1}}}}]
rules: [{{rule: spgd, budget: {{max_epochs: {passes}}}}}]
seeds: {seeds}
"""
LITTLE = """
control: false
control_draws: 0
renderings: []
examples: 0
"""


def main() -> None:
    """Run both, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--passes", type=float, default=2.0)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--architecture", default="small-cnn")
    parser.add_argument("--whole", action="store_true", help="judge trials as grids do unless told otherwise")
    parser.add_argument("--bare-trials", type=int, help="run so few of them bare, and count each for several")
    asked = parser.parse_args()
    torch.set_num_threads(1)

    seeds = list(range(asked.trials))
    text = GRID.format(**vars(asked), seeds=seeds)
    text += "" if asked.whole else LITTLE
    plan = plan_grid(parse_grid(text, origin="many_trials"))
    alone = plan_grid(parse_grid(text.replace(str(seeds), "[1000000]"), origin="warm up"))
    half = max(1, (asked.bare_trials or asked.trials) // 2)
    before = 0.0 if asked.whole else bare_seconds_a_trial(text, half, asked.cores)
    resources = Resources(replicas=None)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, session("local", cpus=asked.cores):
        started = time.monotonic() - begun
        results = open_results(folder)
        run_missing(Run(alone, results, resources), find_missing(alone, results))  # trains, and warms up
        begun, driver = time.monotonic(), time.process_time()
        with watched_replicas() as replicas:
            run_missing(Run(plan, results, resources), find_missing(plan, results))
        grid, driver = (time.monotonic() - begun) * asked.cores, time.process_time() - driver
    bare = 0.0 if asked.whole else asked.trials * fmean([before, bare_seconds_a_trial(text, half, asked.cores)])
    print(f"{asked.trials} trials of {plan.trials[0].image_gradients()} image-gradients, {asked.cores} cores")
    print(f"grid             {grid:8.1f} core-seconds (Ray started in {started:.1f} s before)")
    print(f"of the driver    {driver:8.1f} s of processor, {driver / asked.trials:.2f} s a trial")
    computed = sum(replicas.values())
    print(f"of the replicas  {computed:8.1f} s of processor, the grid by these {grid / computed:.2f}")
    if not asked.whole:
        print(f"bare computation {bare:8.1f} s, {bare / asked.trials:.2f} s a trial")
        print(f"ratio            {grid / bare:8.2f}")


@contextmanager
def watched_replicas() -> Iterator[dict[int, float]]:
    """Yield the processor seconds of this driver's replicas by process, kept up to date until they are gone."""
    seconds: dict[int, float] = {}
    over = Event()

    def look() -> None:
        while not over.wait(0.2):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "ray::Host" in " ".join(child.cmdline()):
                        seconds[child.pid] = child.cpu_times().user + child.cpu_times().system

    watcher = Thread(target=look)
    watcher.start()
    try:
        yield seconds
    finally:
        over.set()
        watcher.join()


def bare_seconds_a_trial(text: str, count: int, cores: int) -> float:
    """Return the seconds of computation of a trial of a grid, so many run on each of some cores at once."""
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as loops:
        return fmean(loops.map(partial(bare_seconds, text), [count] * cores)) / count


def bare_seconds(text: str, count: int) -> float:
    """Return the seconds of computation of some trials of a grid: search and judge, nothing else."""
    torch.set_num_threads(1)
    plan = plan_grid(parse_grid(text, origin="many_trials"))
    source, victim = plan.trials[0].source, plan.trials[0].victim
    images = {split: source.images(split) for split in ("train", "test")}
    with open_pool(begin_with(victim, images["train"]), images, Resources("local")) as pool:
        arena = Arena(pool, images)
        arena.clean("test")
        begun = time.process_time()
        for step in plan.trials[:count]:
            found = find(arena, step.threat, step.search, seed=step.seed)
            judge(arena, "test", found.perturbation, target=class_index(images["test"].class_names, step.threat.target))
        return time.process_time() - begun


if __name__ == "__main__":
    main()
