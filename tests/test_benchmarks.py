"""The benchmarks run; what they print is for people to judge, not for a test."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import uapray

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def printed(script: str, *words: object) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_throughput_prints_its_ratios() -> None:
    said = printed("throughput.py", "--architecture", "tiny-cnn", "--size", 32, "--rounds", 2, "--repeats", 1)
    for ratio in ("one replica / careful loop", "one replica / best bare loop", "two replicas / two bare loops"):
        assert ratio in said


@pytest.mark.ray
@pytest.mark.slow
def test_scale_prints_how_busy_replicas_are_and_where_a_driver_is_full() -> None:
    words = ["--size", 32, "--batch-ms", 20, "--replicas", 1, 2, "--batches-a-round", 1, "--images", 300]
    rows = [line.split() for line in printed("scale.py", *words).splitlines() if line.endswith("replicas")]
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(row[2] != "0%" and int(row[-2]) > 0 for row in rows)


def test_scale_costs_prints_what_trials_cost() -> None:
    said = printed("scale_costs.py", "--trials", 1000, "--gpus", 10, "--gpu-hour", 2)
    assert "1,000 trials:" in said
    assert all(f"\n{name} " in said for name in ("GPUs", "drivers", "PUT", "LIST", "storage, a month"))


def test_compare_rules_prints_a_table_and_draws(tmp_path: Path) -> None:
    words = ["--images", 60, "--test-images", 40, "--passes", 20, "--seeds", 1, "--rules", "spgd,cosine-uap"]
    words += ["--draws", 2]
    said = printed(
        "compare_rules.py", "--data", "phantom:chest?images=120&size=32", "--size", 32, *words, "--out", tmp_path
    )
    assert all(said.count(f"\n| {rule} | ") == 3 for rule in ("spgd", "cosine-uap")), "of two draws, and their mean"
    assert "| aimed-ascent, a tenth of them | aimed-ascent, as many |" in said
    assert "nan" not in said
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "points.parquet").exists()


def test_choose_settings_judges_on_other_train_images() -> None:
    words = ["--data", "phantom:chest?images=200&size=32", "--size", 32, "--images", 60, "--judged-images", 40]
    words += ["--settings", "batch_size=4,round_size=4", "--settings", "starts=1", "--image-gradients", 80]
    said = printed("choose_settings.py", *words, "--draws", 2, "--seeds", 1)
    assert [line.split("|")[1].strip() for line in said.splitlines()[-3:]] == [
        "defaults",
        "batch_size=4,round_size=4",
        "starts=1",
    ]
    assert "nan" not in said


def test_settings_are_not_judged_on_patients_that_were_searched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    train, test = (uapray.load_images("phantom:chest?images=300&size=32", split, 32) for split in ("train", "test"))
    drawn = import_module("choose_settings").drawn
    pairs = [drawn(train, test, number, images=60, judged=80) for number in range(2)]
    assert pairs[0][0].ids != pairs[1][0].ids
    for source, judged in pairs:
        assert len(source)
        assert len(judged)
        assert not set(source.ids) & set(judged.ids)
        assert not set(source.groups) & set(judged.groups) - {None}


def test_transfer_prints_its_ratio() -> None:
    words = ["--data", "phantom:chest?images=120&size=32", "--images", 60, "--test-images", 40, "--seeds", 1]
    assert "joint / best single, median: " in printed("transfer.py", *words)


@pytest.mark.slow
def test_sequential_prints_its_ratio() -> None:
    said = printed("sequential.py", "--data", "phantom:chest?images=200&size=64", "--repeats", 1, "--passes", 1)
    assert "ART's time / uapray's time" in said


@pytest.mark.slow
def test_against_art_prints_its_ratio(real_data: Path) -> None:
    data = real_data / "chest_xray_224_*.parquet"
    said = printed("against_art.py", "--data", data, "--seeds", 1, "--passes", 1)
    assert "uapray's time / ART's time" in said


@pytest.mark.slow
def test_black_box_prints_a_line_a_rule() -> None:
    said = printed("black_box.py", "--queries", 2000, "--rules", "hill-climb", "cma-es")
    assert [line.split("  ")[0] for line in said.splitlines()[2:]] == [
        "hill-climb, as published",
        *(f"{rule}, {feedback}" for feedback in ("scores", "labels") for rule in ("hill-climb", "cma-es")),
    ]
