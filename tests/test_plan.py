import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from uapray.clinical import Roles
from uapray.data.dataset import DataSet, dataset_of
from uapray.errors import ConfigError, NotFoundError, UserError
from uapray.grid import parse_grid
from uapray.plan import Plan, chains, plan_grid, resolve

TRAIN = [{"architecture": "small-cnn", "initial_weights": "random", "recipe": "quick"}]


def data_set(uri: str, *, train: int = 30, test: int = 10, classes: Sequence[str] = ("NORMAL", "PNEUMONIA")) -> DataSet:
    """Return a data set whose pictures nobody decodes."""
    count = train + test
    table = pa.table(
        {
            "id": [f"image {i}" for i in range(count)],
            "image": [b"not a picture %d" % i for i in range(count)],
            "label": [i % len(classes) for i in range(count)],
            "label_name": [classes[i % len(classes)] for i in range(count)],
            "split": ["train"] * train + ["test"] * test,
            "group": [f"patient {i // 2}" for i in range(count)],
        }
    )
    return dataset_of(Path(uri).stem, uri, table, tuple(classes))


def plan(base: str = "", **changes: Any) -> Plan:
    values = {"name": "first", "data": [{"uri": "chest.parquet"}], "classifiers": TRAIN, **changes}
    return plan_grid(parse_grid(yaml.safe_dump(values), origin="grid.yaml"), base=base, opened=data_set)


def ids(**changes: Any) -> list[str]:
    return [trial.trial_id for trial in plan(**changes).trials]


def test_identifiers_of_this_version() -> None:
    """What stands in stores was written under these: change them on purpose only, with a line in CHANGELOG.md."""
    aimed, random = plan().trials
    assert (aimed.search.rule, random.search.rule) == ("aimed-ascent", "random")
    assert aimed.source.key == "d4bcc3a518f7af8aee1d"
    assert aimed.victim.key == "2fe69898f62dba6071f3"
    assert [aimed.trial_id, random.trial_id] == ["47047dd530b37629c21d", "c5ef1b464ce9d4413a41"]
    former = ids(rules=[{"rule": "aimed-ascent", "leave_out": False, "screen_images": 0}], control=False)
    assert former == ["51c12f3d8158250c4939"], "as it was before anything could be left out"


def test_leaving_images_out_is_part_of_the_key_where_it_does_something() -> None:
    def both(rule: str = "aimed-ascent", classes: str = "AB", **changes: Any) -> int:
        rules = [{"rule": rule, "leave_out": leave} for leave in (True, False)]
        values = {"name": "g", "data": [{"uri": "x.parquet"}], "classifiers": TRAIN, "control": False, "rules": rules}
        grid = parse_grid(yaml.safe_dump({**values, **changes}), origin="grid.yaml")
        return len({one.trial_id for one in plan_grid(grid, opened=lambda uri: data_set(uri, classes=classes)).trials})

    assert both() == 2
    assert both(targets=["A"]) == 2
    assert both("spgd") == 1, "its one start has no aim"
    assert both("spgd", targets=["A"]) == 2
    assert both(classes="ABC") == both(classes="ABC", targets=["A"]) == 1
    assert both(zetas=[0.01, 0.02, 0.04], curve=True) == 6
    assert both("spgd", zetas=[0.01, 0.02, 0.04], curve=True) == 5, "what continues has an aim"
    assert ids(control=False) == ids(control=False, rules=[{"rule": "aimed-ascent", "leave_out": True}])


def test_what_is_kept_of_earlier_gradients_is_part_of_the_key_by_what_it_comes_to() -> None:
    def key(momentum: float | None, classes: str, rule: str = "aimed-ascent") -> str:
        rules = [{"rule": rule, "momentum": momentum}]
        values = {"name": "g", "data": [{"uri": "x.parquet"}], "classifiers": TRAIN, "control": False, "rules": rules}
        grid = parse_grid(yaml.safe_dump(values), origin="grid.yaml")
        (one,) = plan_grid(grid, opened=lambda uri: data_set(uri, classes=classes)).trials
        return one.trial_id

    assert key(None, "ABC") == key(0.5, "ABC") != key(0, "ABC")
    assert key(None, "AB") == key(0, "AB") != key(0.5, "AB")
    assert key(None, "ABC", "spgd") == key(0, "ABC", "spgd")


def test_a_filter_of_gradients_is_part_of_the_key_where_there_is_one() -> None:
    def key(rounds: float | None, norm: str, rule: str = "aimed-ascent") -> tuple[str, ...]:
        return tuple(ids(control=False, norms=[norm], rules=[{"rule": rule, "wiener_rounds": rounds}]))

    for norm, rule in (("linf", "aimed-ascent"), ("linf", "spgd"), ("l2", "spgd")):
        assert key(None, norm, rule) == key(0, norm, rule), "none unless it is asked for"
    assert key(None, "l2") == key(4, "l2")
    for norm in ("linf", "l2"):
        assert len({key(rounds, norm) for rounds in (0, 2, 4)}) == 3


def test_what_starts_are_compared_by_is_part_of_the_key_where_it_is_not_usual() -> None:
    def key(images: int, norm: str = "l2", classes: str = "ABC", **changes: object) -> str:
        rules = [{"rule": "aimed-ascent", "screen_images": images, **changes}]
        values = {"name": "g", "data": [{"uri": "x.parquet"}], "classifiers": TRAIN, "control": False, "rules": rules}
        grid = parse_grid(yaml.safe_dump({**values, "norms": [norm]}), origin="grid.yaml")
        (one,) = plan_grid(grid, opened=lambda uri: data_set(uri, classes=classes)).trials
        return one.trial_id

    for norm in ("linf", "l2"):
        assert key(256, norm) != key(0, norm)
    assert key(256, classes="AB") != key(0, classes="AB")
    assert key(0, starts=1) == key(256, starts=1), "one start has no heats"


def test_small_rounds_are_part_of_the_key_where_few_image_gradients_are_allowed() -> None:
    def key(least: int, target: str | None = "A", classes: str = "AB", **budget: float) -> str:
        rules = [{"rule": "aimed-ascent", "least_rounds": least, "budget": budget}]
        values = {"name": "g", "data": [{"uri": "x.parquet"}], "classifiers": TRAIN, "control": False, "rules": rules}
        grid = parse_grid(yaml.safe_dump({**values, "targets": [target]}), origin="grid.yaml")
        (one,) = plan_grid(grid, opened=lambda uri: data_set(uri, classes=classes)).trials
        return one.trial_id

    assert key(0, max_image_gradients=400) != key(400, max_image_gradients=400)
    assert key(0) == key(400), "passes are what they are"
    for target, classes in ((None, "AB"), ("A", "ABC")):
        usual, small = (key(least, target, classes, max_image_gradients=400) for least in (0, 400))
        assert usual == small, "images of several classes are asked, or none are left out"


def test_how_gradients_are_taken_is_part_of_the_key_where_it_is_not_usual() -> None:
    rules = ["spgd", "uap-fgsm", "hill-climb"]
    usual = ids(rules=rules, attacker_share=0.3)
    assert ids(rules=rules, attacker_share=0.3, precision="fp32", compiled=False) == usual
    others = [ids(rules=rules, attacker_share=0.3, **how) for how in ({"precision": "bf16"}, {"compiled": True})]
    for spgd, fgsm, *without_gradients in others:
        assert spgd not in usual
        assert without_gradients == usual[2:], "they ask for predictions, which are fp32"
        assert (fgsm in usual) == ([spgd, fgsm] == others[1][:2]), "image by image nothing is compiled"
    assert others[0][0] != others[1][0]


@pytest.mark.parametrize("of", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("curve", [False, True])
def test_parts_have_each_trial_once_in_order_and_curves_whole(of: int, curve: bool) -> None:
    whole = plan(zetas=[0.02, 0.04], curve=curve, seeds=[0, 1, 2], norms=["linf", "l2"])
    parts = [whole.part(number, of) for number in range(1, of + 1)]
    dealt = [trial.trial_id for part in parts for trial in part.trials]
    assert sorted(dealt) == sorted(trial.trial_id for trial in whole.trials)
    for part in parts:
        mine = {trial.trial_id for trial in part.trials}
        assert all({one.trial_id for one in trial.rest_of_curve} <= mine for trial in part.trials)
    sizes = [len(chains(part.trials)) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_identifiers_do_not_change_from_one_planning_to_the_next() -> None:
    assert ids(zetas=[0.02, 0.04]) == ids(zetas=[0.02, 0.04])


def test_the_order_of_a_description_changes_the_order_of_the_work_alone() -> None:
    one = ids(norms=["l2", "linf"], zetas=[0.02, 0.04], seeds=[0, 1], rules=["spgd", "sga"], targets=[None, "all"])
    other = ids(targets=["all", None], rules=["sga", "spgd"], seeds=[1, 0], zetas=[0.04, 0.02], norms=["linf", "l2"])
    assert one != other
    assert sorted(one) == sorted(other)
    assert len(set(one)) == 2 * 2 * 2 * 3 * 3
    entry = {"rule": "spgd", "starts": 2, "budget": {"max_epochs": 1, "stop_rate": 0.5}}
    turned = {"budget": {"stop_rate": 0.5, "max_epochs": 1}, "starts": 2, "rule": "spgd"}
    assert ids(rules=[entry]) == ids(rules=[turned])


@pytest.mark.parametrize(
    "changes",
    [
        {"rules": ["sga"]},
        {"rules": [{"rule": "spgd", "batch_size": 8, "round_size": 8}]},
        {"rules": [{"rule": "spgd", "round_size": 32}]},
        {"rules": [{"rule": "spgd", "starts": 2}]},
        {"budget": {"max_epochs": 3}},
        {"zetas": [0.05]},
        {"norms": ["l2"]},
        {"targets": ["NORMAL"]},
        {"seeds": [1]},
        {"data": [{"uri": "chest.parquet", "size": 32}]},
        {"classifiers": [{**TRAIN[0], "train_seeds": [1]}]},
        {"classifiers": [{**TRAIN[0], "recipe": "papers"}]},
        {"classifiers": [{**TRAIN[0], "initial_weights": "pretrained"}]},
        {"classifiers": [{**TRAIN[0], "architecture": "resnet18"}]},
    ],
)
def test_whatever_changes_a_result_changes_its_identifier(changes: dict[str, Any]) -> None:
    assert ids(**changes)[0] != ids()[0]


def test_batch_size_belongs_to_the_identity_even_where_the_round_stays() -> None:
    assert ids(rules=[{"rule": "spgd", "batch_size": 8, "round_size": 16}])[0] != ids()[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "second"},
        {"splits": ["test", "train"]},
        {"examples": 0},
        {"data": [{"uri": "chest.parquet", "name": "another name"}]},
        {"classifiers": [{**TRAIN[0], "name": "another name"}]},
        {"rules": [{"rule": "aimed-ascent"}]},
        {"rules": [{"rule": "aimed-ascent", "starts": 4, "step_size": 0.8}]},
        {"zetas": [0.040]},
        {"rules": ["aimed-ascent"], "budget": {"max_epochs": 2}},
    ],
)
def test_whatever_does_not_change_a_result_leaves_its_identifier(changes: dict[str, Any]) -> None:
    assert ids(**changes) == ids()


@pytest.mark.parametrize("place", ["top", "rule", "budget"])
def test_replicas_are_no_part_of_a_description(place: str) -> None:
    changes: dict[str, Any] = {
        "top": {"replicas": 4},
        "rule": {"rules": [{"rule": "spgd", "replicas": 4}]},
        "budget": {"budget": {"replicas": 4}},
    }[place]
    with pytest.raises(ConfigError, match=r"unknown key '.*replicas'"):
        plan(**changes)


def test_a_control_depends_on_its_rule_alone() -> None:
    plain = ids(rules=["random"])
    assert ids(rules=[{"rule": "random", "starts": 9, "budget": {"max_epochs": 1}}]) == plain
    assert ids(rules=["random"], budget={"max_epochs": 1}) == plain
    assert ids()[1:] == plain


def test_the_same_pixels_elsewhere_are_the_same_step_and_others_another() -> None:
    assert ids(data=[{"uri": "copies/chest.parquet"}]) == ids()

    def other(uri: str) -> DataSet:
        return data_set(uri, train=31)

    grid = parse_grid(
        yaml.safe_dump({"name": "x", "data": [{"uri": "chest.parquet"}], "classifiers": TRAIN}), origin="x"
    )
    assert plan_grid(grid, opened=other).trials[0].trial_id != ids()[0]


def test_the_same_weights_are_the_same_classifier_wherever_they_lie(tmp_path: Path) -> None:
    for name, body in (("a", b"weights"), ("b", b"weights"), ("c", b"others")):
        (tmp_path / f"{name}.safetensors").write_bytes(body)

    def victim(name: str) -> str:
        return plan(str(tmp_path), classifiers=[{"weights": f"{name}.safetensors"}]).victims[0].key

    assert victim("a") == victim("b") != victim("c")
    with pytest.raises(NotFoundError):
        victim("missing")


def test_duplicates_collapse() -> None:
    doubled = plan(
        data=[{"uri": "chest.parquet"}] * 2,
        classifiers=TRAIN * 2,
        norms=["linf"] * 2,
        zetas=[0.04, 0.04],
        targets=[None, "nontargeted"],
        rules=["aimed-ascent", "random", {"rule": "aimed-ascent"}],
        seeds=[0, 0],
    )
    assert [trial.trial_id for trial in doubled.trials] == ids()
    assert len(doubled.victims) == 1
    assert [len(trials) for *_, trials in doubled.groups()] == [2]


def test_a_split_named_twice_is_judged_once() -> None:
    for trial in plan(splits=["test", "test"]).trials:
        assert trial.row_keys() == (f"{trial.trial_id}-test",)


def test_all_means_each_class_in_turn_and_each_once() -> None:
    trials = plan(targets=["PNEUMONIA", "all", None], control=False).trials
    assert [trial.threat.target for trial in trials] == ["PNEUMONIA", "NORMAL", None]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"targets": ["CAT"]}, "target: expected one of NORMAL, PNEUMONIA, got 'CAT'"),
        ({"splits": ["val"]}, "chest: expected a split 'val', got train, test"),
        ({"splits": ["test", "tset"]}, "chest: expected a split 'tset', got train, test"),
    ],
)
def test_what_the_data_do_not_have_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**changes)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("uri", "base", "expected"),
    [
        ("chest.parquet", "", "chest.parquet"),
        ("chest.parquet", "jobs", "jobs/chest.parquet"),
        ("../data/*.parquet", "/home/me/jobs", "/home/me/data/*.parquet"),
        ("/data/chest.parquet", "jobs", "/data/chest.parquet"),
        ("s3://bucket/chest.parquet", "jobs", "s3://bucket/chest.parquet"),
        ("file:///data/chest.parquet", "jobs", "file:///data/chest.parquet"),
        ("phantom:chest?images=36", "jobs", "phantom:chest?images=36"),
        ("chest.parquet", "s3://bucket/jobs", "s3://bucket/jobs/chest.parquet"),
        ("../chest.parquet", "s3://bucket/jobs", "s3://bucket/chest.parquet"),
    ],
)
def test_relative_paths_are_relative_to_the_grid_file(uri: str, base: str, expected: str) -> None:
    assert resolve(uri, base) == expected


def test_relative_paths_of_data_and_weights_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"weights")
    (tmp_path / "jobs").mkdir()
    planned = plan(
        str(tmp_path / "jobs"), data=[{"uri": "../chest.parquet"}], classifiers=[{"weights": "../net.safetensors"}]
    )
    assert planned.trials[0].source.data.uri == str(tmp_path / "chest.parquet")
    assert planned.victims[0].reference == str(tmp_path / "net.safetensors")
    assert planned.victims[0].name == "net"


def test_trials_that_share_classifier_and_data_come_together() -> None:
    both = plan(
        data=[{"uri": "chest.parquet"}, {"uri": "chest.parquet", "size": 32, "name": "small"}],
        classifiers=[{"weights": "foreign_victims:indifferent"}],
        seeds=[0, 1],
    )
    groups = list(both.groups())
    assert [source.name for _, source, _ in groups] == ["chest", "small"]
    assert [len(trials) for *_, trials in groups] == [4, 4]
    assert len(both.victims) == 1


def test_classifiers_are_named_apart_by_seed() -> None:
    planned = plan(classifiers=[{**TRAIN[0], "train_seeds": [0, 1]}])
    assert [victim.name for victim in planned.victims] == ["small-cnn-random-0", "small-cnn-random-1"]


def test_image_gradients_are_estimated_before_the_run() -> None:
    settings = {"rule": "aimed-ascent", "starts": 4, "batch_size": 4, "round_size": 4, "budget": {"max_epochs": 2}}
    aimed, random = plan(rules=[settings]).trials
    # 24 of 30 are not held out: six rounds a pass; of two classes two starts, which make four rounds each in the heat
    assert aimed.image_gradients() == 2 * (2 * 4 + 8)
    (whole,) = plan(rules=[settings | {"leave_out": False}], control=False).trials
    assert whole.image_gradients() == 4 * (2 * 4 + 8)
    (targeted, _) = plan(rules=[settings], targets=["NORMAL"]).trials
    assert targeted.image_gradients() == 2 * 12
    assert random.image_gradients() == 0
    (limited, _) = plan(budget={"max_image_gradients": 100}).trials
    assert limited.image_gradients() == 100
    (timed, _) = plan(budget={"max_seconds": 100}).trials
    assert timed.image_gradients() == 0


def test_the_names_of_the_classes_are_part_of_what_images_are() -> None:
    grid = parse_grid(
        "{name: g, data: [{uri: x.parquet}], classifiers: [{weights: 'foreign_victims:bright'}]}", origin=""
    )
    one, other = (
        plan_grid(grid, opened=lambda uri, names=names: data_set(uri, classes=names)).trials[0].trial_id
        for names in (("NORMAL", "PNEUMONIA"), ("PNEUMONIA", "NORMAL"))
    )
    assert one != other


def test_a_function_is_known_by_the_weights_that_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for weight in (1, 1, 2):
        (tmp_path / "changing_victim.py").write_text(
            "import torch\n\ndef build():\n    module = torch.nn.Linear(2, 2, bias=False)\n"
            f"    torch.nn.init.constant_(module.weight, {weight})\n    return module\n"
        )
        monkeypatch.delitem(sys.modules, "changing_victim", raising=False)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        keys.append(plan(classifiers=[{"weights": "changing_victim:build"}]).victims[0].key)
    assert keys[0] == keys[1] != keys[2]


def test_what_it_is_made_from_is_part_of_the_identifier_where_it_is_not_usual() -> None:
    usual, few, natural = ({}, {"images": 5}, {"uri": "natural.parquet"})
    assert ids(sources=[usual]) == ids()
    trials = plan(sources=[usual, few, natural, {**natural, "images": 5, "name": "nature"}]).trials
    assert {*ids()} < {trial.trial_id for trial in trials}, "others beside it leave an identifier as it is"
    assert len({trial.trial_id for trial in trials}) == 5, "the control is made from nothing"
    assert [trial.source_name for trial in trials if trial.search.rule != "random"] == [
        "chest/train",
        "chest/train[5]",
        "natural/train",
        "nature/train[5]",
    ]
    assert [trial.measured_on for trial in trials] == ["train"] * 5
    fewer, *_ = plan(sources=[few]).trials
    assert fewer.image_gradients() < plan().trials[0].image_gradients()
    moved = plan(sources=[{"uri": "elsewhere/natural.parquet", "name": "moved"}]).trials[0]
    assert moved.trial_id == trials[2].trial_id, "the name and the place of the images are no part of it"


@pytest.mark.parametrize(
    ("sources", "text"),
    [
        ([{"images": 31}], "expected at most 30 images, which is all there are, got 31"),
        ([{"split": "trian"}], "expected one of the splits train, test of chest, got 'trian'"),
        ([{"uri": "natural.parquet", "split": "val"}], "natural: expected one of the splits train, test, got val"),
        ([{"uri": "a/one.parquet"}, {"uri": "b/one.parquet", "split": "test", "name": "one"}], None),
        ([{"images": 1}], "images"),
    ],
)
def test_sources_that_are_not_there_are_refused(sources: list[dict[str, Any]], text: str | None) -> None:
    if text is None:
        assert len(plan(sources=sources).trials) == 3
        return
    with pytest.raises(UserError, match=re.escape(text)):
        plan(sources=sources)


def test_a_black_box_rule_is_refused_more_images_than_the_attacker_has() -> None:
    asked: dict[str, Any] = {"rules": ["hill-climb"], "attacker_share": 0.5}
    has = plan(**asked).trials[0].source.counts["attacker"]
    assert plan(**asked, sources=[{"images": has}]).trials
    with pytest.raises(ConfigError, match=f"sources: expected at most {has} images of attacker, .* got {has + 1}"):
        plan(**asked, sources=[{"images": has + 1}])


def test_a_loss_that_is_named_is_the_same_as_the_default_it_names() -> None:
    asked = {"rules": ["aimed-ascent"], "targets": ["NORMAL"]}
    named = {**asked, "rules": [{"rule": "aimed-ascent", "loss": "probability-log"}]}
    other = {**asked, "rules": [{"rule": "aimed-ascent", "loss": "cross-entropy"}]}
    assert ids(**asked) == ids(**named)
    assert ids(**asked) != ids(**other)
    away = {**other, "targets": ["nontargeted"]}
    assert ids(**away) == ids(**{**asked, "targets": ["nontargeted"]})


def test_what_classes_mean_to_a_clinician_is_no_part_of_the_identifier() -> None:
    told = {"uri": "chest.parquet", "healthy": "NORMAL", "referable": ["PNEUMONIA"]}
    assert ids(data=[told]) == ids()
    assert plan(data=[told]).trials[0].source.roles == Roles(0, frozenset({1}))
    with pytest.raises(ConfigError, match="healthy and referable to be of NORMAL, PNEUMONIA, got 'normal'"):
        plan(data=[{"uri": "chest.parquet", "healthy": "normal"}])


def test_a_filter_makes_a_classifier_of_its_own_out_of_one_training() -> None:
    assert ids(classifiers=[{**TRAIN[0], "filters": ["none"]}]) == ids()
    victims = plan(classifiers=[{**TRAIN[0], "filters": ["none", "jpeg:075", "jpeg:75"]}]).victims
    assert [victim.name for victim in victims] == ["small-cnn-random", "small-cnn-random+jpeg:75"]
    assert len({victim.key for victim in victims}) == 2
    assert len({victim.bare_key for victim in victims}) == 1
    with pytest.raises(ConfigError, match="filter: expected uint8"):
        plan(classifiers=[{**TRAIN[0], "filters": ["blur"]}])


def test_a_hardened_classifier_is_one_round_after_another() -> None:
    assert ids(classifiers=[{**TRAIN[0], "hardened": ["none"]}]) == ids()
    hardened = ["none", {"rounds": 2}, {"rounds": 3, "name": "longer"}, "universal-training"]
    bare, twice, longer, universal = plan(classifiers=[{**TRAIN[0], "hardened": hardened}]).victims
    assert [one.name for one in (bare, twice, longer, universal)] == [
        "small-cnn-random",
        "small-cnn-random+retraining",
        "longer",
        "small-cnn-random+universal-training",
    ]
    assert [one.hardening for one in (bare, twice, longer, universal)] == [
        None,
        "retraining:2",
        "retraining:3",
        "universal-training:1",
    ]
    assert longer.hardened is not None
    assert longer.hardened.base.key == twice.key, "more rounds begin with those that stand"
    assert longer.undefended.key == bare.key
    assert len({bare.key, twice.key, longer.key, universal.key}) == 4
    assert {one.learnt_on for one in (bare, longer)} == {plan().trials[0].source.key}


def test_what_decides_a_hardened_classifier_is_in_its_key() -> None:
    def key(**settings: Any) -> str:
        return plan(classifiers=[{**TRAIN[0], "hardened": [settings]}]).victims[0].key

    usual = key()
    assert usual == key(method="retraining", rule="aimed-ascent", rounds=5, name="other", step_share=0.3)
    assert usual == key(rule={"rule": "aimed-ascent", "step_size": 0.8}), "the rule's own step"
    changed = [{"zeta": 0.03}, {"norm": "l2"}, {"target": "NORMAL"}, {"perturbations": 3}, {"perturbed_share": 1.0}]
    changed += [
        {"rule": "spgd"},
        {"recipe": {"epochs": 2}},
        {"seed": 1},
        {"rounds": 4},
        {"method": "universal-training"},
    ]
    assert len({usual, *(key(**one) for one in changed)}) == len(changed) + 1
    universal = {"method": "universal-training"}
    assert key(**universal) == key(**universal, perturbations=3), "it makes none"
    assert key(**universal) != key(**universal, step_share=0.3)


def test_a_training_gives_a_classifier_at_each_share_of_its_way() -> None:
    assert ids(classifiers=[{**TRAIN[0], "tuned": [1.0]}]) == ids()
    entry = {**TRAIN[0], "tuned": [0, 0.5, 1, 0.5], "hardened": ["none", {"rounds": 1}], "filters": ["none", "bits:2"]}
    victims = plan(classifiers=[entry]).victims
    name = "small-cnn-random"
    assert [victim.name for victim in victims] == [
        f"{name}{share}{hard}{behind}"
        for share in ("+tuned:0", "+tuned:0.5", "")
        for hard in ("", "+retraining")
        for behind in ("", "+bits:2")
    ]
    assert [victim.tuned for victim in victims[::4]] == [0, 0.5, 1]
    assert len({victim.key for victim in victims}) == 12
    half, trained = victims[4], victims[8]
    assert half.interpolated is not None
    assert half.interpolated.base.key == trained.key == plan().victims[0].key
    assert victims[6].undefended.key == half.key
    assert {victim.learnt_on for victim in victims} == {plan().trials[0].source.key}


def test_frozen_blocks_are_part_of_the_key_where_there_are_any() -> None:
    def key(frozen_blocks: int) -> str:
        entry = {**TRAIN[0], "recipe": {"base": "quick", "frozen_blocks": frozen_blocks}}
        return plan(classifiers=[entry]).victims[0].key

    assert key(0) == plan().victims[0].key
    assert len({key(count) for count in range(4)}) == 4


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({**TRAIN[0], "tuned": [25]}, "expected shares in [0, 1], 0.25 for a quarter of the way, got 25"),
        ({**TRAIN[0], "tuned": []}, "tuned"),
        ({"weights": "x.safetensors", "tuned": [0.5, 1]}, "tuned: expected architecture, so that it is known where"),
        ({**TRAIN[0], "recipe": {"frozen_blocks": -1}}, "frozen_blocks"),
    ],
)
def test_a_dose_that_makes_no_sense_is_refused(entry: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        plan(classifiers=[entry])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rounds": 0}, "greater than 0"),
        ({"rule": "hill-climb"}, "expected a rule that takes gradients, got hill-climb"),
        ({"method": "retrain"}, "unknown 'retrain'; did you mean 'retraining'?"),
        ({"target": "normal"}, "target: expected one of NORMAL, PNEUMONIA, got 'normal'"),
        ({"recipe": {"epoch": 3}}, "unknown key 'epoch'; did you mean 'epochs'?"),
        ({"perturbation": 3}, "unknown key 'classifiers.0.hardened.0.perturbation'; did you mean 'perturbations'?"),
    ],
)
def test_a_hardening_that_makes_no_sense_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        plan(classifiers=[{**TRAIN[0], "hardened": [settings]}])


def test_two_things_of_one_name_are_refused() -> None:
    recipes = [{**TRAIN[0], "recipe": {"base": "quick", "epochs": epochs}} for epochs in (1, 2)]
    with pytest.raises(ConfigError, match="two called 'small-cnn-random'; tell them apart with 'name'"):
        plan(classifiers=recipes)
    with pytest.raises(ConfigError, match="two called 'chest'"):
        plan(data=[{"uri": "chest.parquet"}, {"uri": "chest.parquet", "size": 32}])
    assert len(plan(classifiers=[TRAIN[0], TRAIN[0]]).victims) == 1


def test_what_is_judged_is_not_part_of_the_identifier_but_of_what_is_missing() -> None:
    asked = plan(renderings=["uint8", "jpeg:75"], control_draws=9, control_images=50)
    assert [trial.trial_id for trial in asked.trials] == ids()
    spgd, random = asked.trials
    assert set(spgd.judgements()) == {
        ("trials", f"{spgd.trial_id}-test"),
        ("renderings", f"{spgd.trial_id}-test-uint8"),
        ("renderings", f"{spgd.trial_id}-test-jpeg:75"),
        ("controls", f"{spgd.trial_id}-test-9x50"),
    }
    assert not any(table == "controls" for table, _ in random.judgements())
    standing = {*spgd.judgements(), *random.judgements()}
    assert asked.missing(asked.trials, standing) == ()
    for one in spgd.judgements():
        assert asked.missing(asked.trials, standing - {one}) == (spgd,)
    bare = plan(renderings=[], control_draws=0).trials[0]
    assert set(bare.judgements()) == {("trials", key) for key in bare.row_keys()}


def test_a_curve_is_searched_from_its_middle_and_its_last_trial_writes_the_row() -> None:
    asked = {"zetas": [0.04, 0.01, 0.02], "curve": True, "splits": ["test", "train"]}
    planned = plan(rules=["spgd"], control=False, **asked)
    first, *others = planned.trials
    assert [trial.threat.zeta for trial in planned.trials] == [0.02, 0.04, 0.01]
    assert first.continued_from is None
    assert all(trial.continued_from is first for trial in others)
    assert [len(trial.curve()) for trial in planned.trials] == [0, 0, 3]
    assert [trial.threat.zeta for trial in others[-1].curve()] == [0.01, 0.02, 0.04]
    wanted = {key for trial in planned.trials for table, key in trial.judgements() if table == "curves"}
    assert wanted == {others[-1].curve_key("test"), others[-1].curve_key("train")}
    apart = plan(rules=["spgd"], control=False, **{**asked, "curve": False})
    shared = {trial.trial_id for trial in planned.trials} & {trial.trial_id for trial in apart.trials}
    assert shared == {first.trial_id}, "the full search is the same trial, a continued one is not"
    assert others[0].image_gradients() < first.image_gradients()
    changed = plan(rules=[{"rule": "spgd", "refine_epochs": 0.5}], control=False, **asked)
    assert changed.trials[0].trial_id == first.trial_id, "how a search goes on does not change one that begins anew"
    assert changed.trials[1].trial_id != others[0].trial_id


def test_trials_of_a_curve_run_one_after_another_and_those_of_rules_that_cannot_continue_too() -> None:
    planned = plan(rules=["spgd"], zetas=[0.01, 0.02, 0.04], seeds=[0, 1], curve=True)
    together = chains(planned.trials)
    assert [len(chain) for chain in together] == [3] * 4, "two seeds, the rule and its control"
    assert all(len({(trial.search.rule, trial.seed) for trial in chain}) == 1 for chain in together)
    assert all(trial.continued_from is None for chain in together for trial in chain if trial.search.rule == "random")
    apart = plan(rules=["spgd"], zetas=[0.01, 0.02], control=False)
    assert [len(chain) for chain in chains(apart.trials)] == [1, 1]


def test_a_curve_of_one_zeta_is_refused() -> None:
    with pytest.raises(ConfigError, match="curve: expected at least two zetas, got 1"):
        plan(curve=True, zetas=[0.04, 0.04])


def test_planning_with_the_papers_architectures_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    data = [{"uri": "phantom:chest?images=60&size=32"}]
    grid.write_text(yaml.safe_dump({"name": "g", "data": data, "classifiers": [{"architecture": "resnet50"}]}))
    program = """
import sys
from uapray.cli import main
sys.argv = ["uapray", "grid", "plan", sys.argv[1]]
try:
    main()
finally:
    slow = {"timm", "torchvision", "pymoo", "ray", "sklearn", "duckdb", "matplotlib"} & sys.modules.keys()
    assert not slow, f"seconds before anything is planned: {slow}"
"""
    done = subprocess.run([sys.executable, "-c", program, str(grid)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resnet50" in done.stdout
