import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uapray.config import Budget, Search, Settings, Threat, parse
from uapray.errors import ConfigError
from uapray.grid import Grid


def complaint(kind: type[Settings], values: dict[str, Any]) -> str:
    """Return what is said of a mistake, which must fit on one line."""
    with pytest.raises(ConfigError) as caught:
        parse(kind, values, origin="here.yaml")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("here.yaml: ")
    return text.removeprefix("here.yaml: ")


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        (Search, {"bach_size": 8}, "unknown key 'bach_size'; did you mean 'batch_size'?"),
        (Search, {"budget": {"max_epoch": 3}}, "unknown key 'budget.max_epoch'; did you mean 'max_epochs'?"),
        (Threat, {"zetta": 0.04}, "unknown key 'zetta'; did you mean 'zeta'?"),
        (Threat, {"colour": 1}, "unknown key 'colour'; known: norm, target, xi, xi_from, zeta"),
        (Threat, {"norm": "l1", "xi": 1}, "norm: unknown 'l1'; known: l2, linf"),
        (Threat, {"zeta": 4}, "zeta: Input should be less than or equal to 1, got 4"),
        (Threat, {"xi": 0}, "xi: Input should be greater than 0, got 0"),
        (Threat, {"xi": math.nan}, "xi: Input should be a finite number, got nan"),
        (Threat, {"xi": math.inf}, "xi: Input should be a finite number, got inf"),
        (Search, {"rule": "sgpd"}, "rule: unknown 'sgpd'; did you mean 'spgd'?"),
        (Search, {"starts": 0}, "starts: Input should be greater than 0, got 0"),
        (Search, {"starts": 1.5}, "got 1.5"),
        (Search, {"validation_share": 1}, "validation_share: Input should be less than 1, got 1"),
        (Search, {"step_decay": 1.1}, "step_decay: Input should be less than or equal to 1, got 1.1"),
        (Search, {"batch_size": 8, "round_size": 20}, "round_size: expected a multiple of batch_size 8, got 20"),
        (Search, {"batch_size": "many"}, "got 'many'"),
        (Search, {"budget": {"stop_rate": 80}}, "budget.stop_rate: Input should be less than or equal to 1, got 80"),
        (Search, {"budget": {"max_image_gradients": -1}}, "budget.max_image_gradients"),
    ],
)
def test_each_mistake_gets_its_sentence(kind: type[Settings], values: dict[str, Any], text: str) -> None:
    assert text in complaint(kind, values)


@pytest.mark.parametrize("values", [{}, {"zeta": 0.04, "xi": 0.1}])
def test_one_radius_is_wanted_neither_two_nor_none(values: dict[str, Any]) -> None:
    assert complaint(Threat, values) == "expected either zeta or xi, got both or neither"


KINDS: list[type[Settings]] = [Budget, Search, Threat, Grid]


@given(st.sampled_from(KINDS), st.data())
def test_a_key_with_one_letter_wrong_gets_its_own_name_back(kind: type[Settings], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(name for name in kind.model_fields if len(name) > 4)))
    place = data.draw(st.integers(0, len(name) - 1))
    misspelt = f"{name[:place]}0{name[place + 1 :]}"
    assert f"unknown key '{misspelt}'; did you mean '{name}'?" in complaint(kind, {misspelt: 1})


@pytest.mark.parametrize(
    ("kind", "key"), [(Grid, "rule"), (Grid, "batch_size"), (Search, "max_epochs"), (Search, "stop_rate")]
)
def test_a_key_of_another_level_is_not_proposed_as_itself(kind: type[Settings], key: str) -> None:
    """``max_epochs`` stands inside ``budget``; to ask "did you mean 'max_epochs'?" helps nobody."""
    assert f"did you mean '{key}'" not in complaint(kind, {key: 1})


def test_settings_cannot_be_changed() -> None:
    for value, name in ((Search(), "starts"), (Budget(), "max_epochs"), (Threat(zeta=0.1), "zeta")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(value, name, 2)


def test_equal_settings_are_one_key_of_a_mapping() -> None:
    assert len({Search(), Search(starts=4), parse(Search, {"starts": "4"}, origin="x"), Search(starts=5)}) == 2


@given(st.integers(1, 64), st.integers(1, 5))
def test_rounds_of_whole_batches_are_taken(batch_size: int, batches: int) -> None:
    settings = parse(Search, {"batch_size": batch_size, "round_size": batch_size * batches}, origin="x")
    assert settings.round_size // settings.batch_size == batches


@given(st.sampled_from(["aimed-ascent", "spgd", "sga", "df-uap"]), st.floats(0.1, 30), st.floats(0.05, 1))
def test_a_refinement_makes_all_steps_in_fewer_passes(rule: str, passes: float, refine: float) -> None:
    whole = Search(rule=rule, refine_epochs=refine, budget=Budget(max_epochs=passes))
    short = whole.refinement()
    assert short.continues
    assert short.starts == 1
    assert short.max_epochs == min(refine, passes)
    assert short.first_step("linf") == whole.first_step("linf")
    last = short.decay() ** short.max_epochs
    assert last == pytest.approx(max(whole.decay() ** passes, 0.04))


@given(st.floats(0.1, 40), st.integers(100, 100_000), st.integers(10, 5000))
def test_a_step_that_falls_with_the_budget_ends_where_it_ends(passes: float, gradients: int, images: int) -> None:
    assert Search().decay() == 0.3, "two passes"
    by_passes = Search(budget=Budget(max_epochs=passes))
    assert by_passes.decay(images) ** passes == pytest.approx(0.09)
    by_gradients = Search(budget=Budget(max_image_gradients=gradients))
    assert by_gradients.decay(images) ** (gradients / images) == pytest.approx(0.09)
    both = Search(budget=Budget(max_epochs=passes, max_image_gradients=gradients))
    assert both.decay(images) == pytest.approx(min(by_passes.decay(), by_gradients.decay(images)))
    assert Search(budget=Budget(max_seconds=5)).decay(images) == 0.6
    assert Search(step_decay=0.5, budget=Budget(max_epochs=passes)).decay(images) == 0.5


def test_a_refinement_of_a_search_without_limit_of_passes_has_one() -> None:
    short = Search(budget=Budget(max_image_gradients=500)).refinement()
    assert short.max_epochs == 0.25
    assert short.budget.max_image_gradients == 500
    assert not any(Search(rule=rule).continues for rule in ("random", "uap-fgsm", "uap-deepfool", "hill-climb", "ga"))
