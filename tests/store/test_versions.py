"""Files say of which version they are; earlier ones are read, later ones refused with a sentence."""

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
import safetensors.numpy
from test_half_steps import blank

from uapray.errors import StoreError
from uapray.query import query
from uapray.store.compaction import compact
from uapray.store.files import encode
from uapray.store.results import Results, open_results
from uapray.store.schema import SCHEMA_VERSION, TABLES, with_grid

ADDED = ("source_fooling_rate", "linf_grey", "rms_grey")  # columns that the first files of `trials` did not have


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return open_results(str(tmp_path))


def first_file(version: str | None) -> bytes:
    """Return a file of `trials` as the first uapray wrote it, with a version or without."""
    schema = pa.schema([field for field in TABLES["trials"] if field.name not in ADDED])
    table = pa.Table.from_pylist([blank("trials", trial_id="old", fooling_rate=0.5)], schema=schema)
    body = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(None if version is None else {"uapray_schema": version}),
        body,
        compression="snappy",
    )
    return body.getvalue()


@pytest.mark.parametrize("version", [None, "1", "1.7"])
def test_rows_of_earlier_files_are_read_and_new_columns_are_null(results: Results, version: str | None) -> None:
    for key in ("old", "older"):
        results.objects.write(f"trials/grid=g/{key}.parquet", first_file(version))
    results.write_rows("trials", "g", "new", [blank("trials", trial_id="new", linf_grey=2.0)])
    for _ in range(2):  # and once more after they are compacted
        rows = query(
            results,
            "SELECT trial_id, fooling_rate, linf_grey, at_time FROM (SELECT *, finished_at AS at_time "
            "FROM trials) ORDER BY 1",
        ).to_pylist()
        assert [row["trial_id"] for row in rows] == ["new", "old", "old"]
        assert [row["linf_grey"] for row in rows] == [2.0, None, None]
        assert [row["fooling_rate"] for row in rows] == [None, 0.5, 0.5]
        assert rows[1]["at_time"] == datetime(2026, 1, 2, tzinfo=UTC)
        assert results.rows("trials").schema.equals(with_grid(TABLES["trials"]), check_metadata=True)
        list(compact(results.objects))
    assert len(results.objects.keys("trials/")) == 2


@pytest.mark.parametrize("version", ["2", "10.1", "new", ""])
def test_a_later_version_is_refused_with_a_sentence(results: Results, version: str) -> None:
    results.objects.write("trials/grid=g/key.parquet", first_file(version))
    for act in (
        lambda: results.rows("trials"),
        lambda: results.step("trials", "key"),
        lambda: list(compacted(results)),
    ):
        with pytest.raises(
            StoreError, match=rf"key\.parquet: expected schema version 1 or earlier, got {version}"
        ) as caught:
            act()
        assert len(str(caught.value).splitlines()) == 1


def compacted(results: Results) -> object:
    results.write_rows("trials", "g", "other", [blank("trials")])
    return compact(results.objects)


def test_a_later_version_of_a_compacted_object_is_refused(results: Results) -> None:
    rows = pa.Table.from_pylist([blank("history")], schema=TABLES["history"])
    body = encode(rows.replace_schema_metadata({"uapray_schema": "2"}), {"key": 1})
    results.objects.write("history/grid=g/compacted-0.parquet", body)
    with pytest.raises(StoreError, match="expected schema version 1 or earlier, got 2"):
        results.keys("history")


@pytest.mark.parametrize("table", TABLES)
def test_every_file_says_its_version(results: Results, table: str) -> None:
    for key in ("a", "b"):
        results.write_rows("trials", "g", key, [])
        results.objects.write(f"models/{key}.safetensors", b"")
        results.objects.delete(f"trials/grid=g/{key}.parquet")
        results.write_rows(
            table,
            "g",
            key,
            [blank(table, **({"trial_ids": [], "zetas": [], "rates": []} if table == "curves" else {}))],
        )
        results.write_rows("trials", "g", key, [])
    for _ in range(2):
        for key in results.objects.keys(f"{table}/"):
            metadata = pq.read_metadata(Path(results.objects.uri, key)).metadata
            assert metadata[b"uapray_schema"] == SCHEMA_VERSION.encode()
        list(compact(results.objects))
    assert len(results.objects.keys(f"{table}/")) == 1


def test_perturbations_say_their_version(results: Results) -> None:
    v, path = np.ones((1, 2, 2), np.float32), Path(results.objects.uri, "perturbations", "t.safetensors")
    results.write_array("t", v, {"rule": "sga"})
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"rule": "sga", "uapray_schema": SCHEMA_VERSION}
    safetensors.numpy.save_file({"perturbation": v}, path, {"rule": "old"})
    assert results.read_array_metadata("t") == {"rule": "old"}
    assert np.array_equal(results.read_array("t"), v)
    safetensors.numpy.save_file({"perturbation": v}, path, {"uapray_schema": "2"})
    for read in (results.read_array, results.read_array_metadata):
        with pytest.raises(StoreError, match="expected schema version 1 or earlier, got 2"):
            read("t")


def test_a_byte_that_changed_on_the_disk_is_noticed(results: Results) -> None:
    rows = [blank("history", round=number, l2=number**0.5) for number in range(500)]
    results.write_rows("history", "g", "key", rows)
    path = Path(results.objects.uri, "history/grid=g/key.parquet")
    body = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(TABLES["history"].get_field_index("l2"))
    body[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(StoreError, match="history"):
        results.rows("history")
    with pytest.raises(StoreError, match=r"key\.parquet: damaged"):
        results.step("history", "key")
