"""Readers see whole steps or nothing, on every store, whoever is killed or races."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from steps import finish

from uapray.errors import NotFoundError
from uapray.query import query
from uapray.store.results import Results, open_results
from uapray.store.schema import PARTS, TABLES

BLANK = {pa.string(): "t", pa.int64(): 0, pa.float64(): 0.0, pa.binary(): b"", pa.list_(pa.string()): ["a"]}
AT = datetime(2026, 1, 2, tzinfo=UTC)


def blank(table: str, **values: object) -> dict[str, object]:
    """Return a row with something in every column that needs it."""
    return {field.name: BLANK.get(field.type, AT) for field in TABLES[table] if not field.nullable} | values


@pytest.mark.parametrize("table", sorted(PARTS))
def test_rows_count_when_the_row_of_trials_is_there(place: str, table: str) -> None:
    results = open_results(place)
    assert results.write_rows(table, "g", "key", [blank(table)])
    assert results.keys(table) == set()
    assert results.rows(table).num_rows == query(results, f"SELECT * FROM {table}").num_rows == 0
    with pytest.raises(NotFoundError, match="no rows of key"):
        results.step(table, "key")
    assert results.write_rows("trials", "g", "key", [blank("trials")])
    assert results.keys(table) == {("g", "key")}
    assert results.rows(table).num_rows == query(results, f"SELECT * FROM {table}").num_rows == 1
    assert results.step(table, "key").num_rows == 1


def test_what_a_killed_run_left_is_replaced_and_what_is_finished_is_not(place: str) -> None:
    results = open_results(place)
    for label in (1, 2):
        assert results.write_rows("images", "g", "key", [blank("images", label=label)])
    assert results.write_rows("trials", "g", "key", [blank("trials", seed=2)])
    assert not results.write_rows("images", "g", "key", [blank("images", label=3)])
    assert not results.write_rows("trials", "g", "key", [blank("trials", seed=3)])
    assert results.rows("images")["label"].to_pylist() == [2]
    assert results.rows("trials")["seed"].to_pylist() == [2]


def test_rows_of_a_classifier_count_when_it_stands(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    for weights in ("first", "second"):  # a training that was killed before it wrote its classifier, and again
        results.write_rows("classifiers", "g", "abc-test", [blank("classifiers", classifier_sha256=weights)])
        assert results.rows("classifiers").num_rows == 0
    results.objects.write("models/abc.safetensors", b"")
    assert results.rows("classifiers")["classifier_sha256"].to_pylist() == ["second"]


def test_another_grid_that_was_killed_does_not_take_a_step_from_the_one_that_finished_it(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    for grid in ("a", "b"):
        results.write_rows("images", grid, "key", [blank("images")])
    results.write_rows("trials", "b", "key", [blank("trials")])
    assert results.rows("images")["grid"].to_pylist() == results.rows("trials")["grid"].to_pylist() == ["b"]


def test_two_drivers_on_one_grid_give_each_row_once(place: str) -> None:
    results = open_results(place)
    steps = [f"{number:02}-test" for number in range(12)]

    def drive(driver: int) -> int:
        won = 0
        for key in steps:
            results.write_rows("images", "g", key, [blank("images", id=f"{image}") for image in range(3)])
            won += results.write_rows("trials", "g", key, [blank("trials", trial_id=key, wall_s=float(driver))])
        return won

    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(drive, (1, 2))) == len(steps), "each row of trials stays as it was first written"
    assert sorted(results.rows("trials")["trial_id"].to_pylist()) == steps
    assert results.rows("images").num_rows == 3 * len(steps)


def test_a_reader_beside_a_writer_sees_no_half(place: str) -> None:
    results, over = open_results(place), threading.Event()

    def write() -> None:
        for number in range(15):
            key = f"{number:02}-test"
            for table in ("flows", "images"):
                results.write_rows(table, "g", key, [blank(table, trial_id=key) for _ in range(2)])
            results.write_rows("trials", "g", key, [blank("trials", trial_id=key)])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [_seen(results)]
    while not over.is_set():
        seen.append(_seen(results))
    writer.join()
    for trials, flows, images in [*seen, _seen(results)]:
        assert flows == images == sorted(trials * 2)
    assert len(_seen(results)[0]) == 15


def test_other_readers_leave_out_unfinished_steps_by_a_semi_join(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    for key in ("done", "killed"):
        results.write_rows("images", "g", key, [blank("images", trial_id=key)])
    results.write_rows("trials", "g", "done", [blank("trials", trial_id="done")])
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
    sql = page.partition("```sql\n")[2].partition("```")[0].replace("<store>", str(tmp_path))
    assert [row[0] for row in duckdb.sql(sql).fetchall()] == ["done"]


def _seen(results: Results) -> list[list[str]]:
    tables = results.tables(["images", "flows", "trials"])
    return [sorted(tables[name]["trial_id"].to_pylist()) for name in ("trials", "flows", "images")]


def test_finishing_helper_is_what_runs_do(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    results.write_rows("flows", "g", "key", [blank("flows")])
    finish(results, "g", "key")
    assert results.rows("flows").num_rows == 1
