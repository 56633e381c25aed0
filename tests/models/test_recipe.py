import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from uapray.errors import ConfigError
from uapray.models.recipe import RECIPES, Recipe, learning_rate_at, recipe_of


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 1e-3), (40, 1e-3), (40.99, 1e-3), (41, 1e-4), (45, 1e-4), (46, 1e-5), (49, 1e-5)]
)
def test_the_papers_schedule(epoch: float, rate: float) -> None:
    recipe = RECIPES["papers"]
    assert learning_rate_at(recipe, epoch) == pytest.approx(rate)
    assert (recipe.optimizer, recipe.momentum, recipe.nesterov) == ("sgd", 0.9, True)
    assert (recipe.epochs, recipe.batch_size) == (50, 32)
    assert (recipe.rotation_degrees, recipe.shift_share) == (5, 0.05)


@given(st.floats(0, 10), st.floats(0, 10))
def test_one_cycle_rises_to_its_peak_and_falls_to_nothing(a: float, b: float) -> None:
    recipe = Recipe(schedule="one-cycle", epochs=10, learning_rate=0.5)
    first, second = learning_rate_at(recipe, min(a, b)), learning_rate_at(recipe, max(a, b))
    assert 0 < first <= 0.5 + 1e-12
    if max(a, b) <= 3:
        assert first <= second + 1e-12
    if min(a, b) >= 3:
        assert first >= second - 1e-12
    assert learning_rate_at(recipe, 3) == pytest.approx(0.5)
    assert learning_rate_at(recipe, 10) < 1e-4


def test_recipes_by_name_and_by_departure() -> None:
    assert recipe_of("quick") is RECIPES["quick"]
    assert recipe_of({"base": "quick", "epochs": 3}) == RECIPES["quick"].model_copy(update={"epochs": 3})
    assert recipe_of({}) == Recipe()
    assert recipe_of(RECIPES["papers"].model_dump(mode="json")) == RECIPES["papers"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("quik", "unknown recipe 'quik'; did you mean 'quick'"),
        ("x", "known: papers, quick"),
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"epochs": 0}, "epochs: .*greater than 0, got 0"),
        ({"milestones": (3,)}, "expected none with schedule constant"),
        ({"schedule": "steps", "milestones": (5, 3)}, "that rise"),
        ({"momentum": 0}, "nesterov"),
    ],
)
def test_mistakes(named: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of(named)  # type: ignore[arg-type]


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        RECIPES["quick"].epochs = 3  # type: ignore[misc]
