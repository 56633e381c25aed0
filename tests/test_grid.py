from typing import Any

import pytest
import yaml

from uapray.config import Budget, Search
from uapray.errors import ConfigError
from uapray.grid import Grid, parse_grid
from uapray.models.recipe import RECIPES

LEAST: dict[str, Any] = {
    "name": "first",
    "data": [{"uri": "chest.parquet"}],
    "classifiers": [{"architecture": "resnet50"}],
}


def grid(**changes: Any) -> Grid:
    return parse_grid(yaml.safe_dump({**LEAST, **changes}), origin="grid.yaml")


def complaint(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_grid(text, origin="grid.yaml")
    said = str(caught.value)
    assert len(said.splitlines()) <= 2
    return said


def test_little_is_enough() -> None:
    least = grid()
    assert (least.norms, least.zetas, least.targets, least.seeds) == (("linf",), (0.04,), ("nontargeted",), (0,))
    assert least.splits == ("test",)
    assert least.classifiers[0].recipe == RECIPES["papers"]
    assert least.classifiers[0].initial_weights == "pretrained"
    assert least.searches() == (Search(rule="aimed-ascent"), Search(rule="random"))


def test_a_rule_is_its_name_or_its_settings() -> None:
    rules = grid(rules=["sga", {"rule": "spgd", "starts": 2, "budget": {"max_epochs": 1}}]).searches()
    assert rules == (
        Search(rule="sga"),
        Search(rule="spgd", starts=2, budget=Budget(max_epochs=1)),
        Search(rule="random"),
    )


def test_the_budget_of_the_grid_holds_where_a_rule_has_none_of_its_own() -> None:
    rules = grid(
        rules=["spgd", {"rule": "sga", "budget": {"max_epochs": 9}}], budget={"max_epochs": 2, "stop_rate": 0.8}
    ).searches()
    assert rules[0].budget == Budget(max_epochs=2, stop_rate=0.8)
    assert rules[1].budget == Budget(max_epochs=9)


@pytest.mark.parametrize("rules", [["spgd"], ["random"], ["random", "spgd", "random"], ["spgd", "spgd"]])
def test_the_control_is_added_once(rules: list[str]) -> None:
    searches = grid(rules=rules, budget={"max_epochs": 2}).searches()
    assert [search.rule for search in searches].count("random") == 1
    assert len(set(searches)) == len(searches) == len({*rules, "random"})


def test_the_control_can_be_left_out() -> None:
    assert [search.rule for search in grid(control=False).searches()] == ["aimed-ascent"]


def test_null_and_its_name_both_mean_nontargeted() -> None:
    assert grid(targets=[None, "PNEUMONIA", "all"]).targets == ("nontargeted", "PNEUMONIA", "all")
    assert parse_grid(yaml.safe_dump({**LEAST, "targets": ["nontargeted"]}), origin="x").targets == ("nontargeted",)


def test_a_recipe_is_a_name_or_what_differs_from_one() -> None:
    entries = [
        {"architecture": "resnet50", "recipe": "quick"},
        {"architecture": "resnet50", "recipe": {"base": "quick", "epochs": 3}},
    ]
    recipes = [entry.recipe for entry in grid(classifiers=entries).classifiers]
    assert recipes[0] == RECIPES["quick"]
    assert recipes[1] == RECIPES["quick"].model_copy(update={"epochs": 3})


@pytest.mark.parametrize(
    ("changes", "wrong", "right"),
    [
        ({"clasifiers": []}, "clasifiers", "classifiers"),
        ({"zeta": [0.04]}, "zeta", "zetas"),
        ({"budget": {"max_epoch": 1}}, "max_epoch", "max_epochs"),
        ({"data": [{"url": "x"}]}, "url", "uri"),
        ({"data": [{"uri": "x", "sizes": 3}]}, "sizes", "size"),
        ({"classifiers": [{"architectur": "x"}]}, "architectur", "architecture"),
        ({"classifiers": [{"architecture": "x", "seeds": [1]}]}, "seeds", "train_seeds"),
        ({"classifiers": [{"architecture": "x", "recipe": {"epoch": 1}}]}, "epoch", "epochs"),
        ({"rules": [{"rule": "spgd", "bach_size": 1}]}, "bach_size", "batch_size"),
        ({"rules": [{"rule": "spgd", "budget": {"max_epoch": 1}}]}, "max_epoch", "max_epochs"),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest_at_every_depth(
    changes: dict[str, Any], wrong: str, right: str
) -> None:
    said = complaint(yaml.safe_dump({**LEAST, **changes}))
    assert f"{wrong}'; did you mean '{right}'?" in said
    assert "grid.yaml" in said


def test_a_key_of_the_budget_among_those_of_a_rule_is_not_proposed_as_itself() -> None:
    said = complaint(yaml.safe_dump({**LEAST, "rules": [{"rule": "spgd", "max_epochs": 2}]}))
    assert "max_epochs" in said
    assert "budget" in said


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "a b"}, "name"),
        ({"name": "../up"}, "name"),
        ({"data": []}, "data"),
        ({"rules": []}, "rules"),
        ({"rules": ["sgpd"]}, "unknown 'sgpd'; did you mean 'spgd'?"),
        ({"norms": ["l3"]}, "unknown 'l3'; known: l2, linf"),
        ({"zetas": [4]}, "expected shares in (0, 1], 0.04 for 4 %, got 4"),
        ({"zetas": [0]}, "expected shares in (0, 1]"),
        ({"seeds": [0.5]}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"classifiers": [{}]}, "expected either weights or architecture, got both or neither"),
        (
            {"classifiers": [{"weights": "a.safetensors", "architecture": "x"}]},
            "expected either weights or architecture, got both or neither",
        ),
        ({"classifiers": [{"architecture": "x", "recipe": "papes"}]}, "unknown recipe 'papes'; did you mean 'papers'?"),
        ({"examples": -1}, "examples"),
        ({"data": [{"uri": "x", "size": 4}]}, "size"),
        ({"classifiers": [{"architecture": "x", "recipe": {"base": 7}}]}, "of papers, quick, retraining, got 7"),
    ],
)
def test_each_mistake_gets_its_sentence(changes: dict[str, Any], text: str) -> None:
    assert text in complaint(yaml.safe_dump({**LEAST, **changes}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a mapping with name, data and classifiers, got NoneType"),
        ("- a\n- b\n", "expected a mapping with name, data and classifiers, got list"),
        ("name: [", "not YAML"),
        ("name: !!python/object:os.system x", "not YAML"),
        ("name: x\nzetas: [0.04]\nzetas: [0.08]\n", "the key 'zetas' is there twice"),
        ("name: x\nbudget: {max_epochs: 1, max_epochs: 2}\n", "the key 'max_epochs' is there twice"),
        ("name: x\n", "data: Field required"),
    ],
)
def test_what_is_no_grid_is_said_to_be_none(text: str, said: str) -> None:
    assert said in complaint(text)


def test_bytes_are_read_too() -> None:
    assert parse_grid(yaml.safe_dump(LEAST).encode(), origin="x") == grid()


def test_bytes_that_are_no_text_are_said_to_be_none() -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        parse_grid(b"\x93\xff\x00parquet", origin="x")
