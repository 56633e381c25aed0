"""Hardening on real replicas and training workers, in a grid and as a verb."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import uapray
from uapray import cli
from uapray.cli.running import run_with_progress
from uapray.data.images import hold_out
from uapray.defence import defences
from uapray.experiment import Summary
from uapray.grid import parse_grid
from uapray.group import Floor
from uapray.models.card import Card
from uapray.models.recipe import recipe_of
from uapray.models.training import fit
from uapray.models.weights import make_classifier, save_classifier
from uapray.models.zoo import build
from uapray.plan import Plan, plan_grid
from uapray.pool import ReplicaPool
from uapray.resources import Resources
from uapray.store.results import Results, open_results

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

DATA = "phantom:chest?images=160&size=32&seed=1"
GRID = """
name: hard
data: [{{uri: "{data}"}}]
classifiers:
  - weights: {model}
    name: net
    hardened:
      - none
      - {{rounds: {rounds}, perturbations: 2, rule: {{rule: spgd, budget: {{max_epochs: 1}}}},
         recipe: {{optimizer: adamw, epochs: 1}}}}
rules: [spgd]
budget: {{max_epochs: 1}}
control_draws: 0
renderings: []
transfer: true
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that is worth hardening, in a file."""
    train = uapray.load_images(DATA, "train")
    module = build("tiny-cnn", classes=3, channels=1, size=(32, 32), seed=0)
    fit(module, *hold_out(train, 0.2, 0), recipe_of({"base": "quick", "epochs": 4}), seed=0)
    card = Card(
        architecture="tiny-cnn",
        class_names=train.class_names,
        channels=1,
        size=(32, 32),
        initial_weights="random",
        mean=tuple(module.mean.flatten().tolist()),
        std=tuple(module.std.flatten().tolist()),
    )
    file = tmp_path_factory.mktemp("model") / "net.safetensors"
    save_classifier(make_classifier(module, card), str(file))
    return file


def planned(model: Path, rounds: int) -> Plan:
    return plan_grid(parse_grid(GRID.format(data=DATA, model=model, rounds=rounds), origin="test"))


def run(model: Path, results: Results, rounds: int, replicas: int = 1) -> Summary:
    return run_with_progress(planned(model, rounds), results, Resources(replicas=replicas), None)


@pytest.mark.slow
def test_more_rounds_go_on_where_fewer_ended_with_the_same_bits(model: Path, tmp_path: Path) -> None:
    at_once, in_parts = (open_results(str(tmp_path / name)) for name in ("at-once", "in-parts"))
    assert run(model, at_once, 2).failed == 0
    assert run(model, in_parts, 1).failed == 0
    first = in_parts.rows("hardening").to_pylist()
    assert run(model, in_parts, 2, replicas=2).failed == 0
    rows = {row["round"]: row for row in in_parts.rows("hardening").to_pylist()}
    assert rows[1] == first[0], "the first round was not made again"
    for row in at_once.rows("hardening").to_pylist():
        other = rows[row["round"]]
        assert {**row, "finished_at": None} == {**other, "finished_at": None}
    assert [row["image_gradients"] > 0 for row in rows.values()] == [True, True]
    assert rows[2]["undefended_sha256"] == rows[1]["undefended_sha256"] != rows[1]["classifier_sha256"]

    trials = {(row["classifier"], row["made_on"]): row for row in at_once.rows("trials").to_pylist()}
    hard = "net+retraining"
    assert set(trials) == {("net", "net"), ("net", hard), ("net", None), (hard, hard), (hard, "net"), (hard, None)}
    assert {row["hardened"] for (name, _), row in trials.items() if name == hard} == {"retraining:2"}
    assert {row["hardened"] for (name, _), row in trials.items() if name == "net"} == {None}
    assert trials[hard, hard]["classifier_sha256"] == rows[2]["classifier_sha256"]
    scores = {row["classifier_sha256"] for row in at_once.rows("classifiers").to_pylist()}
    assert scores == {row["classifier_sha256"] for row in rows.values()}, "clean metrics of each round are kept"

    (defence,) = defences(at_once)
    assert (defence.classifier, defence.undefended, defence.hardened) == (hard, "net", "retraining:2")
    rate = {attack.kind: attack for attack in defence.attacks}
    assert rate["white box"].after is not None
    assert rate["white box"].after.value == trials[hard, hard]["fooling_rate"]
    assert rate["transferred"].after is not None
    assert rate["transferred"].after.value == trials[hard, "net"]["fooling_rate"]


def test_replicas_of_a_hardening_are_counted(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []

    @contextmanager
    def entered(floor: Floor, pool: ReplicaPool) -> Iterator[None]:
        counted.append("entered")
        with plain(floor, pool):
            assert pool in floor.pools
            yield
        assert pool not in floor.pools

    plain = Floor.entered
    monkeypatch.setattr(Floor, "entered", entered)
    plan = planned(model, 1)
    assert run(model, open_results(str(tmp_path / "store")), 1).failed == 0
    in_groups = len(list(plan.groups())) + len(list(plan.transfers(frozenset())))
    assert len(counted) == in_groups + 2, "one pool makes perturbations before the training, one judges after it"


def test_the_verb_writes_a_classifier_and_what_it_is_worth(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hardened.safetensors"
    words = ["--method", "universal-training", "--epochs", "2", "--seeds", "1", "--queries", "300"]
    command = ["uapray", "harden", "--model", str(model), "--data", DATA, "--out", str(out), *words]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().out
    assert ended.value.code in (0, None), said
    hardened = uapray.load_classifier(str(out))
    assert hardened.card.recipe["hardening"]["method"] == "universal-training"
    assert hardened.sha256 != uapray.load_classifier(str(model)).sha256
    assert hardened.card.metrics["test"]["images"] > 0
    for part in (
        "clean accuracy",
        "those it was trained with",
        "hill-climb, made on it",
        "what it stands least",
        "masked",
    ):
        assert part in said
    assert open_results(str(tmp_path / "hardened-results")).rows("hardening").num_rows == 1
