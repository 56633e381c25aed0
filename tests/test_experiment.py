"""What is found out before a run, and how a run ends, on one replica in this process."""

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_report import Shop

from uapray.data.table import table_of
from uapray.errors import DataError, RunError
from uapray.experiment import Run, Watcher, find_missing, run_missing, unmended
from uapray.grid import parse_grid
from uapray.plan import Plan, plan_grid
from uapray.resources import Resources
from uapray.store.results import Results, open_results

LOCAL = Resources("local", concurrency=1)
GRID = """
name: g
data: {data}
classifiers: [{{weights: "foreign_victims:bright"}}]
rules: [random]
seeds: [0, 1]
"""


def write_data(path: Path, *, side: int = 16, seed: int = 0, damaged: int | None = None, odd: int | None = None) -> str:
    """Write a data set of noise, 12 pictures, of which the last four are the test split."""
    rng = np.random.default_rng(seed)
    bodies = []
    for place in range(12):
        body = io.BytesIO()
        shape = (side, side) if place != odd else (side + 2, side)
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(body, "PNG")
        bodies.append(body.getvalue()[: 60 if place == damaged else None])
    columns = {
        "id": [f"picture {place}" for place in range(12)],
        "image": bodies,
        "label": [place % 3 for place in range(12)],
        "label_name": [("dark", "grey", "bright")[place % 3] for place in range(12)],
        "split": ["train"] * 8 + ["test"] * 4,
        "group": [None] * 12,
    }
    pq.write_table(table_of(columns), path)
    return path.name


def plan(tmp_path: Path, *names: str) -> Plan:
    data = "[" + ", ".join(f"{{uri: {name}}}" for name in names) + "]"
    return plan_grid(parse_grid(GRID.format(data=data), origin="test"), base=str(tmp_path))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return open_results(str(tmp_path / "store"))


@pytest.mark.parametrize(("flaw", "said"), [({"damaged": 10}, "picture 10"), ({"odd": 11}, "picture 11")])
def test_a_flaw_in_the_last_split_of_the_last_data_set_is_found_before_anything_is_written(
    tmp_path: Path, results: Results, flaw: dict[str, int], said: str
) -> None:
    names = write_data(tmp_path / "good.parquet"), write_data(tmp_path / "bad.parquet", seed=1, **flaw)
    with pytest.raises(DataError, match=said):
        find_missing(plan(tmp_path, *names), results)
    assert not (tmp_path / "store").exists()


def test_splits_of_different_sizes_are_refused(tmp_path: Path, results: Results) -> None:
    large, small = write_data(tmp_path / "chest_train.parquet"), tmp_path / "chest_test.parquet"
    write_data(small, side=24, seed=1)
    for path, split in ((tmp_path / large, "train"), (small, "test")):
        table = pq.read_table(path)
        names = [[f"{split} {name}" for name in table["id"].to_pylist()], [split] * 12]
        pq.write_table(table.set_column(0, "id", names[:1]).set_column(4, "split", names[1:]), path)
    with pytest.raises(DataError, match="size"):
        find_missing(plan(tmp_path, "chest_*.parquet"), results)


def test_one_function_serves_data_sets_of_different_sizes(tmp_path: Path, results: Results) -> None:
    names = write_data(tmp_path / "one.parquet"), write_data(tmp_path / "two.parquet", side=24)
    planned = plan(tmp_path, *names)
    missing = find_missing(planned, results)
    assert run_missing(Run(planned, results, LOCAL), missing).done == 4
    assert not find_missing(planned, results).groups


def test_a_store_that_breaks_ends_the_run_and_not_what_stands(tmp_path: Path, results: Results) -> None:
    planned = plan(tmp_path, write_data(tmp_path / "one.parquet"))
    store, aside = tmp_path / "store", tmp_path / "aside"

    def broken(*_: object) -> None:
        store.rename(aside)
        store.write_text("a file where the folder was")

    with pytest.raises(RunError, match="goes on from there") as caught:
        run_missing(Run(planned, results, LOCAL, Watcher(judged=broken)), find_missing(planned, results))
    assert caught.value.exit_code == 1
    store.unlink()
    aside.rename(store)
    missing = find_missing(planned, results)
    assert [len(trials) for *_, trials in missing.groups] == [1]
    assert run_missing(Run(planned, results, LOCAL), missing).done == 1


def test_a_perturbation_made_on_other_weights_is_made_again(tmp_path: Path, results: Results) -> None:
    planned = plan(tmp_path, write_data(tmp_path / "one.parquet"))
    trial = planned.trials[0]
    foreign = np.ones((1, 16, 16), np.float32)
    results.write_array(trial.trial_id, foreign, {"made_on": "other weights"})
    run_missing(Run(planned, results, LOCAL), find_missing(planned, results))
    assert not np.array_equal(results.read_array(trial.trial_id), foreign)


def test_a_failure_is_told_until_the_step_has_succeeded(results: Results) -> None:
    shop = Shop(results, "g")
    mended = shop.add(finished_at=datetime(2026, 1, 2, tzinfo=UTC))["trial_id"]
    half = shop.add(finished_at=datetime(2026, 1, 2, tzinfo=UTC))["trial_id"]
    results.objects.write("models/trained.safetensors", b"weights")
    for key, step, day in (
        (mended, "perturb", 1),
        (half, "evaluate", 3),
        ("never", "perturb", 1),
        ("trained", "train", 1),
    ):
        for attempt in (1, 2):
            at = datetime(2026, 1, day, attempt, tzinfo=UTC)
            row = {"trial_id": key, "step": step, "error": "E", "message": "m", "attempt": attempt, "at": at}
            results.write_rows("failures", "g", f"{key}-{attempt}", [row])
    told = [(one["trial_id"], one["attempt"]) for one in unmended(results)]
    assert told == [(half, 2), ("never", 2)]
