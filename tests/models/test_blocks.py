import pathlib
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from uapray.data.images import ImageSet, hold_out
from uapray.errors import ConfigError
from uapray.models.blocks import blocks_of, first_blocks, frozen
from uapray.models.recipe import RECIPES, Recipe
from uapray.models.training import fit
from uapray.models.zoo import build

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "classifiers.md").read_text()
DOCUMENTED = re.findall(
    r"^\| (`.+) \| (.+) \|$", PAGE.split("| architecture | blocks |")[1].split("\n\n")[0], re.MULTILINE
)
HEADS = ("backbone.fc.", "backbone.head.", "backbone.classifier.", "backbone.classif.", "backbone.6.")


def small() -> nn.Module:
    return build("tiny-cnn", classes=2, channels=1, size=(32, 32))


def names_of(module: nn.Module, parts: list[nn.Module]) -> list[str]:
    names = {id(part): name.removeprefix("backbone.") for name, part in module.named_modules()}
    return [names[id(part)] for part in parts]


@pytest.mark.parametrize(
    ("architecture", "count", "first"),
    [
        ("tiny-cnn", 4, ["0.0", "0.1"]),
        ("resnet18", 9, ["conv1", "bn1"]),
        ("torchvision:resnet18", 9, ["conv1", "bn1"]),
        ("torchvision:squeezenet1_0", 9, ["features.0"]),
        ("torchvision:vgg11_bn", 10, ["features.0", "features.1"]),
        ("vgg16", 13, ["features.0"]),
        ("densenet121", 8, ["features.conv0", "features.norm0"]),
        ("test_vit", 7, ["patch_embed"]),
    ],
)
def test_blocks_are_counted_from_the_pixels_and_the_head_is_none(
    architecture: str, count: int, first: list[str]
) -> None:
    module = build(architecture, classes=2, channels=1, size=(64, 64))
    blocks = blocks_of(module)
    assert len(blocks) == count
    assert names_of(module, blocks[0]) == first
    with frozen(module, count):
        learning = [name for name, weight in module.named_parameters() if weight.requires_grad]
        assert learning, "the last layer learns, however many blocks are frozen"
        assert all(name.startswith(HEADS) for name in learning)
    assert all(weight.requires_grad for weight in module.parameters())


@pytest.mark.parametrize(("architectures", "counts"), DOCUMENTED)
def test_the_page_says_how_many_there_are(architectures: str, counts: str) -> None:
    names, numbers = re.findall(r"`([^`]+)`", architectures), [int(count) for count in counts.split(", ")]
    for name, number in zip(names, numbers * len(names) if len(numbers) == 1 else numbers, strict=True):
        assert len(blocks_of(build(name, classes=2, channels=1, size=(96, 96)))) == number, name


def test_more_than_there_are_is_refused() -> None:
    assert first_blocks(small(), 0) == []
    with pytest.raises(ConfigError) as caught:
        first_blocks(small(), 5)
    assert str(caught.value) == (
        "frozen_blocks: expected at most 4, the blocks of this architecture below its last layer, got 5"
    )


def test_what_had_no_gradient_before_has_none_afterwards() -> None:
    module = small()
    one = next(module.parameters()).requires_grad_(False)
    with frozen(module, 2):
        assert sum(weight.requires_grad for weight in module.parameters()) == 2 * 3 + 2
    assert [weight.requires_grad for weight in module.parameters()] == [
        weight is not one for weight in module.parameters()
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_frozen_blocks_stay_to_the_last_bit_and_all_else_learns(
    image_set: Callable[..., ImageSet], livened: Callable[..., nn.Module], optimizer: str, count: int
) -> None:
    module = livened(small())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    recipe = Recipe.model_validate(
        {"optimizer": optimizer, "weight_decay": 0.1, "epochs": 2, "patience": None, "selection": "last"}
        | {"learning_rate": 0.01, "frozen_blocks": count}
    )
    result = fit(module, *hold_out(image_set(64), 0.25, seed=0), recipe, seed=0)
    still = (*(f"backbone.{block}." for block in range(count)), "mean", "std")
    for name, value in result.state.items():
        assert torch.equal(value, before[name]) == name.startswith(still), name
        assert torch.equal(value, module.state_dict()[name])
    assert all(weight.requires_grad for weight in module.parameters())


def test_a_recipe_says_nothing_of_it_where_nothing_is_frozen() -> None:
    assert "frozen_blocks" not in RECIPES["papers"].model_dump(mode="json")
    assert Recipe(frozen_blocks=3).model_dump(mode="json")["frozen_blocks"] == 3
    assert Recipe.model_validate(Recipe(frozen_blocks=3).model_dump()) == Recipe(frozen_blocks=3)
