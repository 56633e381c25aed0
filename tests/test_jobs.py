"""The first job: its command line, its grid, and one run of it as a process of its own."""

import os
import re
import runpy
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uapray.cli.drivers import as_words
from uapray.errors import ConfigError
from uapray.grid import Grid, parse_grid
from uapray.models.recipe import RECIPES
from uapray.models.zoo import PAPERS
from uapray.store.results import open_results

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "jobs/chest_xray.py"
GRID_FILE = ROOT / "jobs/chest_xray.yaml"


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def parsed(job: dict[str, Any]) -> Callable[..., Namespace]:
    parser: ArgumentParser = job["JOB"].parser()
    return lambda *words: parser.parse_args(["--store", "results", *words])


@pytest.fixture
def chosen(job: dict[str, Any], parsed: Callable[..., Namespace]) -> Callable[..., tuple[Grid, str]]:
    return lambda *words: job["JOB"].chosen_grid(parsed(*words))


class TestGrid:
    def test_script_and_file_ask_for_the_same(self, job: dict[str, Any]) -> None:
        assert parse_grid(job["FULL"], origin="script") == parse_grid(GRID_FILE.read_text(), origin="file")

    def test_full_is_the_papers(self, job: dict[str, Any]) -> None:
        grid = parse_grid(job["FULL"], origin="script")
        assert tuple(one.architecture for one in grid.classifiers) == PAPERS
        for one in grid.classifiers:
            assert (one.initial_weights, one.recipe) == ("pretrained", RECIPES["papers"])
        assert grid.data[0].size == 299
        assert (grid.norms, grid.zetas, grid.seeds) == (("linf", "l2"), (0.04,), (0, 1, 2))
        assert grid.targets == ("nontargeted", "all")
        assert [search.rule for search in grid.searches()] == ["aimed-ascent", "random"]

    def test_small_is_small(self, job: dict[str, Any]) -> None:
        grid = parse_grid(job["SMALL"], origin="script")
        (classifier,) = grid.classifiers
        assert (classifier.architecture, classifier.initial_weights) == ("small-cnn", "random")
        assert classifier.recipe == RECIPES["quick"]
        assert grid.data[0].size == 96
        assert (grid.norms, grid.zetas, grid.seeds) == (("linf",), (0.04,), (0,))
        assert grid.targets == ("nontargeted", "all")

    def test_rows_of_both_keep_apart(self, job: dict[str, Any]) -> None:
        names = {parse_grid(job[name], origin="script").name for name in ("FULL", "SMALL")}
        assert len(names) == 2


class TestChoice:
    @pytest.mark.parametrize("uri", ["s3://bucket/chest.parquet", "phantom:chest?images=48", "/data/chest.parquet"])
    def test_data_takes_the_place_of_the_grids_own(self, chosen: Callable[..., tuple[Grid, str]], uri: str) -> None:
        grid, base = chosen("--data", uri, "--small")
        assert (grid.data[0].uri, grid.data[0].size, base) == (uri, 96, "")

    def test_relative_data_is_relative_to_where_the_job_runs(self, chosen: Callable[..., tuple[Grid, str]]) -> None:
        grid, _ = chosen("--data", "chest.parquet", "--grid", str(GRID_FILE))
        assert grid.data[0].uri == os.path.abspath("chest.parquet")
        assert grid.data[0].size == 299

    def test_a_grid_file_brings_its_own_data(self, chosen: Callable[..., tuple[Grid, str]]) -> None:
        grid, base = chosen("--grid", str(GRID_FILE))
        assert grid == parse_grid(GRID_FILE.read_text(), origin="file")
        assert base == str(GRID_FILE.parent)

    def test_no_data_at_all_is_said_in_a_line(self, chosen: Callable[..., tuple[Grid, str]]) -> None:
        with pytest.raises(ConfigError, match=r"expected --data URI"):
            chosen()

    def test_one_data_set_cannot_replace_two(self, chosen: Callable[..., tuple[Grid, str]], tmp_path: Path) -> None:
        two = tmp_path / "two.yaml"
        two.write_text("{name: two, data: [{uri: a}, {uri: b}], classifiers: [{architecture: tiny-cnn}]}")
        with pytest.raises(ConfigError, match=r"two\.yaml has 2"):
            chosen("--grid", str(two), "--data", "c")


class TestCommandLine:
    def test_defaults(self, parsed: Callable[..., Namespace]) -> None:
        arguments = parsed("--data", "x")
        assert (arguments.replicas, arguments.gpus, arguments.address) == (None, 0.0, None)
        assert (arguments.small, arguments.grid) == (False, None)

    @pytest.mark.parametrize(
        "words",
        [
            ["--replicas", "0"],
            ["--replicas", "two"],
            ["--gpus", "-1"],
            ["--gpus", "nan"],
            ["--small", "--grid", "x.yaml"],
            ["--reps", "2"],
        ],
    )
    def test_nonsense_is_refused(
        self, parsed: Callable[..., Namespace], words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            parsed("--data", "x", *words)
        assert ended.value.code == 2
        assert "Traceback" not in capsys.readouterr().err

    def test_a_mistake_is_one_line_and_exit_code_2(
        self, job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = tmp_path / "store"
        assert job["JOB"].main(["--store", str(store), "--data", str(tmp_path / "nothing.parquet"), "--small"]) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("chest_xray: ")
        assert len(said.splitlines()) <= 2
        assert not store.exists()

    def test_a_part_that_is_none_is_refused(
        self, job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = tmp_path / "store"
        words = ["--store", str(store), "--data", "phantom:chest?images=48", "--small", "--part", "3/2"]
        assert job["JOB"].main(words) == 2
        assert "--part: expected NUMBER/PARTS" in capsys.readouterr().err
        assert not store.exists()

    def test_several_drivers_are_given_the_same_words(self, parsed: Callable[..., Namespace]) -> None:
        once = parsed(
            "--data", "x y", "--small", "--replicas", "4", "--gpus", "0.5", "--figure", "a.png", "--drivers", "2"
        )
        each = {name: value for name, value in vars(once).items() if name != "drivers"}
        assert vars(parsed(*as_words(each))) == vars(once) | {"drivers": None}
        assert as_words({"source": ["a=b", "c=d"], "cpus": None}) == ["--source", "a=b", "--source", "c=d"]

    @pytest.mark.parametrize(
        ("more", "expected"),
        [
            ([], "--drivers: expected --replicas too"),
            (["--replicas", "1"], "--drivers: expected a cluster that they share"),
            (["--replicas", "1", "--part", "1/2"], "--drivers: each has a part of the grid"),
        ],
    )
    def test_drivers_that_lack_something_are_refused(
        self, job: dict[str, Any], tmp_path: Path, more: list[str], expected: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = tmp_path / "store"
        words = ["--store", str(store), "--data", "phantom:chest?images=48", "--small", "--drivers", "2"]
        assert job["JOB"].main([*words, "--address", "local", *more]) == 2
        assert expected in capsys.readouterr().err
        assert not store.exists()

    def test_every_command_that_is_shown_is_one_it_takes(self, job: dict[str, Any]) -> None:
        names = ("ray-cluster.yaml", "cluster/on-premise.yaml", "docs/clusters.md")
        text = SCRIPT.read_text() + "".join((ROOT / name).read_text() for name in names)
        shown = re.findall(r"chest_xray\.py(?: --)?((?: +--\w\S*(?: +[^-|\s]\S*)?)+)", text)
        assert len(shown) >= 6
        for words in shown:
            job["JOB"].parser().parse_args(re.sub('["`]', "", words).split())


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_leaves_rows_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    """As `ray submit` runs it: the file alone, copied elsewhere, in a process of its own."""
    alone = tmp_path / "chest_xray.py"
    alone.write_text(SCRIPT.read_text())
    store = tmp_path / "store"
    words = ["--small", "--data", "phantom:chest?images=72&size=96", "--store", str(store)]
    words += ["--replicas", "1", "--address", "local"]

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(alone), *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=540)

    first = run()
    assert first.returncode == 0, first.stderr
    rows = open_results(str(store)).rows("trials", "chest-xray-small").to_pylist()
    targets = (None, "CLEAR", "OPACITY", "EFFUSION")
    assert {(row["rule"], row["target"]) for row in rows} == {
        (rule, target) for rule in ("aimed-ascent", "random") for target in targets
    }
    assert {row["split"] for row in rows} == {"test"}
    assert "8 trials done, 0 stood already, 0 failed" in first.stdout
    assert "fooling %" in first.stdout
    assert "grid chest-xray-small: 100% 8 of 8 trials" in first.stderr

    second = run()
    assert second.returncode == 0, second.stderr
    assert "0 trials done, 8 stood already, 0 failed" in second.stdout
    assert open_results(str(store)).rows("trials").num_rows == len(rows)
