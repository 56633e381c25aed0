"""A mistake in the request: one or two clear lines, exit code 2, nothing written."""

import io
import pickle
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from s3_server import S3Server

from uapray import cli
from uapray.data.phantoms import parse, phantom_table
from uapray.store.results import open_results

Said = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """Run a command line that must be refused; return what it said."""

    def run(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["uapray", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr().err.strip()
        assert ended.value.code == 2, said
        said = said[said.index("uapray: ") :]  # progress may stand before it
        assert len(said.splitlines()) <= 2, f"more than two lines:\n{said}"
        assert "Traceback" not in said
        return said

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set file of phantoms."""
    path = tmp_path / "phantoms.parquet"
    pq.write_table(phantom_table(parse("phantom:chest?images=40&size=32")), path)
    return path


@pytest.fixture
def grid(tmp_path: Path, data: Path) -> Callable[..., Path]:
    """Write a grid file that would run, but for what is changed."""

    def write(**changes: object) -> Path:
        values = {
            "name": "g",
            "data": [{"uri": data.name, "size": 32}],
            "classifiers": [{"architecture": "tiny-cnn", "initial_weights": "random", "recipe": "quick"}],
        }
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**values, **changes}))
        return path

    return write


def changed(path: Path, column: str, change: Callable[[int, object], object]) -> None:
    """Change the values of a column of a data set file."""
    table = pq.read_table(path)
    values = [change(row, value) for row, value in enumerate(table[column].to_pylist())]
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.array(values, table[column].type)), path)


def truncated(size: int = 32) -> bytes:
    body = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size, size), dtype=np.uint8)
    Image.fromarray(noise).save(body, "JPEG")
    return body.getvalue()[: len(body.getvalue()) // 2]


def test_a_truncated_jpeg_among_good_ones_is_named_by_import(tmp_path: Path, refused: Said) -> None:
    for name in ("ILL", "WELL"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (32, 32), 40 * number).save(tmp_path / "scans" / name / f"{number}.jpeg")
    (tmp_path / "scans" / "ILL" / "broken.jpeg").write_bytes(truncated())
    said = refused("data", "import", tmp_path / "scans", tmp_path / "out.parquet")
    assert "broken.jpeg" in said
    assert not (tmp_path / "out.parquet").exists()


def test_a_truncated_jpeg_in_a_data_set_is_named_before_anything_runs(
    tmp_path: Path, refused: Said, grid: Callable[..., Path], data: Path
) -> None:
    name = pq.read_table(data)["id"][7].as_py()
    changed(data, "image", lambda row, body: truncated() if row == 7 else body)
    said = refused("grid", "run", grid(), "--store", tmp_path / "store")
    assert name in said
    assert not (tmp_path / "store").exists()


def test_labels_missing_for_a_split(tmp_path: Path, refused: Said, grid: Callable[..., Path], data: Path) -> None:
    splits = pq.read_table(data)["split"].to_pylist()
    changed(data, "label", lambda row, label: None if splits[row] == "test" else label)
    said = refused("grid", "run", grid(), "--store", tmp_path / "store")
    assert "test" in said
    assert "label" in said
    assert not (tmp_path / "store").exists()


def test_an_unknown_class_as_target(tmp_path: Path, refused: Said, grid: Callable[..., Path]) -> None:
    said = refused("grid", "run", grid(targets=["PNEUMONIA"]), "--store", tmp_path / "store")
    assert "CLEAR, OPACITY, EFFUSION" in said
    assert "PNEUMONIA" in said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("changes", "misspelt", "meant"),
    [
        ({"clasifiers": []}, "clasifiers", "classifiers"),
        ({"rules": [{"rule": "spgd", "step_sise": 0.5}]}, "step_sise", "step_size"),
        ({"budget": {"max_epoch": 2}}, "max_epoch", "max_epochs"),
        ({"data": [{"uri": "x", "sise": 3}]}, "sise", "size"),
    ],
)
def test_a_misspelt_grid_key_gets_the_nearest_valid_name(
    tmp_path: Path, refused: Said, grid: Callable[..., Path], changes: dict[str, object], misspelt: str, meant: str
) -> None:
    said = refused("grid", "run", grid(**changes), "--store", tmp_path / "store")
    assert misspelt in said
    assert f"did you mean '{meant}'" in said
    assert not (tmp_path / "store").exists()


def test_weights_of_another_architecture(tmp_path: Path, refused: Said, grid: Callable[..., Path]) -> None:
    from uapray.models.card import Card
    from uapray.models.weights import make_classifier, save_classifier
    from uapray.models.zoo import build

    module = build("resnet18", classes=3, channels=1, size=(32, 32))
    card = Card(
        architecture="resnet18", class_names=("a", "b", "c"), channels=1, size=(32, 32), initial_weights="random"
    )
    save_classifier(make_classifier(module, card), str(tmp_path / "other.safetensors"))
    entry = {"architecture": "tiny-cnn", "initial_weights": "other.safetensors", "recipe": "quick"}
    said = refused("grid", "run", grid(classifiers=[entry]), "--store", tmp_path / "store")
    assert "tiny-cnn" in said
    assert "other.safetensors" in said
    assert not (tmp_path / "store").exists()


def test_a_pickle_given_as_weights_is_not_opened(tmp_path: Path, refused: Said, grid: Callable[..., Path]) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps({"w": Bomb()}))
        said = refused("grid", "run", grid(classifiers=[{"weights": name}]), "--store", tmp_path / "store")
        assert "safetensors" in said
    torch.save({"w": torch.zeros(3)}, tmp_path / "saved.safetensors")
    said = refused("grid", "run", grid(classifiers=[{"weights": "saved.safetensors"}]), "--store", tmp_path / "store")
    assert "pickle" in said
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "store").exists()


def test_images_of_other_channels_than_the_classifier_takes(
    tmp_path: Path, refused: Said, grid: Callable[..., Path], data: Path
) -> None:
    from uapray.models.card import Card
    from uapray.models.weights import make_classifier, save_classifier
    from uapray.models.zoo import build

    module = build("tiny-cnn", classes=3, channels=3, size=(32, 32))
    names = ("CLEAR", "OPACITY", "EFFUSION")
    card = Card(architecture="tiny-cnn", class_names=names, channels=3, size=(32, 32), initial_weights="random")
    save_classifier(make_classifier(module, card), str(tmp_path / "colour.safetensors"))
    said = refused("grid", "run", grid(classifiers=[{"weights": "colour.safetensors"}]), "--store", tmp_path / "store")
    assert "3 channels" in said
    assert "1 channel" in said
    out = tmp_path / "v.safetensors"
    assert "3 channels" in refused("perturb", "--model", tmp_path / "colour.safetensors", "--data", data, "--out", out)
    assert not out.exists()
    assert not (tmp_path / "store").exists()


@pytest.mark.s3
def test_a_bucket_that_does_not_exist_and_wrong_credentials(
    refused: Said, grid: Callable[..., Path], seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    said = refused("grid", "run", grid(), "--store", "s3://no-such-bucket/results")
    assert "no-such-bucket" in said
    assert "no-such-bucket" not in seaweedfs.buckets()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-wrong-secret")
    said = refused("grid", "run", grid(), "--store", "s3://no-such-bucket/results")
    assert "the-wrong-secret" not in said
    assert "redentials" in said


def test_a_store_without_room(refused: Said, grid: Callable[..., Path], small_disk: Path) -> None:
    before = sorted(small_disk.rglob("*"))
    said = refused("grid", "run", grid(), "--store", small_disk / "store")
    assert "room" in said or "free" in said
    assert sorted(small_disk.rglob("*")) == before


def test_a_grid_that_is_not_there(tmp_path: Path, refused: Said) -> None:
    assert "nowhere.yaml" in refused("grid", "run", tmp_path / "nowhere.yaml", "--store", tmp_path / "store")


def test_a_model_that_is_not_there_and_an_output_of_another_kind(tmp_path: Path, refused: Said, data: Path) -> None:
    assert "no.such" in refused("perturb", "--model", "no.such:function", "--data", data, "--out", "v.safetensors")
    assert "v.npy" in refused("perturb", "--model", "no.such:function", "--data", data, "--out", "v.npy")


def test_compacting_what_is_not_there(
    tmp_path: Path, refused: Said, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = open_results(str(tmp_path / "store"))
    results.write_rows("failures", "mine", "key", [])
    assert "no grid 'none'; there are: mine" in refused("compact", "--store", tmp_path / "store", "--grid", "none")
    (tmp_path / "file").write_text("")
    assert "found a file" in refused("compact", "--store", tmp_path / "file")
    monkeypatch.setattr("sys.argv", ["uapray", "compact", "--store", str(tmp_path / "empty")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "no results yet" in capsys.readouterr().out
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("part", ["0/8", "9/8", "3", "a/b"])
def test_a_part_that_is_none(part: str, tmp_path: Path, refused: Said, grid: Callable[..., Path]) -> None:
    said = refused("grid", "run", grid(), "--store", tmp_path / "store", "--part", part)
    assert f"--part: expected NUMBER/PARTS, from 1/8 to 8/8, got '{part}'" in said


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_told_at_once(
    scheme: str, tmp_path: Path, refused: Said, grid: Callable[..., Path]
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"{scheme}127.0.0.1:{nobody.getsockname()[1]}"
        said = refused("grid", "run", grid(), "--store", tmp_path / "store", "--address", address)
    assert f"Ray at '{address}' did not answer: [Errno 111] Connection refused; is the cluster up?" in said
    assert not (tmp_path / "store").exists()


def test_a_precision_that_is_none_or_not_here(tmp_path: Path, refused: Said, grid: Callable[..., Path]) -> None:
    said = refused("grid", "run", grid(precision="fp8"), "--store", tmp_path / "store")
    assert "precision: unknown 'fp8'" in said
    said = refused("grid", "run", grid(precision="tf32"), "--store", tmp_path / "store")
    assert "precision: tf32 exists on GPUs only" in said
    assert not (tmp_path / "store").exists()


def test_sql_that_writes(tmp_path: Path, refused: Said) -> None:
    assert "read-only" in refused("query", "--store", tmp_path, "DROP TABLE trials")


def test_settings_of_a_search_that_are_none(tmp_path: Path, refused: Said, data: Path) -> None:
    words = ("perturb", "--model", "no.such:function", "--data", data, "--out", tmp_path / "v.safetensors")
    assert "unknown key 'seed'" in refused(*words, "--set", "seed=3")
    assert "did you mean 'max_epochs'" in refused(*words, "--set", "max_epoch=3")
    assert "--set max_epochs" in refused(*words, "--set", "max_epochs=[")


def test_a_place_that_takes_no_output_is_told_before_the_work(tmp_path: Path, refused: Said, data: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for verb in ("perturb", "train"):
        model = ("--model", "no.such:function") if verb == "perturb" else ("--architecture", "tiny-cnn")
        said = refused(verb, *model, "--data", data, "--out", tmp_path / "file" / "x.safetensors")
        assert "expected a folder, found a file" in said


def test_recipes_that_are_none(tmp_path: Path, refused: Said, data: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for text, told in (("a: [", "not YAML"), ("- 1", "expected a mapping"), ("base: 7", "expected one of papers")):
        recipe.write_text(text)
        said = refused("train", "--data", data, "--recipe", recipe, "--out", tmp_path / "x.safetensors")
        assert told in said


def test_training_without_a_split_to_learn_from(tmp_path: Path, refused: Said, data: Path) -> None:
    changed(data, "split", lambda _row, _split: "val")
    said = refused("train", "--data", data, "--architecture", "tiny-cnn", "--out", tmp_path / "x.safetensors")
    assert "expected a split 'train'" in said


def test_arrays_that_are_no_perturbation(tmp_path: Path, refused: Said, data: Path) -> None:
    words = ("--model", "foreign_victims:bright", "--data", data)
    path = tmp_path / "v.npy"
    path.write_bytes(b"")
    assert "expected a .npy array" in refused("evaluate", path, *words)
    for array, told in (
        (np.array(["a"]), "real numbers"),
        (np.full((1, 32, 32), 8, np.uint8), "--scale"),
        (np.zeros((1, 5, 5)), "got (1, 5, 5)"),
    ):
        np.save(path, array)
        assert told in refused("evaluate", path, *words)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_more_replicas_than_the_cluster_holds(tmp_path: Path, refused: Said, grid: Callable[..., Path]) -> None:
    said = refused("grid", "run", grid(), "--store", tmp_path / "store", "--replicas", "99")
    assert "replicas: expected at most 8" in said
    assert not list((tmp_path / "store").rglob("*.*"))


def test_renderings_and_controls_that_are_none(
    tmp_path: Path, refused: Said, grid: Callable[..., Path], data: Path
) -> None:
    words = ("--model", "foreign_victims:bright", "--data", data)
    for spec in ("png", "jpeg:0", "resize:2"):
        told = f"bilateral:0.1 (spread of the pixels), or several with +; got '{spec}'"
        assert told in refused("evaluate", tmp_path / "v.npy", *words, "--rendering", spec)
        assert told in refused("perturb", *words, "--out", tmp_path / "v.safetensors", "--rendering", spec)
        assert told in refused("grid", "run", grid(renderings=[spec]), "--store", tmp_path / "store")
    assert "control_draws" in refused("grid", "run", grid(control_draws=-1), "--store", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_filters_that_are_none(tmp_path: Path, refused: Said, grid: Callable[..., Path]) -> None:
    words = ("--model", "none.safetensors", "--data", "none.parquet", "--filter", "median:2")
    told = "filter: expected uint8, bits:4 (1 to 7)"
    assert f"--{told}" in refused("evaluate", tmp_path / "v.npy", *words)
    assert f"--{told}" in refused("perturb", *words, "--out", tmp_path / "v.safetensors")
    entry = {"architecture": "tiny-cnn", "filters": ["median:2"]}
    assert told in refused("grid", "run", grid(classifiers=[entry]), "--store", tmp_path / "store")


def test_trials_that_are_not_there(tmp_path: Path, refused: Said) -> None:
    assert "no trial 123456 judged on split test" in refused("compare", "--store", tmp_path, "123456", "654321")
    assert "at least 6 digits" in refused("compare", "--store", tmp_path, "12345", "654321")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--zetas", "0.01,much"], "--zetas: expected numbers with commas"),
        (["--zetas", "0.01"], "zetas: expected at least two, got 1"),
        (["--zetas", "0.01,4"], "zetas: expected shares in (0, 1], 0.04 for 4 %, got 4"),
        (["--out", "curve.pdf"], "--out: expected a name ending in .png or .csv, got curve.pdf"),
        (["--set", "refine_epoch=1"], "unknown key 'refine_epoch'; did you mean 'refine_epochs'?"),
        (["--rule", "nothing"], "rule: unknown 'nothing'"),
    ],
)
def test_a_wrong_curve_is_refused_before_anything_is_read(words: list[str], text: str, refused: Said) -> None:
    assert text in refused("curve", "--model", "none.safetensors", "--data", "none.parquet", *words)
