"""SQL over the tables: right answers, and nothing but reading."""

import csv
import datetime as dt
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from steps import finish

from uapray.errors import QueryError, StoreError
from uapray.query import format_table, query
from uapray.store.results import Results, open_results
from uapray.store.schema import TABLES, with_grid

FLOW = {"trial_id": "t", "split": "test", "label": 0, "clean_prediction": 1, "perturbed_prediction": 2}
AT = dt.datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=dt.UTC)
FAILURE = {
    "trial_id": "t",
    "step": "train",
    "error": "E",
    "message": '[red]a, "b"[/red]',
    "attempt": 1,
    "at": AT,
}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    results = open_results(str(tmp_path / "store"))
    for number in range(6):
        rows = [{**FLOW, "trial_id": f"t{number}", "images": number}, {**FLOW, "images": 10}]
        results.write_rows("flows", f"{number % 2}", f"key{number}", rows)
        finish(results, f"{number % 2}", f"key{number}")
    results.write_rows("failures", "g", "key", [FAILURE])
    return results


def test_sums_by_grid(results: Results) -> None:
    table = query(results, "SELECT grid, sum(images) AS images FROM flows GROUP BY grid ORDER BY grid")
    assert table.to_pylist() == [{"grid": "0", "images": 36}, {"grid": "1", "images": 39}]
    assert table.schema.types == [pa.string(), pa.int64()]


def test_grid_selects_and_is_text(results: Results) -> None:
    table = query(results, "SELECT trial_id FROM flows WHERE grid = '1' AND images < 5 ORDER BY 1")
    assert table.column("trial_id").to_pylist() == ["t1", "t3"]


@pytest.mark.parametrize("table", TABLES)
def test_every_table_can_be_asked_even_of_an_empty_store(tmp_path: Path, table: str) -> None:
    results = open_results(str(tmp_path / "none"))
    came = query(results, f"SELECT * FROM {table}")
    assert came.num_rows == 0
    assert came.column_names == with_grid(TABLES[table]).names
    assert came.schema.types == with_grid(TABLES[table]).types
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("WITH big AS (SELECT * FROM flows WHERE images >= 10) SELECT count(*) AS n FROM big", [{"n": 6}]),
        ("SHOW TABLES", [{"name": name} for name in sorted(TABLES)]),
        ("FROM flows SELECT count(*) AS n", [{"n": 12}]),
        ("SELECT count(*) AS n FROM FLOWS AS f JOIN failures USING (trial_id)", [{"n": 6}]),
        ("SELECT n FROM (SELECT count(*) AS n FROM query_table('flows'));", [{"n": 12}]),
        ("SELECT count(*) AS n FROM (UNPIVOT flows ON images, label INTO NAME k VALUE v)", [{"n": 24}]),
        ("SELECT 1 AS a, 2 AS a, 3 AS a_1", [{"a": 1, "a_1": 2, "a_1_1": 3}]),
        ("VALUES (1)", [{"col0": 1}]),
        ('SELECT "at" FROM failures', [{"at": AT}]),
        ("SELECT images FROM failures, (SELECT max(images) AS images FROM flows)", [{"images": 10}]),
    ],
)
def test_statements_that_read(results: Results, sql: str, rows: list[dict[str, object]]) -> None:
    assert query(results, sql).to_pylist() == rows


def test_describe_and_summarize(results: Results) -> None:
    described = query(results, "DESCRIBE flows")
    assert described.column("column_name").to_pylist() == with_grid(TABLES["flows"]).names
    summary = {row["column_name"]: row for row in query(results, "SUMMARIZE flows").to_pylist()}
    assert summary["images"]["max"] == "10"
    assert summary["images"]["count"] == 12


def test_only_the_tables_that_are_named_are_read(results: Results) -> None:
    results.objects.write("images/grid=g/bad.parquet", b"damaged")
    finish(results, "g", "bad")
    query(results, "SELECT images FROM flows")
    query(results, "DESCRIBE flows")
    query(results, "SHOW TABLES")
    with pytest.raises(StoreError, match=r"bad\.parquet"):
        query(results, "SELECT * FROM flows WHERE trial_id IN (SELECT trial_id FROM images)")
    with pytest.raises(QueryError):
        query(results, "SELECT nope FROM images")  # found out before anything is read


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO flows VALUES (1)",
        "UPDATE flows SET images = 1",
        "DELETE FROM flows",
        "DROP VIEW flows",
        "DROP TABLE flows",
        "CREATE TABLE a (i INT)",
        "CREATE OR REPLACE VIEW flows AS SELECT 1",
        "ALTER TABLE flows ADD COLUMN a INT",
        "WITH a AS (SELECT 1) INSERT INTO flows SELECT * FROM a",
        "COPY flows TO 'out.csv'",
        "COPY (SELECT 1) TO 'out.csv'",
        "EXPORT DATABASE 'out'",
        "ATTACH 'out.db'",
        "USE memory",
        "SET threads = 1",
        "RESET threads",
        "PRAGMA version",
        "CALL pragma_version()",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CHECKPOINT",
        "BEGIN",
        "EXPLAIN ANALYZE DELETE FROM flows",
        "PREPARE p AS SELECT 1",
    ],
)
def test_statements_that_do_more_than_read(
    results: Results, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results.objects.keys()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    with pytest.raises(QueryError, match="read-only"):
        query(results, sql)
    with pytest.raises(QueryError, match="one SQL statement, got 2"):
        query(results, f"SELECT 1; {sql}")
    assert results.objects.keys() == before
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{}/secret.csv')",
        "SELECT * FROM read_csv('{}/secret.csv')",
        "SELECT * FROM '{}/secret.csv'",
        "SELECT * FROM glob('{}/*')",
        "SELECT * FROM read_parquet('{}/store/flows/*/*.parquet')",
        "SELECT * FROM 'http://127.0.0.1:1/a.csv'",
        "SELECT * FROM read_blob('/etc/hostname')",
        "SELECT * FROM local",
    ],
)
def test_sql_reaches_nothing_but_the_tables(results: Results, sql: str, tmp_path: Path) -> None:
    local = pa.table({"secret": ["python"]})
    assert local.num_rows
    (tmp_path / "secret.csv").write_text("secret\nfile\n")
    with pytest.raises(QueryError) as caught:
        query(results, sql.format(tmp_path))
    assert "python" not in str(caught.value)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("", "expected one SQL statement, got 0"),
        ("SELEC 1", "syntax error"),
        ("SELECT '\ud800'", "UTF-8"),
        ("SELECT * FROM trails", "trails does not exist!\ntables: trials, history, flows"),
        ("SELECT nope FROM flows", "nope"),
        ("SELECT nope FROM flows", "\nflows: trial_id, grid, split, label"),
        ("SELECT f.nope FROM flows AS f", "\nflows: trial_id, grid, split, label"),
        ("SELECT nope(1) FROM flows", "nope does not exist"),
        ("SELECT * FROM flows WHERE images = ?", "parameters"),
        ("SELECT split::INT FROM flows", "Could not convert"),
    ],
)
def test_mistakes(results: Results, sql: str, said: str) -> None:
    with pytest.raises(QueryError) as caught:
        query(results, sql)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


ALL = pa.table(
    {
        "text": ['[red]a, "b"[/red]', None],
        "number": [0.1, float("nan")],
        "count": pa.array([1, None], pa.int64()),
        "when": pa.array([AT, None], pa.timestamp("us", tz="UTC")),
        "names": [["a", "ü"], None],
        "png": [b"\x89PNG", None],
        "yes": [True, None],
    }
)


def test_json() -> None:
    first, second = json.loads(format_table(ALL, "json"))
    assert first == {
        "text": '[red]a, "b"[/red]',
        "number": 0.1,
        "count": 1,
        "when": "2026-03-04T05:06:07.000089+00:00",
        "names": ["a", "ü"],
        "png": "iVBORw==",
        "yes": True,
    }
    assert second == dict.fromkeys(ALL.column_names)
    assert json.loads(format_table(ALL.slice(0, 0), "json")) == []


def test_csv() -> None:
    header, first, second = csv.reader(io.StringIO(format_table(ALL, "csv").decode()))
    assert header == ALL.column_names
    when = "2026-03-04T05:06:07.000089+00:00"
    assert first == ['[red]a, "b"[/red]', "0.1", "1", when, '["a", "ü"]', "iVBORw==", "True"]
    assert second == [""] * len(header)


def test_parquet(results: Results) -> None:
    table = ALL.drop_columns("number")  # a NaN equals nothing
    assert pq.read_table(io.BytesIO(format_table(table, "parquet"))).to_pylist() == table.to_pylist()
    with pytest.raises(QueryError, match="cast"):
        format_table(query(results, "SELECT INTERVAL 1 DAY AS i"), "parquet")


def test_values_that_python_does_not_know(results: Results) -> None:
    table = query(results, "SELECT DATE '99999-01-01' AS far")
    with pytest.raises(QueryError, match=r"far: .* VARCHAR"):
        format_table(table, "json")


def test_boxes() -> None:
    shown = format_table(ALL, "table").decode()
    assert '[red]a, "b"[/red]' in shown
    assert len(shown.splitlines()) == 6
    assert len({len(line) for line in shown.splitlines()}) == 1
    narrow = format_table(ALL, "table", width=60).decode()
    assert max(len(line) for line in narrow.splitlines()) <= 60


def test_another_format() -> None:
    with pytest.raises(QueryError, match="expected table, csv, json or parquet"):
        format_table(ALL, "xml")  # type: ignore[arg-type]
