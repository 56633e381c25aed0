"""Compaction keeps every row, once, whoever reads, writes, compacts beside it or kills it."""

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from steps import finish
from test_half_steps import blank

from uapray.errors import StoreError
from uapray.objects import Objects
from uapray.query import query
from uapray.store.compaction import compact, grids
from uapray.store.files import encode
from uapray.store.results import Results, open_results
from uapray.store.schema import TABLES

REAL = pytest.mark.parametrize("place", ["local", pytest.param("seaweedfs", marks=pytest.mark.s3)], indirect=True)
READ = ("trials", "flows", "history", "failures")
COMPACT = (
    "import sys\n"
    "from uapray.objects import open_objects\n"
    "from uapray.store.compaction import compact\n"
    "print('ready', flush=True)\n"
    "list(compact(open_objects(sys.argv[1]), target_bytes=int(sys.argv[2])))\n"
    "print('done', flush=True)\n"
)


def write_step(results: Results, grid: str, key: str, rows: int = 2) -> None:
    for table in ("flows", "history", "failures"):
        content = [blank(table, trial_id=f"{grid} {key} {row}") for row in range(rows)]
        results.write_rows(table, grid, key, content)
    results.write_rows("trials", grid, key, [blank("trials", trial_id=f"{grid} {key}")])


def fill(results: Results, steps: int) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: write_step(results, f"g{number % 2}", f"{number:04}"), range(steps)))


def content(results: Results, tables: Sequence[str] = READ) -> dict[str, Counter[str]]:
    """Return how often each row is in a store, by table."""
    found = results.tables(tables)
    return {table: Counter(map(repr, found[table].to_pylist())) for table in tables}


def rows_files(objects: Objects) -> list[str]:
    return [key for key in objects.keys("") if key.endswith(".parquet")]


def test_every_row_and_step_stays(place: str) -> None:
    results = open_results(place)
    fill(results, 12)
    before, keys = content(results), {table: results.keys(table) for table in READ}
    done = {tally.table: tally for tally in compact(results.objects)}
    assert (done["trials"].steps, done["trials"].before, done["trials"].after) == (12, 12, 2)
    assert len(rows_files(results.objects)) == 2 * len(READ), "one object a table and grid"
    assert content(results) == before
    assert {table: results.keys(table) for table in READ} == keys
    assert results.step("flows", "0003")["trial_id"].to_pylist() == ["g1 0003 0", "g1 0003 1"]
    assert results.rows("trials", "g1").num_rows == 6
    files = rows_files(results.objects)
    assert all(tally.before == tally.after for tally in compact(results.objects))
    assert rows_files(results.objects) == files


names = st.sampled_from(["a", "b c", "ü/%"])
stores = st.lists(st.tuples(names, st.integers(0, 12).map(str), st.integers(0, 3), st.booleans()), max_size=16)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stores, st.integers(1, 4000), st.sampled_from([None, "a"]))
def test_rows_before_are_rows_after(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, str, int, bool]],
    target_bytes: int,
    grid: str | None,
) -> None:
    results = open_results(str(tmp_path_factory.mktemp("store")))
    for of_grid, key, rows, whole in steps:
        if whole:
            write_step(results, of_grid, key, rows)
        else:
            results.write_rows("flows", of_grid, key, [blank("flows")] * rows)
    before = content(results)
    list(compact(results.objects, grid, target_bytes=target_bytes))
    assert content(results) == before
    for of_grid, key, rows, whole in steps:  # the unfinished ones too, once they are finished
        if not whole:
            write_step(results, of_grid, key, rows)
    after = content(results)
    list(compact(results.objects, target_bytes=target_bytes))
    assert content(results) == after


def test_other_readers_need_no_help_afterwards(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    fill(results, 8)
    list(compact(results.objects))
    scan = f"read_parquet('{tmp_path}/flows/*/*.parquet', hive_partitioning=true)"
    assert duckdb.sql(f"SELECT grid, count(*) FROM {scan} GROUP BY ALL ORDER BY 1").fetchall() == [("g0", 8), ("g1", 8)]


def test_what_is_not_finished_stays_apart(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    fill(results, 4)
    for key in ("x", "y"):
        results.write_rows("flows", "g0", key, [blank("flows", images=1)])
    list(compact(results.objects))
    assert results.rows("flows").num_rows == 8
    results.write_rows("flows", "g0", "x", [blank("flows", images=2)])
    finish(results, "g0", "x", "y")
    assert sorted(results.rows("flows")["images"].to_pylist()) == [0] * 8 + [1, 2]


def test_a_slow_driver_that_writes_a_folded_step_again_changes_nothing(place: str) -> None:
    results = open_results(place)
    fill(results, 6)
    before = content(results)
    list(compact(results.objects))
    write_step(results, "g0", "0002", rows=3)
    results.write_rows("trials", "g0", "0002", [blank("trials", wall_s=99.0)])
    assert content(results) == before
    assert query(results, "SELECT count(*) AS n FROM flows").to_pylist() == [{"n": 12}]
    list(compact(results.objects))
    assert content(results) == before
    assert len(rows_files(results.objects)) == 2 * len(READ)


def test_two_compactions_that_folded_the_same_are_mended(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", [tmp_path / "one", tmp_path / "other"]
    results = open_results(str(whole))
    for number in range(8):
        write_step(results, "g", str(number))
    before = content(results)
    for part, left_out in zip(parts, ("01", "567"), strict=True):
        shutil.copytree(whole, part)
        for key in left_out:
            for path in part.glob(f"*/*/{key}.parquet"):
                path.unlink()
        list(compact(open_results(str(part)).objects))
    for part in parts:
        shutil.copytree(part, whole, dirs_exist_ok=True)
    for path in whole.glob("*/*/?.parquet"):
        path.unlink()
    assert len(rows_files(results.objects)) == 2 * len(READ), "steps 2 to 4 are in two objects of each table"
    assert content(results) == before
    assert results.step("flows", "3").num_rows == 2
    list(compact(results.objects))
    assert content(results) == before
    assert len(rows_files(results.objects)) == len(READ)


@REAL
def test_compactions_at_once(place: str) -> None:
    results = open_results(place)
    fill(results, 12)
    before = content(results)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda size: list(compact(results.objects, target_bytes=size)), (10**9, 4000)))
    assert content(results) == before
    list(compact(results.objects))
    assert content(results) == before
    scan = [key for key in rows_files(results.objects) if key.startswith("trials/")]
    assert sum(results.objects.exists(key) for key in scan) < 12


def test_files_of_other_columns_are_folded_apart(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    for number in range(3):
        old = pa.table({"trial_id": [f"old {number}"], "images": pa.array([number], pa.int64())})
        results.objects.write(f"flows/grid=g/old{number}.parquet", encode(old))
        results.write_rows("flows", "g", f"new{number}", [blank("flows", trial_id=f"new {number}")])
        finish(results, "g", f"old{number}", f"new{number}")
    before = content(results, ["flows"])
    list(compact(results.objects))
    assert content(results, ["flows"]) == before
    assert len(results.objects.keys("flows/")) == 2


def test_a_damaged_object_is_named_and_nothing_deleted(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    fill(results, 4)
    results.objects.write("flows/grid=g0/0000.parquet", b"PAR1 damaged")
    before = rows_files(results.objects)
    with pytest.raises(StoreError, match=r"flows/grid=g0/0000\.parquet: damaged"):
        list(compact(results.objects))
    left = rows_files(results.objects)
    assert [key for key in left if key.startswith("flows/")] == [key for key in before if key.startswith("flows/")]


@pytest.mark.parametrize("act", ["the steps", "the end"])
def test_a_compacted_object_that_does_not_say_what_it_holds_is_refused(tmp_path: Path, act: str) -> None:
    results = open_results(str(tmp_path))
    body = encode(pa.Table.from_pylist([blank("history")], schema=TABLES["history"]))
    results.objects.write("history/grid=g/compacted-0.parquet", body if act == "the steps" else body[:-3])
    with pytest.raises(StoreError, match=r"compacted-0\.parquet: (expected a compacted object|damaged)"):
        results.rows("history")


def test_an_end_longer_than_is_fetched_at_first(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    steps = {f"{number:064}": 1 for number in range(2000)}
    rows = pa.Table.from_pylist([blank("history", round=number) for number in range(2000)], schema=TABLES["history"])
    results.objects.write("history/grid=g/compacted-0.parquet", encode(rows, steps))
    assert results.keys("history") == {("g", step) for step in steps}
    assert results.step("history", f"{1234:064}")["round"].to_pylist() == [1234]


def test_grids(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    assert grids(results.objects) == set()
    results.write_rows("failures", "a/b", "key", [])
    assert grids(results.objects) == {"a/b"}


@REAL
def test_readers_and_writers_go_on(place: str) -> None:
    results, over = open_results(place), threading.Event()
    fill(results, 12)
    before = content(results)

    def fold() -> None:
        for size in (4_000, 10**9):
            list(compact(results.objects, target_bytes=size))
        over.set()

    def write() -> None:
        for number in range(100, 110):
            write_step(results, "later", f"{number}")

    threads = [threading.Thread(target=act) for act in (fold, write)]
    for thread in threads:
        thread.start()
    reads = 0
    while not over.is_set() or not reads:
        found = {
            table: Counter({row: n for row, n in rows.items() if "later" not in row})
            for table, rows in content(results).items()
        }
        assert found == before
        reads += 1
    for thread in threads:
        thread.join()
    assert results.rows("trials", "later").num_rows == 10
    assert results.rows("flows", "later").num_rows == 20


@dataclass
class Mortal:
    """Objects of a store, until so many acts are done."""

    objects: Objects
    acts: int

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.objects, name)
        if not callable(found):
            return found
        self.acts -= 1
        if self.acts < 0:
            raise Dead
        return found


class Dead(Exception):
    pass


def test_a_compaction_that_ends_after_any_act_loses_and_doubles_nothing(tmp_path: Path) -> None:
    whole = open_results(str(tmp_path / "whole"))
    for number in range(4):
        write_step(whole, "g", str(number))
    before = content(whole)
    for acts in range(1000):
        place = tmp_path / str(acts)
        shutil.copytree(tmp_path / "whole", place)
        results = open_results(str(place))
        try:
            list(compact(Mortal(results.objects, acts)))
        except Dead:
            assert content(results) == before, f"after {acts} acts"
            list(compact(results.objects))
            assert content(results) == before
            assert len(rows_files(results.objects)) == len(READ)
        else:
            break
    assert acts > 50, "lists, reads, writes and deletions of four tables"


def kill_while_compacting(place: str, steps: int, kills: int) -> int:
    """Start compactions and kill each at a random moment; return how many were killed before they ended."""
    results, chance, killed = open_results(place), random.Random(place), 0
    took = 1.0
    for kill in range(kills):
        fill_more(results, kill, steps)
        before = content(results)
        words = [sys.executable, "-c", COMPACT, place, str(chance.choice([3_000, 30_000, 10**9]))]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            began = time.monotonic()
            if kill:  # the first shows how long one takes
                time.sleep(chance.uniform(0, took))
                process.send_signal(signal.SIGKILL)
            if process.stdout.readline() == "done\n":
                took = min(took, time.monotonic() - began)
            else:
                killed += 1
        assert content(results) == before, f"after kill {kill}"
    list(compact(results.objects))
    assert content(results) == before
    return killed


def fill_more(results: Results, round_: int, steps: int) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: write_step(results, f"g{n % 2}", f"{round_}{n:04}"), range(steps)))


@REAL
def test_a_compaction_that_is_killed_loses_and_doubles_nothing(place: str) -> None:
    assert kill_while_compacting(place, steps=12, kills=4) >= 1


@REAL
@pytest.mark.slow
def test_a_compaction_that_is_killed_often(place: str) -> None:
    assert kill_while_compacting(place, steps=40, kills=13) >= 4


@pytest.mark.slow
@REAL
def test_five_thousand_objects(place: str) -> None:
    results = open_results(place)
    with ThreadPoolExecutor(16) as threads:
        list(
            threads.map(lambda n: results.write_rows("trials", "g", f"{n:05}", [blank("trials", seed=n)]), range(5000))
        )
    (tally,) = [tally for tally in compact(results.objects) if tally.before]
    assert (tally.before, tally.after) == (5000, 1)
    assert sorted(results.rows("trials")["seed"].to_pylist()) == list(range(5000))
