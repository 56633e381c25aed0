"""One run: the chest X-ray evaluation of the papers, from images to rows in a store.

    ray submit ray-cluster.yaml jobs/chest_xray.py -- --data s3://… --store s3://… --gpus 1
    ray job submit --working-dir . -- python jobs/chest_xray.py --data s3://… --store s3://… --gpus 1
    python jobs/chest_xray.py --data "phantom:chest" --store results/ --small

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
Exit code: 0 all stands, 1 some of it failed, 2 the request cannot be served, 130 it was asked to stop.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from uapray.errors import ClusterError, ConfigError, UaprayError
from uapray.grid import Grid, parse_grid

if TYPE_CHECKING:
    from uapray.plan import Plan
    from uapray.store.results import Results

FULL = """
name: chest-xray
data: [{uri: chest_xray.parquet, size: 299}]
classifiers:
  - architecture: inception_v3
  - architecture: vgg16
  - architecture: vgg19
  - architecture: resnet50
  - architecture: inception_resnet_v2
  - architecture: densenet121
  - architecture: densenet169
norms: [linf, l2]
zetas: [0.04]
targets: [nontargeted, all]
rules: [aimed-ascent]
seeds: [0, 1, 2]
"""

SMALL = """
name: chest-xray-small
data: [{uri: chest_xray.parquet, size: 96}]
classifiers:
  - {architecture: small-cnn, initial_weights: random, recipe: quick}
norms: [linf]
zetas: [0.04]
targets: [nontargeted, all]
rules: [aimed-ascent]
seeds: [0]
"""

TABLE = """
SELECT data, classifier, norm, zeta, coalesce(target, 'nontargeted') AS target, rule, split, count(*) AS runs,
       round(100 * avg(fooling_rate), 1) AS "fooling %",
       round(100 * min(fooling_rate_low), 1) AS "lowest",
       round(100 * max(fooling_rate_high), 1) AS "highest",
       round(100 * avg(fooling_rate_ceiling), 1) AS "ceiling %",
       round(100 * avg(targeted_success_rate), 1) AS "targeted %",
       round(100 * avg(clean_accuracy), 1) AS "accuracy %",
       round(100 * avg(robust_accuracy), 1) AS "perturbed %"
FROM trials WHERE trial_id IN ({}) GROUP BY ALL
ORDER BY data, classifier, norm, zeta, target, rule DESC, split
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run the job; return the exit code."""
    arguments = parser().parse_args(words)
    try:
        return run(arguments)
    except UaprayError as error:
        _say(str(error))
        return error.exit_code


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="chest_xray.py",
        description="Attack chest X-ray classifiers with one perturbation for all images, into a store.",
    )
    made.add_argument("--data", help="Parquet file of images (docs/data.md); needed unless --grid names one")
    made.add_argument("--store", required=True, help="where results go: a folder or s3://bucket/prefix")
    which = made.add_mutually_exclusive_group()
    which.add_argument("--grid", help="a grid file instead of the built-in one; --data replaces its data set")
    which.add_argument("--small", action="store_true", help="a small CNN at 96 px: minutes on two cores")
    made.add_argument("--replicas", type=_positive, help="of a classifier; default: all that the cluster has room for")
    made.add_argument(
        "--gpus",
        type=_share,
        default=0.0,
        help="GPUs of a replica and of a training worker; 0.5: two share one",
    )
    made.add_argument("--part", help="run a part of the grid, e.g. 3/8: eight jobs share it")
    made.add_argument(
        "--address",
        help="Ray cluster, or 'local'; default: RAY_ADDRESS, else the one on this machine, else local",
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    """Do what is missing and print the table."""
    from uapray.cli.running import run_with_progress
    from uapray.experiment import Summary, standing_rows
    from uapray.plan import plan_grid
    from uapray.resources import Resources
    from uapray.store.results import open_results

    results = open_results(arguments.store)
    grid, base = chosen_grid(arguments)
    plan = plan_grid(grid, base=base).part_named(arguments.part)
    summary = Summary(0, plan.count, 0)
    if plan.to_do(standing_rows(results)):
        with connected(arguments.address) as joined:
            resources = Resources(replicas=arguments.replicas, gpus=arguments.gpus, may_grow=joined)
            summary = run_with_progress(plan, results, resources, arguments.address)
    show(plan, results)
    print(f"{summary.done} trials done, {summary.standing} stood already, {summary.failed} failed")
    if summary.failed:
        _say(f"why: uapray status --store {arguments.store}")
    return 1 if summary.failed else 0


def chosen_grid(arguments: argparse.Namespace) -> tuple[Grid, str]:
    """Return the grid that was asked for, on the data that was asked for, and what its paths are relative to.

    Raises:
        ConfigError: If no data set is named, or the grid is wrong.
    """
    if arguments.grid is None:
        if arguments.data is None:
            raise ConfigError("expected --data URI: the images to attack, e.g. --data s3://bucket/chest_xray.parquet")
        grid, base = parse_grid(SMALL if arguments.small else FULL, origin="built-in grid"), ""
    else:
        from uapray.objects import read_uri

        grid = parse_grid(read_uri(arguments.grid), origin=arguments.grid)
        base = arguments.grid.rpartition("/")[0]
    if arguments.data is None:
        return grid, base
    if len(grid.data) != 1:
        raise ConfigError(
            f"--data: expected a grid with one data set to replace, {arguments.grid} has {len(grid.data)}"
        )
    local = ":" not in arguments.data.split("/")[0]
    uri = os.path.abspath(arguments.data) if local else arguments.data
    return grid.model_copy(update={"data": (grid.data[0].model_copy(update={"uri": uri}),)}), base


@contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Be connected to a cluster inside the block; yield whether it was there before, and so may grow.

    To that of ``address``; without one to that of RAY_ADDRESS (Ray sets it in a job), else to the one that
    runs on this machine (the head, after ``ray submit``), else to a Ray of its own.

    Raises:
        ClusterError: If the cluster does not answer.
    """
    import ray

    from uapray.on_ray.session import LOCAL, session

    if address is not None:
        with session(address):
            yield address != LOCAL
        return
    init = partial(ray.init, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        try:  # without an address `ray.init` looks in just that order, and takes resources only for one of its own
            init(resources={})
            joined = False
        except ValueError:
            init()
            joined = True
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"Ray did not answer: {error}; name a cluster with --address, or 'local' for one of its own"
        ) from error
    try:
        yield joined
    finally:
        ray.shutdown()


def show(plan: "Plan", results: "Results") -> None:
    """Print the table of a plan's trials, the seeds of each together."""
    from uapray.query import format_table, query

    ids = ", ".join(f"'{trial.trial_id}'" for trial in plan.trials)
    print(format_table(query(results, TABLE.format(ids)), "table").decode())


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"expected a number of GPUs, 0 or more, got {text!r}")
    return value


def _say(message: str) -> None:
    print(f"chest_xray: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
