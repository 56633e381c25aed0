"""Every verb, used rightly, as a person would type it."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from uapray import cli

VERBS = [
    ["demo"], ["data"], ["data", "import"], ["data", "fetch"], ["data", "show"], ["data", "leaks"], ["train"],
    ["harden"], ["perturb"], ["curve"], ["evaluate"], ["grid"], ["grid", "plan"], ["grid", "run"], ["status"],
    ["compare"], ["query"], ["verdict"], ["report"], ["compact"], ["doctor"],
]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run a command line in this process; return its exit code."""
    monkeypatch.setattr("sys.argv", ["uapray", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return 0 if code is None else int(code)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_has_an_example(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *verb, "--help") == 0
    said = capsys.readouterr().out
    assert "Usage" in said
    if verb not in (["data"], ["grid"]):
        assert f"uapray {' '.join(verb)}" in said.split("Example", 1)[-1], "no example"


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['uapray', '--help']\n"
        "from uapray.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'numpy', 'boto3', 'pydantic', 'timm', 'matplotlib', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stderr.strip() == "[]"


@pytest.mark.parametrize("collects", [True, False])
def test_planning_leaves_the_garbage_collector_as_it_was(
    collects: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "{name: g, data: [{uri: 'phantom:chest?images=60&size=32'}], classifiers: [{architecture: tiny-cnn}]}"
    (tmp_path / "grid.yaml").write_text(text)
    was = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        assert run(monkeypatch, "grid", "plan", tmp_path / "grid.yaml") == 0
        assert gc.isenabled() is collects
        assert run(monkeypatch, "grid", "plan", tmp_path / "none.yaml") == 2
        assert gc.isenabled() is collects
    finally:
        (gc.enable if was else gc.disable)()


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import uapray

    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == uapray.__version__


def test_import_show_perturb_evaluate_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from uapray.models.card import Card
    from uapray.models.weights import make_classifier, save_classifier
    from uapray.models.zoo import build

    data, model, v = "phantom:chest?images=60&size=32", tmp_path / "m.safetensors", tmp_path / "v.safetensors"
    names = ("CLEAR", "OPACITY", "EFFUSION")
    module = build("tiny-cnn", classes=3, channels=1, size=(32, 32), seed=4)
    card = Card(architecture="tiny-cnn", class_names=names, channels=1, size=(32, 32), initial_weights="random")
    save_classifier(make_classifier(module, card), str(model))

    assert run(monkeypatch, "data", "show", data) == 0
    assert "32x32" in capsys.readouterr().out

    words = ["perturb", "--model", model, "--data", data, "--out", v, "--xi", "0.05", "--set", "max_epochs=1"]
    assert run(monkeypatch, *words, "--target", "EFFUSION") == 0
    said = capsys.readouterr().out
    assert "random control" in said
    assert "as uint8" in said
    assert "19 draws of each matched control" in said
    assert all(kind in said for kind in ("signs", "permuted", "scrambled"))
    assert "ceiling" in said
    made = safetensors.numpy.load_file(v)["perturbation"]
    assert made.shape == (1, 32, 32)
    assert np.abs(made).max() <= 0.05 * (1 + 1e-6)

    grey = tmp_path / "grey.npy"
    np.save(grey, made.transpose(1, 2, 0) * 255)
    few = ["--controls", "0", "--rendering", "jpeg:75", "--rendering", "uint8+resize:0.5"]
    assert run(monkeypatch, "evaluate", v, "--model", model, "--data", data, *few) == 0
    said = capsys.readouterr().out
    assert "matched control" not in said
    assert "as jpeg:75" in said
    assert "as uint8+resize:0.5" in said
    assert run(monkeypatch, "evaluate", v, "--model", model, "--data", data) == 0
    direct = capsys.readouterr().out.splitlines()[1:]
    assert run(monkeypatch, "evaluate", grey, "--model", model, "--data", data, "--scale", 1 / 255) == 0
    assert capsys.readouterr().out.splitlines()[1:] == direct, "another unit and another order of axes"


def test_a_filter_is_attacked_through_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import safe_open

    from uapray.models.card import Card
    from uapray.models.weights import make_classifier, save_classifier
    from uapray.models.zoo import build

    model, v = tmp_path / "m.safetensors", tmp_path / "v.safetensors"
    names = ("CLEAR", "OPACITY", "EFFUSION")
    card = Card(architecture="tiny-cnn", class_names=names, channels=1, size=(32, 32), initial_weights="random")
    module = build("tiny-cnn", classes=3, channels=1, size=(32, 32), seed=4)
    save_classifier(make_classifier(module, card), str(model))
    words = ["--model", model, "--data", "phantom:chest?images=60&size=32", "--controls", "0", "--filter", "bits:02"]
    assert run(monkeypatch, "perturb", *words, "--out", v, "--set", "max_epochs=1") == 0
    assert "behind bits:2" in " ".join(capsys.readouterr().out.split())
    with safe_open(v, framework="numpy") as kept:
        assert kept.metadata()["filter"] == "bits:2"
    assert run(monkeypatch, "evaluate", v, *words) == 0
    assert "behind bits:2" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("form", ["png", "csv"])
def test_curve_prints_its_table_and_writes_its_file(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from uapray.models.card import Card
    from uapray.models.weights import make_classifier, save_classifier
    from uapray.models.zoo import build

    module = build("tiny-cnn", classes=3, channels=1, size=(32, 32), seed=4)
    card = Card(
        architecture="tiny-cnn",
        class_names=("CLEAR", "OPACITY", "EFFUSION"),
        channels=1,
        size=(32, 32),
        initial_weights="random",
    )
    save_classifier(make_classifier(module, card), str(tmp_path / "m.safetensors"))
    words = ["curve", "--model", tmp_path / "m.safetensors", "--data", "phantom:chest?images=60&size=32"]
    out = tmp_path / f"curve.{form}"
    assert run(monkeypatch, *words, "--zetas", "0.02,0.3", "--set", "max_epochs=1", "--out", out) == 0
    shown = capsys.readouterr()
    assert "zeta50 (half of all images)" in shown.out
    assert "zeta50 of the ceiling" in shown.out
    assert "ceiling" in shown.out
    assert "zeta 0.3: 100%" in shown.err, "progress"
    if form == "png":
        assert out.read_bytes().startswith(b"\x89PNG")
    else:
        head, *points = out.read_text().splitlines()
        assert head.startswith("zeta,xi_grey,rate,")
        assert [point.split(",")[0] for point in points] == ["0.02", "0.3"]


def test_the_options_are_named_as_the_settings_name_them() -> None:
    from typing import get_args

    from uapray.cli import options
    from uapray.config import DEFAULT_RULE, USUAL_XI_FROM, RuleName

    assert tuple(options.RULES.split(", ")) == get_args(RuleName)
    assert options.DEFAULT_RULE == DEFAULT_RULE
    assert options.USUAL_XI_FROM == USUAL_XI_FROM


def test_a_perturbation_of_two_classifiers_is_judged_on_a_third(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from uapray.models.card import Card
    from uapray.models.weights import make_classifier, save_classifier
    from uapray.models.zoo import build

    names = ("CLEAR", "OPACITY", "EFFUSION")
    files = []
    for seed in range(3):
        module = build("tiny-cnn", classes=3, channels=1, size=(32, 32), seed=seed)
        card = Card(architecture="tiny-cnn", class_names=names, channels=1, size=(32, 32), initial_weights="random")
        files.append(str(tmp_path / f"net{seed}.safetensors"))
        save_classifier(make_classifier(module, card), files[-1])
    v = tmp_path / "v.safetensors"
    words = ["perturb", "--data", "phantom:chest?images=60&size=32", "--out", v, "--xi", "0.05", "--controls", "0"]
    both = ["--model", files[0], "--model", files[1], "--judge-on", files[2]]
    assert run(monkeypatch, *words, *both, "--weight", "1", "--weight", "2", "--set", "max_epochs=1") == 0
    said = "".join(capsys.readouterr().out.split())
    assert all(f"net{seed}.safetensors" in said for seed in range(3))
    assert said.count("notmadeonit") == 1
    v.unlink()
    assert run(monkeypatch, *words, *both, "--weight", "1") == 2
    assert "expected 2 numbers above 0, one a classifier" in capsys.readouterr().err
    assert not v.exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_train_grid_status_query_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    data, model, store = "phantom:chest?images=60&size=32", tmp_path / "m.safetensors", tmp_path / "store"
    words = ["train", "--data", data, "--out", model, "--architecture", "tiny-cnn", "--recipe", "quick"]
    assert run(monkeypatch, *words, "--initial-weights", "random", "--epochs", "1") == 0
    assert b"accuracy" in capfdbinary.readouterr().out
    card = json.loads((tmp_path / "m.card.json").read_text())
    assert card["metrics"]["test"]["images"] > 0
    assert card["recipe"]["epochs"] == 1

    grid = tmp_path / "grid.yaml"
    grid.write_text(f"{{name: g, data: [{{uri: '{data}'}}], classifiers: [{{weights: m.safetensors}}]}}")
    assert run(monkeypatch, "grid", "plan", grid, "--store", store) == 0
    assert run(monkeypatch, "grid", "run", grid, "--store", store) == 0
    capfdbinary.readouterr()
    assert run(monkeypatch, "grid", "run", grid, "--store", store) == 0
    assert b"0 trials done, 2 stood already" in capfdbinary.readouterr().out
    assert run(monkeypatch, "status", "--store", store, "--grid", grid) == 0
    assert b"0 of 2 trials" in capfdbinary.readouterr().out
    assert run(monkeypatch, "query", "--store", store, "SELECT rule FROM trials ORDER BY 1", "--format", "json") == 0
    assert json.loads(capfdbinary.readouterr().out) == [{"rule": "aimed-ascent"}, {"rule": "random"}]
    none = "SELECT rule FROM trials WHERE rule = 'sga'"
    assert run(monkeypatch, "query", "--store", store, none, "--format", "csv") == 0
    assert capfdbinary.readouterr() == (b"rule\n", b"")
    assert run(monkeypatch, "query", "--store", tmp_path / "elsewhere", none, "--format", "csv") == 0
    assert capfdbinary.readouterr() == (b"rule\n", f"{tmp_path / 'elsewhere'}: no results yet\n".encode())
    made = "SELECT trial_id FROM trials ORDER BY rule"
    assert run(monkeypatch, "query", "--store", store, made, "--format", "json") == 0
    pair = [row["trial_id"][:8] for row in json.loads(capfdbinary.readouterr().out)]
    assert run(monkeypatch, "compare", "--store", store, *pair) == 0
    compared = capfdbinary.readouterr().out
    assert b"McNemar" in compared
    assert b"difference" in compared
    assert run(monkeypatch, "report", "--store", store, "--out", tmp_path / "r.html") == 0
    assert "tiny-cnn" in (tmp_path / "r.html").read_text()
    assert run(monkeypatch, "doctor", "--store", store) == 0
    said = capfdbinary.readouterr().out
    assert b"FAILS" not in said
    assert b"first" in said, "of two that write one step at once"
    assert run(monkeypatch, "compact", "--store", store) == 0
    assert "trials" in capfdbinary.readouterr().out.decode()
    assert len(list((store / "trials").rglob("*.parquet"))) == 1
    assert run(monkeypatch, "grid", "run", grid, "--store", store) == 0
    assert b"0 trials done, 2 stood already" in capfdbinary.readouterr().out
    assert run(monkeypatch, "compare", "--store", store, *pair) == 0
    assert capfdbinary.readouterr().out == compared
