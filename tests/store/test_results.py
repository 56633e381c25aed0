"""Rows and perturbations come back as they went in."""

import datetime as dt
import io
import math
import pickle
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from steps import finish

from uapray.errors import NotFoundError, StoreError
from uapray.objects import open_objects
from uapray.store.results import Results, open_results
from uapray.store.schema import SCHEMA_VERSION, TABLES, with_grid

FLOW = {
    "trial_id": "t",
    "split": "test",
    "label": 0,
    "clean_prediction": 1,
    "perturbed_prediction": 2,
    "images": 3,
}
PROPERTY = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
times = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC))
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): text,
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.timestamp("us", tz="UTC"): times,
    pa.binary(): st.binary(max_size=20),
    pa.list_(pa.string()): st.lists(text, max_size=3),
    pa.list_(pa.float64()): st.lists(st.floats(allow_nan=False), max_size=3),
}


def rows_of(schema: pa.Schema) -> st.SearchStrategy[list[dict[str, Any]]]:
    cells = {field.name: st.none() | VALUES[field.type] if field.nullable else VALUES[field.type] for field in schema}
    return st.lists(st.fixed_dictionaries(cells), max_size=4)


def measurement(**values: object) -> dict[str, object]:
    """Return a row of `history` with a value only where there must be one."""
    needed = [field for field in TABLES["history"] if not field.nullable]
    return {field.name: "t" if field.type == pa.string() else 0 for field in needed} | values


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return open_results(str(tmp_path / "store"))


@PROPERTY
@given(st.data())
@pytest.mark.parametrize("table", TABLES)
def test_rows_come_back(tmp_path_factory: pytest.TempPathFactory, table: str, data: st.DataObject) -> None:
    results = open_results(str(tmp_path_factory.mktemp("store")))
    grid, rows = data.draw(names), data.draw(rows_of(TABLES[table]))
    results.write_rows(table, grid, "key", rows)
    if table != "trials":
        finish(results, grid, "key")
    came = results.rows(table)
    assert came.schema.equals(with_grid(TABLES[table]), check_metadata=True)
    assert came.to_pylist() == [{**row, "grid": grid} for row in rows]
    assert results.rows(table, grid).equals(came)
    assert results.rows(table, grid + "x").num_rows == 0
    assert results.keys(table) == {(grid, "key")}


@PROPERTY
@given(
    st_numpy.arrays(np.float32, st_numpy.array_shapes(min_dims=3, max_dims=3, max_side=5)),
    st.dictionaries(text, text),
)
def test_perturbations_come_back(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, metadata: dict[str, str]
) -> None:
    results = open_results(str(tmp_path_factory.mktemp("store")))
    results.write_array("trial", array, metadata)
    came = results.read_array("trial")
    assert came.dtype == np.float32
    assert came.tobytes() == array.tobytes()
    assert results.read_array_metadata("trial") == metadata
    path = Path(results.objects.uri, "perturbations", "trial.safetensors")
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {**metadata, "uapray_schema": SCHEMA_VERSION}
        assert list(file.keys()) == ["perturbation"]


def test_a_tensor_comes_back_as_its_values(results: Results) -> None:
    v = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).permute(2, 0, 1).requires_grad_()
    results.write_array("trial", v, {})
    came = results.read_array("trial")
    assert torch.equal(torch.from_numpy(came), v)  # and from_numpy does not warn: it is writable
    results.write_array("strided", np.asfortranarray(came), {})
    assert np.array_equal(results.read_array("strided"), came)


def test_arrays_that_are_no_perturbation(results: Results) -> None:
    for array in (
        np.zeros((1, 2, 2)),
        np.zeros((2, 2), np.float32),
        torch.zeros(1, 2, 2, dtype=torch.float64),
    ):
        with pytest.raises(StoreError, match="expected float32"):
            results.write_array("trial", array, {})
    assert not results.has_array("trial")
    with pytest.raises(NotFoundError):
        results.read_array("trial")
    results.objects.write("perturbations/trial.safetensors", b"nonsense")
    assert results.has_array("trial")
    for read in (results.read_array, results.read_array_metadata):
        with pytest.raises(StoreError, match=r"trial\.safetensors: damaged"):
            read("trial")


def test_on_every_store(place: str) -> None:
    results = open_results(place)
    for number in range(3):
        results.write_rows("flows", f"grid {number % 2}", f"key{number}", [{**FLOW, "images": number}] * 2)
        results.write_array(f"trial{number}", np.full((1, 2, 2), number, np.float32), {"number": str(number)})
        finish(results, f"grid {number % 2}", f"key{number}")
    assert results.keys("flows") == {("grid 0", "key0"), ("grid 1", "key1"), ("grid 0", "key2")}
    assert results.rows("flows").column("images").to_pylist() == [0, 0, 2, 2, 1, 1]
    assert results.rows("flows", "grid 1").column("grid").to_pylist() == ["grid 1"] * 2
    assert results.read_array("trial2").max() == 2
    assert results.has_array("trial0")
    assert not results.has_array("trial9")
    assert pickle.loads(pickle.dumps(results)).keys("flows") == results.keys("flows")
    for table, schema in TABLES.items():
        if table not in ("flows", "trials"):
            empty = results.rows(table)
            assert empty.num_rows == 0
            assert empty.schema.equals(with_grid(schema), check_metadata=True)


def test_a_step_written_twice_is_there_once(results: Results) -> None:
    for _ in range(2):
        results.write_rows("flows", "g", "key", [FLOW])
    finish(results, "g", "key")
    assert results.rows("flows").num_rows == 1


def test_columns_that_may_be_null_can_be_left_out(results: Results) -> None:
    results.write_rows("history", "g", "key", [measurement(l2=1, linf=np.float32(0.5))])
    row = results.rows("history").to_pylist()[0]
    assert row["fooling_rate"] is None
    assert (row["l2"], row["linf"]) == (1.0, 0.5)


def test_no_rows_is_a_step_that_is_done(results: Results) -> None:
    results.write_rows("flows", "g", "key", [])
    finish(results, "g", "key")
    assert results.keys("flows") == {("g", "key")}
    assert results.rows("flows").num_rows == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": 1}, "unknown column colour"),
        ({"grid": "g"}, "unknown column grid"),
        ({"images": None}, "expected a value in images"),
        ({"images": "three"}, "type"),
        ({"images": 1.5}, "type"),
        ({"images": 2**63}, "type"),
        ({"split": 7}, "type"),
    ],
)
def test_rows_that_do_not_fit(results: Results, change: dict[str, Any], said: str) -> None:
    with pytest.raises(StoreError, match=said):
        results.write_rows("flows", "g", "key", [FLOW, {**FLOW, **change}])
    with pytest.raises(StoreError, match="expected a value in trial_id, split"):
        results.write_rows("flows", "g", "key", [{}])
    assert results.objects.keys() == []


def test_names_that_do_not_fit(results: Results) -> None:
    for act in (results.rows, results.keys, lambda table: results.write_rows(table, "g", "key", [])):
        with pytest.raises(StoreError, match="expected one of trials, history"):
            act("trails")
    with pytest.raises(StoreError, match="empty"):
        results.write_rows("flows", "", "key", [])
    results.write_rows("history", "../../up", "../key", [measurement()])  # stays inside
    assert results.keys("history") == {("../../up", "../key")}
    assert results.objects.keys() == ["history/grid=..%2F..%2Fup/..%2Fkey.parquet"]
    with pytest.raises(StoreError, match="compacted-"):
        results.write_rows("history", "g", "compacted-1", [])


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_damaged_object_is_named(results: Results, keep: int) -> None:
    results.write_rows("flows", "g", "good", [FLOW])
    body = results.objects.read("flows/grid=g/good.parquet")
    results.objects.write("flows/grid=g/bad.parquet", body[:keep])
    finish(results, "g", "good", "bad")
    with pytest.raises(StoreError, match=r"grid=g/bad\.parquet: damaged"):
        results.rows("flows")
    assert results.rows("flows", "other").num_rows == 0


def test_older_files_lack_a_column_and_newer_have_another(results: Results) -> None:
    body = io.BytesIO()
    pq.write_table(pa.table({"trial_id": ["old"], "images": pa.array([5], pa.int32()), "colour": [1]}), body)
    results.objects.write("flows/grid=g/old.parquet", body.getvalue())
    results.write_rows("flows", "g", "new", [FLOW])
    finish(results, "g", "old", "new")
    came = results.rows("flows").sort_by("trial_id")
    assert came.schema.names == with_grid(TABLES["flows"]).names
    assert came.column("images").to_pylist() == [5, 3]
    assert came.column("label").to_pylist() == [None, 0]


def test_other_things_in_the_folder_are_left_alone(results: Results) -> None:
    results.write_rows("flows", "g", "key", [FLOW])
    for key in (
        "flows/README.txt",
        "flows/grid=g/_SUCCESS",
        "flows/loose.parquet",
        "flowsy/grid=g/x.parquet",
    ):
        results.objects.write(key, b"not ours")
    finish(results, "g", "key")
    assert results.rows("flows").num_rows == 1
    assert results.keys("flows") == {("g", "key")}


def test_other_readers_need_no_help(results: Results) -> None:
    for grid in ("a b", "c/d"):
        results.write_rows("flows", grid, "key", [FLOW, {**FLOW, "images": 4}])
    folder = Path(results.objects.uri, "flows")
    table = ds.dataset(folder, partitioning="hive").to_table()
    assert sorted(table.column("grid").to_pylist()) == ["a b", "a b", "c/d", "c/d"]
    assert table.schema.field("images").metadata[b"unit"] == b"images"
    scan = f"read_parquet('{folder}/*/*.parquet', hive_partitioning=true)"
    assert sorted(duckdb.sql(f"SELECT grid, sum(images) FROM {scan} GROUP BY ALL").fetchall()) == [
        ("a b", 7),
        ("c/d", 7),
    ]


def test_a_column_is_read_alone(results: Results) -> None:
    results.write_rows("flows", "g", "key", [FLOW])
    finish(results, "g", "key")
    assert results.dataset("flows").to_table(columns=["grid", "images"]).to_pylist() == [{"grid": "g", "images": 3}]


def test_not_a_number_comes_back(results: Results) -> None:
    results.write_rows("history", "g", "key", [measurement(l2=math.nan, linf=math.inf)])
    row = results.rows("history").to_pylist()[0]
    assert math.isnan(row["l2"])
    assert row["linf"] == math.inf


def test_opening_touches_nothing(tmp_path: Path) -> None:
    results = open_results(str(tmp_path / "store"))
    assert results.objects == open_objects(str(tmp_path / "store"))
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_two_grids_ran_counts_once(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    for grid in ("a", "b"):
        results.write_rows("flows", grid, "shared", [FLOW])
        results.write_rows("flows", grid, f"only in {grid}", [FLOW])
        finish(results, grid, "shared", f"only in {grid}")
    rows = results.rows("flows").to_pylist()
    assert sorted(row["grid"] for row in rows) == ["a", "a", "b"]
    assert results.rows("flows", "b").num_rows == 2, "asked for one grid, its own rows are all there"


def test_the_rows_of_one_step_are_read_alone(tmp_path: Path) -> None:
    results = open_results(str(tmp_path))
    for grid, images in (("b", 2), ("a", 1)):
        results.write_rows("flows", grid, "key", [FLOW | {"images": images}])
        finish(results, grid, "key", "other")
    results.objects.write("flows/grid=a/other.parquet", b"damaged, and not asked for")
    assert results.step("flows", "key").to_pylist() == [{**FLOW, "images": 1}]
    with pytest.raises(NotFoundError, match="no rows of none in flows"):
        results.step("flows", "none")
    with pytest.raises(StoreError, match="damaged"):
        results.step("flows", "other")
