"""What a job script is made of: its grids, and a command line that runs one of them into a store."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uapray.errors import ConfigError, UaprayError
from uapray.grid import ClassifierEntry, Grid, SourceEntry, parse_grid

if TYPE_CHECKING:
    from uapray.plan import Plan
    from uapray.store.results import Results

RATES = """
SELECT classifier, coalesce(made_on, '–') AS "made on", coalesce(source, '–') AS "from",
       concat_ws(' ', norm, zeta) AS size, coalesce(target, 'nontargeted') AS target, rule, split, count(*) AS runs,
       printf('%.1f [%.1f, %.1f]', 100 * avg(fooling_rate), 100 * min(fooling_rate_low), 100 * max(fooling_rate_high))
         AS "fooling % [lowest, highest]",
       round(100 * avg(fooling_rate_ceiling), 1) AS "ceiling %",
       round(100 * avg(targeted_success_rate), 1) AS "targeted %",
       printf('%.1f → %.1f', 100 * avg(clean_accuracy), 100 * avg(robust_accuracy)) AS "accuracy %"
FROM trials WHERE trial_id IN ({}) GROUP BY data, classifier, made_on, source, norm, zeta, target, rule, split
ORDER BY data, classifier, "made on", "from", norm, zeta, target, rule DESC, split
"""
SPENT = """
SELECT count(*) AS searches, sum(image_gradients) AS "image-gradients", sum(image_queries) AS "image-queries",
       round(sum(wall_s)) AS "seconds of searching"
FROM (SELECT DISTINCT ON (trial_id) * FROM trials WHERE trial_id IN ({}) AND rule <> 'random')
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of experiment in two sizes; ``sys.exit(Job(…).main())`` is all that a script needs besides.

    Exit code: 0 all stands, 1 some of it failed, 2 the request cannot be served, 130 it was asked to stop.

    Attributes:
        name: Of the script.
        says: What it does, in a sentence.
        full: Grid file of the published size, for a cluster of GPUs.
        small: Grid file for minutes on two cores.
        tables: SELECTs that show what came out, with ``{}`` for the trials.
    """

    name: str
    says: str
    full: str
    small: str
    tables: tuple[str, ...] = (RATES, SPENT)

    def main(self, words: Sequence[str] | None = None) -> int:
        """Run the job; return the exit code."""
        arguments = self.parser().parse_args(words)
        try:
            return self.run(arguments)
        except UaprayError as error:
            self._say(str(error))
            return error.exit_code

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of the command line."""
        made = argparse.ArgumentParser(prog=f"{self.name}.py", description=self.says)
        made.add_argument("--data", help="Parquet file of images (docs/data.md); needed unless --grid names one")
        made.add_argument("--store", required=True, help="where results go: a folder or s3://bucket/prefix")
        which = made.add_mutually_exclusive_group()
        which.add_argument("--grid", help="a grid file instead of the built-in one; --data replaces its data set")
        which.add_argument("--small", action="store_true", help="minutes on two cores instead of the published size")
        if any(one.uri for one in self._grid(small=False).sources):
            made.add_argument(
                "--source",
                action="append",
                default=[],
                metavar="NAME=URI",
                help="images that perturbations are made from, by the name that the grid has for them; may be repeated",
            )
        made.add_argument("--weights", help="weights file to begin training with, where the grid says 'pretrained'")
        made.add_argument(
            "--replicas", type=_positive, help="of a classifier; default: all that the cluster has room for"
        )
        made.add_argument(
            "--gpus",
            type=_share,
            default=0.0,
            help="GPUs of a replica and of a training worker; 0.5: two share one",
        )
        made.add_argument("--figure", metavar="FILE", help="picture of what came out to write: .png, .svg or .pdf")
        made.add_argument("--part", help="run a part of the grid, e.g. 3/8: eight jobs share it")
        made.add_argument(
            "--drivers",
            type=_positive,
            metavar="N",
            help="run the grid in N processes, a part and --replicas each: one is full at 70 to 130 GPUs",
        )
        made.add_argument(
            "--address",
            help="Ray cluster, or 'local'; default: RAY_ADDRESS, else the one on this machine, else local",
        )
        return made

    def run(self, arguments: argparse.Namespace) -> int:
        """Do what is missing, print the tables, draw the figure."""
        from uapray.cli.drivers import as_words, check_drivers, run_drivers
        from uapray.cli.running import run_with_progress
        from uapray.experiment import Summary
        from uapray.on_ray.session import LOCAL, submitted_session
        from uapray.plan import plan_grid
        from uapray.resources import Resources
        from uapray.store.results import open_results

        if arguments.figure is not None:
            self._check_figure(arguments.figure)
        if arguments.drivers is not None:
            check_drivers(part=arguments.part, replicas=arguments.replicas, joined=arguments.address != LOCAL)
        results = open_results(arguments.store)
        grid, base = self.chosen_grid(arguments)
        plan = plan_grid(grid, base=base).part_named(arguments.part)
        summary = Summary(0, plan.count, 0)
        if plan.to_do(results.judgements()) and arguments.drivers is not None:
            with submitted_session(arguments.address) as joined:
                check_drivers(part=arguments.part, replicas=arguments.replicas, joined=joined)
            each = {name: value for name, value in vars(arguments).items() if name not in ("drivers", "part", "figure")}
            summary = run_drivers(plan, results, arguments.drivers, [sys.executable, sys.argv[0], *as_words(each)])
        elif plan.to_do(results.judgements()):
            with submitted_session(arguments.address) as joined:
                resources = Resources(replicas=arguments.replicas, gpus=arguments.gpus, may_grow=joined)
                summary = run_with_progress(plan, results, resources, arguments.address)
        self.show(plan, results)
        print(f"{summary.done} trials done, {summary.standing} stood already, {summary.failed} failed")
        if summary.failed:
            self._say(f"why: uapray status --store {arguments.store}")
        if arguments.figure is not None:
            self.draw(plan, results, arguments.figure)
        return 1 if summary.failed else 0

    def chosen_grid(self, arguments: argparse.Namespace) -> tuple[Grid, str]:
        """Return the grid that was asked for, on the images that were asked for, and what its paths are relative to.

        Raises:
            ConfigError: If no data set is named, or the grid is wrong.
        """
        if arguments.grid is None:
            if arguments.data is None:
                raise ConfigError("expected --data URI: the images to attack, e.g. --data s3://bucket/images.parquet")
            grid, base = self._grid(small=arguments.small), ""
        else:
            from uapray.objects import read_uri

            grid = parse_grid(read_uri(arguments.grid), origin=arguments.grid)
            base = arguments.grid.rpartition("/")[0]
        changes: dict[str, object] = {}
        if arguments.weights is not None:
            changes["classifiers"] = tuple(_begun_with(one, _from_here(arguments.weights)) for one in grid.classifiers)
        if arguments.grid is None and hasattr(arguments, "source"):
            changes["sources"] = self._sources(grid, arguments.source)
        if arguments.data is not None:
            if len(grid.data) != 1:
                raise ConfigError(
                    f"--data: expected a grid with one data set to replace, {arguments.grid} has {len(grid.data)}"
                )
            changes["data"] = (grid.data[0].model_copy(update={"uri": _from_here(arguments.data)}),)
        return grid.model_copy(update=changes), base

    def show(self, plan: "Plan", results: "Results") -> None:
        """Print what the trials of a plan gave, and what that says of the published claims."""
        from uapray.cli.harden import show_defence
        from uapray.cli.verdict import left_out
        from uapray.defence import defences
        from uapray.query import format_table, query
        from uapray.verdict import verdicts

        ids = ", ".join(f"'{trial.trial_id}'" for trial in plan.trials)
        for table in self.tables:
            print(format_table(query(results, table.format(ids)), "table").decode())
        for defence in defences(results, grid=plan.grid.name):
            show_defence(defence, defence.classifier)
        said = verdicts(results, grid=plan.grid.name)
        for one in said:
            if one.answer != "not enough data":
                print(f"({one.claim}) {one.says}: {one.answer}")
        for line in left_out(said):
            print(line)

    def draw(self, plan: "Plan", results: "Results", uri: str) -> None:
        """Draw what the trials of a plan gave into a file.

        Raises:
            StoreError: If they gave nothing to draw.
        """
        from uapray.objects import write_uri
        from uapray.report.charts import draw
        from uapray.report.figures import chart, file_ending

        ending = file_ending(self.name, uri)
        write_uri(uri, draw(chart(results, self.name, [trial.trial_id for trial in plan.trials]), ending))

    def _check_figure(self, uri: str) -> None:
        from uapray.objects import check_uri
        from uapray.report.figures import file_ending

        file_ending(self.name, uri)
        check_uri(uri)

    def _grid(self, *, small: bool) -> Grid:
        return parse_grid(self.small if small else self.full, origin=f"{self.name}: built-in grid")

    def _sources(self, grid: Grid, given: Sequence[str]) -> tuple[SourceEntry, ...]:
        """Return the sources of a grid that are given, where they are given; a name may have several entries."""
        named = dict(one.partition("=")[::2] for one in given)
        known = sorted({str(one.name) for one in grid.sources if one.uri is not None})
        for name, uri in named.items():
            if name not in known or not uri:
                raise ConfigError(f"--source: expected NAME=URI with a name of {', '.join(known)}, got {name}={uri}")
        if not named:
            raise ConfigError(f"expected --source NAME=URI for one or more of {', '.join(known)}")
        return tuple(
            one if one.uri is None else one.model_copy(update={"uri": _from_here(named[str(one.name)])})
            for one in grid.sources
            if one.uri is None or one.name in named
        )

    def _say(self, message: str) -> None:
        print(f"{self.name}: {message}", file=sys.stderr, flush=True)


def _begun_with(entry: ClassifierEntry, weights: str) -> ClassifierEntry:
    """Return a classifier whose training begins with a file instead of with weights from a hub."""
    pretrained = entry.architecture is not None and entry.initial_weights == "pretrained"
    return entry.model_copy(update={"initial_weights": weights}) if pretrained else entry


def _from_here(uri: str) -> str:
    """Return a path as seen from anywhere; other URIs stay."""
    return os.path.abspath(uri) if ":" not in uri.split("/")[0] else uri


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
