"""What is found out before a run, and how a run ends, on one replica in this process."""

import io
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from test_report import Shop

import uapray
from uapray.data.images import ImageSet
from uapray.data.table import table_of
from uapray.errors import DataError, RunError, StoppedError
from uapray.experiment import Lane, Summary, find_missing, next_group, run_missing, unmended
from uapray.grid import parse_grid
from uapray.models.card import Card
from uapray.models.weights import make_classifier, save_classifier
from uapray.models.zoo import build
from uapray.plan import Plan, plan_grid
from uapray.resources import Resources
from uapray.run import Run, Watcher
from uapray.sources import Source
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


def write_photographs(path: Path, *, count: int) -> None:
    """Write a data set of colour pictures of another size and other classes."""
    rng = np.random.default_rng(5)
    bodies = []
    for _ in range(count):
        body = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(body, "PNG")
        bodies.append(body.getvalue())
    columns = {
        "id": [f"photograph {place}" for place in range(count)],
        "image": bodies,
        "label": [place % 5 for place in range(count)],
        "label_name": [f"thing {place % 5}" for place in range(count)],
        "split": ["train"] * count,
        "group": [None] * count,
    }
    pq.write_table(table_of(columns), path)


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


def test_the_only_data_set_is_decoded_once(tmp_path: Path, results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(tmp_path, write_data(tmp_path / "one.parquet"))
    decode, asked = Source.images, list[str]()

    def counted(source: Source, split: str) -> ImageSet:
        asked.append(split)
        return decode(source, split)

    monkeypatch.setattr(Source, "images", counted)
    missing = find_missing(planned, results)
    assert run_missing(Run(planned, results, LOCAL), missing).done == 2
    assert sorted(asked) == ["test", "train"]
    assert not missing.decoded


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
    assert [len(group.trials) for group in missing.groups] == [1]
    assert run_missing(Run(planned, results, LOCAL), missing).done == 1


def test_a_perturbation_made_on_other_weights_is_made_again(tmp_path: Path, results: Results) -> None:
    planned = plan(tmp_path, write_data(tmp_path / "one.parquet"))
    trial = planned.trials[0]
    foreign = np.ones((1, 16, 16), np.float32)
    results.write_array(trial.trial_id, foreign, {"made_on": "other weights"})
    run_missing(Run(planned, results, LOCAL), find_missing(planned, results))
    assert not np.array_equal(results.read_array(trial.trial_id), foreign)


def judged_plan(tmp_path: Path, **changes: object) -> Plan:
    """Return a plan with one search to be judged in several ways, and its control."""
    values = {
        "name": "judged",
        "data": [{"uri": "one.parquet", "size": 16}],
        "classifiers": [{"weights": "foreign_victims:bright"}],
        "targets": ["bright"],
        "zetas": [0.3],
        "budget": {"max_epochs": 1},
        "control_draws": 2,
        "splits": ["train", "test"],
    }
    return plan_grid(parse_grid(yaml.safe_dump(values | changes), origin="test"), base=str(tmp_path))


def run_all(planned: Plan, results: Results) -> Summary:
    return run_missing(Run(planned, results, LOCAL), find_missing(planned, results))


def test_no_group_takes_a_place_to_wait_for_the_training_of_another(tmp_path: Path, results: Results) -> None:
    write_data(tmp_path / "one.parquet")
    recipe = {"base": "quick", "epochs": 1}
    base = {"architecture": "tiny-cnn", "initial_weights": "random", "recipe": recipe, "name": "a"}
    hardened = ["none", {"method": "universal-training", "recipe": recipe}]
    planned = judged_plan(
        tmp_path,
        classifiers=[{**base, "tuned": [0.5, 1]}, {**base, "name": "b", "train_seeds": [1], "hardened": hardened}],
        data=[{"uri": "one.parquet", "size": 32}],
        control=False,
    )
    half, whole, other, hard = find_missing(planned, results).groups
    assert whole.victim.lineage < half.victim.lineage
    assert other.victim.lineage < hard.victim.lineage
    lanes = [Lane(half.victim.lineage)]
    assert next_group([whole, other, hard], lanes) is other
    lanes.append(Lane(other.victim.lineage))
    assert next_group([whole, hard], lanes) is None
    lanes[0].had.set_result(None)
    assert next_group([hard, whole], lanes) is whole, "a classifier that is there keeps nobody waiting"
    assert next_group([], lanes) is None


def contents(results: Results, *tables: str) -> dict[str, bytes]:
    return {key: results.objects.read(key) for table in tables for key in results.objects.keys(f"{table}/")}


def test_what_a_grid_asks_for_later_is_judged_later_and_nothing_twice(tmp_path: Path, results: Results) -> None:
    write_data(tmp_path / "one.parquet")
    assert run_all(judged_plan(tmp_path, control_draws=0, renderings=[]), results).done == 2
    assert not results.keys("renderings") | results.keys("controls")
    before = contents(results, "trials", "perturbations", "images", "classes", "clinical")
    for changes, done, rendered, controls in (
        ({"control_draws": 0}, 2, 4, 0),
        ({}, 1, 4, 2),  # the rule random is not judged beside controls
        ({"renderings": ["jpeg:75", "uint8"]}, 2, 8, 2),
        ({"control_draws": 3, "control_images": 5}, 1, 8, 4),
        ({"renderings": ["uint8", "jpeg:75"], "examples": 0}, 0, 8, 4),
    ):
        assert run_all(judged_plan(tmp_path, **changes), results).done == done
        assert (len(results.keys("renderings")), len(results.keys("controls"))) == (rendered, controls)
    assert contents(results, "trials", "perturbations", "images", "classes", "clinical") == before


def test_a_perturbation_is_judged_on_the_other_classifiers(tmp_path: Path, results: Results) -> None:
    data = uapray.load_images(str(tmp_path / write_data(tmp_path / "one.parquet")), "test")
    for seed in (0, 1):
        module = build("tiny-cnn", classes=3, channels=1, size=(16, 16), initial_weights="random", seed=seed)
        card = Card(
            architecture="tiny-cnn",
            class_names=data.class_names,
            channels=1,
            size=(16, 16),
            initial_weights="random",
        )
        save_classifier(make_classifier(module, card), str(tmp_path / f"{seed}.safetensors"))
    named = [{"weights": f"{seed}.safetensors", "name": f"net {seed}"} for seed in (0, 1)]
    flat = [{"weights": "foreign_victims:indifferent", "name": "flat"}]

    def planned(classifiers: list[dict[str, str]], **changes: object) -> Plan:
        asked = {"classifiers": classifiers, "transfer": True, "splits": ["test"], "control": False, **changes}
        return judged_plan(tmp_path, **asked)

    assert planned(named).count == 4
    assert run_all(planned(named, transfer=False), results) == Summary(2, 0, 0)
    own = contents(results, "trials", "images", "perturbations")
    assert planned(named).to_do(results.judgements()) == 2
    assert run_all(planned(named), results) == Summary(2, 2, 0)
    assert run_all(planned(named), results) == Summary(0, 4, 0)
    assert own.items() <= contents(results, "trials", "images", "perturbations").items()
    rows = results.rows("trials").to_pylist()
    pairs = {(f"net {made_on}", f"net {judged}") for made_on in (0, 1) for judged in (0, 1)}
    assert {(row["made_on"], row["classifier"]) for row in rows} == pairs
    for row in rows:
        array = results.read_array(row["trial_id"])
        seed = row["classifier"].removeprefix("net ")
        judged = uapray.evaluate(str(tmp_path / f"{seed}.safetensors"), data, array, target="bright", controls=0)
        assert row["fooling_rate"] == judged.fooling_rate
        assert row["targeted_success_rate"] == judged.targeted_success_rate

    # One whose search fails can be judged on, and has nothing to be judged itself.
    assert run_all(planned([named[0], *flat]), results) == Summary(1, 1, 2)
    assert {row["step"] for row in unmended(results)} == {"perturb", "evaluate"}
    parts = [planned(named).part(number, 2) for number in (1, 2)]
    assert [part.count for part in parts] == [2, 2], "of a part its own perturbations, on all classifiers"


def test_perturbations_are_made_from_fewer_and_from_other_images(tmp_path: Path, results: Results) -> None:
    write_data(tmp_path / "one.parquet")
    write_photographs(tmp_path / "natural.parquet", count=20)
    sources = [{}, {"images": 6}, {"uri": "natural.parquet"}]
    planned = judged_plan(tmp_path, sources=sources, control_draws=0, splits=["test"])
    assert run_all(planned, results) == Summary(4, 0, 0)
    rows = {row["source"]: row for row in results.rows("trials").to_pylist()}
    assert set(rows) == {None, "one/train", "one/train[6]", "natural/train"}
    assert len({row["xi"] for row in rows.values()}) == 1, "zeta is a share of the judged images' norm"
    assert [rows[name]["source_images"] for name in ("one/train[6]", "natural/train")] == [5, 16]
    assert {row["data"] for row in rows.values()} == {"one"}
    assert {row["images"] for row in rows.values()} == {4}
    arrays = [results.read_array(row["trial_id"]) for row in rows.values()]
    assert all(array.shape == (1, 16, 16) for array in arrays), "colour photographs are brought to one channel"


def test_a_filter_is_attacked_through(tmp_path: Path, results: Results) -> None:
    write_data(tmp_path / "one.parquet")
    net = [{"weights": "foreign_victims:bright", "filters": ["none", "bits:2", "median:3"], "name": "net"}]
    planned = judged_plan(tmp_path, classifiers=net, control=False, splits=["test"], renderings=["bits:2"])
    assert run_all(planned, results) == Summary(3, 0, 0)
    rows = {row["classifier"]: row for row in results.rows("trials").to_pylist()}
    assert set(rows) == {"net", "net+bits:2", "net+median:3"}
    assert len({row["classifier_sha256"] for row in rows.values()}) == 3
    unaware = {row["trial_id"]: row for row in results.rows("renderings").to_pylist()}[rows["net"]["trial_id"]]
    assert rows["net+bits:2"]["clean_accuracy"] == unaware["clean_accuracy"], "the same filter, the same clean images"


def test_the_row_of_trials_comes_after_all_others(tmp_path: Path, results: Results) -> None:
    write_data(tmp_path / "one.parquet")
    planned = judged_plan(tmp_path, control=False)

    def broken(*_: object) -> None:
        raise OSError("the machine went away")

    run = Run(planned, results, LOCAL, Watcher(judging=broken))
    assert run_missing(run, find_missing(planned, results)).failed == 1
    assert not results.keys("trials")
    assert [row["step"] for row in unmended(results)] == ["evaluate"]
    assert run_all(planned, results).done == 1
    assert not unmended(results)


def test_a_judgement_that_failed_after_its_trial_stood_is_mended_by_its_own_rows(
    tmp_path: Path, results: Results
) -> None:
    write_data(tmp_path / "one.parquet")
    run_all(judged_plan(tmp_path, control_draws=0), results)
    planned = judged_plan(tmp_path)

    def broken(*_: object) -> None:
        raise OSError("the machine went away")

    run_missing(Run(planned, results, LOCAL, Watcher(judging=broken)), find_missing(planned, results))
    assert len(unmended(results)) == 1
    run_all(planned, results)
    assert not unmended(results)


def test_the_tables_of_a_trial_agree(tmp_path: Path, results: Results) -> None:
    write_data(tmp_path / "one.parquet")
    data = [{"uri": "one.parquet", "size": 16, "healthy": "dark"}]
    planned = judged_plan(tmp_path, renderings=["uint8", "resize:0.5"], data=data)
    run_all(planned, results)
    trials = {(row["trial_id"], row["split"]): row for row in results.rows("trials").to_pylist()}
    for row in trials.values():
        v = results.read_array(row["trial_id"]).astype(np.float64)
        assert row["linf_grey"] == pytest.approx(255 * np.abs(v).max())
        assert row["rms_grey"] == pytest.approx(255 * np.sqrt((v**2).mean()))
    controls = results.rows("controls").to_pylist()
    assert {row["kind"] for row in controls} == {"random", "signs", "permuted", "scrambled"}
    assert len(controls) == 2 * 4
    for row in controls:
        trial = trials[row["trial_id"], row["split"]]
        assert (row["draws"], row["images"], trial["rule"]) == (2, trial["images"], "aimed-ascent")
        assert row["fooling_rate"] == trial["fooling_rate"]
        assert row["targeted_success_rate_non_target"] == trial["targeted_success_rate_non_target"]
        assert row["p_value"] in (1 / 3, 2 / 3, 1)
        assert row["control_fooling_rate"] <= row["control_fooling_rate_max"]
        if row["kind"] in ("signs", "permuted"):
            assert (row["control_l2"], row["control_linf"]) == pytest.approx((trial["l2"], trial["linf"]))
    rendered = results.rows("renderings").to_pylist()
    assert len(rendered) == 2 * len(trials)
    for row in rendered:
        assert row["fooling_rate_low"] <= row["fooling_rate"] <= row["fooling_rate_high"]
        if row["rendering"] == "uint8":
            assert row["clean_accuracy"] == trials[row["trial_id"], row["split"]]["clean_accuracy"]
    for key, trial in trials.items():
        classes = [row for row in results.rows("classes").to_pylist() if (row["trial_id"], row["split"]) == key]
        assert [row["class_name"] for row in classes] == ["dark", "grey", "bright"]
        assert sum(row["images"] for row in classes) == trial["images"]
        for accuracy, sensitivity in (("clean_accuracy", "sensitivity_clean"), ("robust_accuracy", "sensitivity")):
            right = sum((row[sensitivity] or 0) * row["images"] for row in classes)
            assert right / trial["images"] == pytest.approx(trial[accuracy])
        clinical = [row for row in results.rows("clinical").to_pylist() if (row["trial_id"], row["split"]) == key]
        readings = {(row["measure"], row["class_name"]): row for row in clinical}
        assert len(clinical) == len(readings) == 3 * 4 + 2 + 1
        for row in classes:
            for measure in ("sensitivity", "specificity"):
                found = readings[measure, row["class_name"]]
                assert (found["clean"], found["perturbed"]) == (row[f"{measure}_clean"], row[measure])
        assert readings["accuracy", None]["perturbed"] == pytest.approx(trial["robust_accuracy"])
        assert readings["called_healthy", None]["perturbed_high"] <= 1


def test_controls_and_renderings_are_the_same_bits_again(tmp_path: Path, results: Results) -> None:
    write_data(tmp_path / "one.parquet")
    other = open_results(str(tmp_path / "other"))
    for store in (results, other):
        run_all(judged_plan(tmp_path), store)
    for table in ("controls", "renderings", "classes", "clinical"):
        one, again = (
            store.rows(table).drop_columns([] if table in ("classes", "clinical") else ["finished_at"])
            for store in (results, other)
        )
        assert one.equals(again)


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


def curve_plan(tmp_path: Path, **changes: object) -> Plan:
    values = {"zetas": [0.3, 0.1, 0.2], "targets": ["nontargeted"], "control_draws": 0, "curve": True}
    return judged_plan(tmp_path, **values | changes)


def test_a_curve_continues_and_ends_with_its_row(tmp_path: Path, results: Results) -> None:
    write_data(tmp_path / "one.parquet")
    planned = curve_plan(tmp_path)
    assert run_all(planned, results) == Summary(6, 0, 0)
    rows = {(row["rule"], row["split"]): row for row in results.rows("curves").to_pylist()}
    assert len(rows) == 4, "a search and its control, on two splits"
    trials = {(row["trial_id"], row["split"]): row for row in results.rows("trials").to_pylist()}
    for (_, split), row in rows.items():
        mine = [trials[one, split] for one in row["trial_ids"]]
        assert row["zetas"] == [one["zeta"] for one in mine] == [0.1, 0.2, 0.3]
        assert row["rates"] == [one["fooling_rate"] for one in mine]
        assert row["image_gradients"] == sum(one["image_gradients"] for one in mine)
        assert row["zeta50_low"] <= 0.3
        assert row["zeta50"] is not None or row["zeta50_high"] is None
    assert run_all(planned, results).done == 0


def test_a_curve_whose_row_is_lost_is_drawn_again_without_a_search(tmp_path: Path, results: Results) -> None:
    write_data(tmp_path / "one.parquet")
    planned = curve_plan(tmp_path, control=False)
    run_all(planned, results)
    before = contents(results, "perturbations", "trials", "images")
    first = results.rows("curves").drop_columns("finished_at")
    for key in results.objects.keys("curves/"):
        results.objects.delete(key)
    assert run_all(planned, results) == Summary(1, 2, 0)
    assert results.rows("curves").drop_columns("finished_at").equals(first)
    assert contents(results, "perturbations", "trials", "images") == before


def test_a_curve_that_is_stopped_midway_goes_on_with_the_same_bits(tmp_path: Path, results: Results) -> None:
    write_data(tmp_path / "one.parquet")
    planned = curve_plan(tmp_path, control=False)
    run_all(planned, results)
    other = open_results(str(tmp_path / "other"))
    stop = threading.Event()
    watcher = Watcher(done=lambda _step: stop.set())
    with pytest.raises(StoppedError):
        run_missing(Run(planned, other, LOCAL, watcher, stop), find_missing(planned, other))
    assert len(other.keys("trials")) == 2, "one trial on two splits"
    assert not other.keys("curves")
    assert run_all(planned, other) == Summary(2, 1, 0)
    for trial in planned.trials:
        assert np.array_equal(results.read_array(trial.trial_id), other.read_array(trial.trial_id))
    told, again = (each.rows("curves").drop_columns("finished_at") for each in (results, other))
    assert told.equals(again)


def test_a_perturbation_lost_from_the_store_is_made_again_for_its_successor(tmp_path: Path, results: Results) -> None:
    write_data(tmp_path / "one.parquet")
    planned = curve_plan(tmp_path, control=False)
    run_all(planned, results)
    last = next(trial for trial in planned.trials if trial.rest_of_curve)
    assert last.continued_from is not None
    pair = [last.trial_id, last.continued_from.trial_id]
    before = [results.read_array(one) for one in pair]
    for key in [*results.objects.keys("perturbations/"), *results.objects.keys("trials/")]:
        if "perturbations" in key or last.trial_id in key:
            results.objects.delete(key)
    assert run_all(planned, results) == Summary(1, 2, 0)
    assert all(np.array_equal(results.read_array(one), v) for one, v in zip(pair, before, strict=True))
