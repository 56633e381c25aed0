"""docs/grid.md says what the settings are."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from uapray.config import Budget, Search
from uapray.grid import Grid, parse_grid

PAGE = (Path(__file__).parents[1] / "docs" / "grid.md").read_text()


def rows(heading: str) -> dict[str, str]:
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))


@pytest.mark.parametrize(
    ("heading", "kind", "apart"), [("A rule's settings", Search, {"rule", "budget"}), ("A budget", Budget, set())]
)
def test_every_setting_is_listed_with_its_default(heading: str, kind: type[BaseModel], apart: set[str]) -> None:
    listed = rows(heading)
    assert set(listed) == set(kind.model_fields) - apart
    for name, said in listed.items():
        default = kind.model_fields[name].default
        assert said == (
            said if default is None else f"{default:g}" if type(default) in (int, float) else str(default).lower()
        )
        assert default is not None or said == "none" or said.startswith("by rule")


def test_the_example_is_a_grid() -> None:
    example = PAGE.split("```yaml\n", 1)[1].split("```", 1)[0]
    grid = parse_grid(example, origin="docs/grid.md")
    assert set(yaml.safe_load(example)) == set(Grid.model_fields), "every key is in the example"
    usual = parse_grid("{name: g, data: [{uri: x}], classifiers: [{weights: y.safetensors}]}", origin="test")
    for name in (
        "norms",
        "zetas",
        "xi_from",
        "curve",
        "seeds",
        "precision",
        "compiled",
        "splits",
        "budget",
        "control",
        "control_draws",
        "control_images",
        "renderings",
        "examples",
    ):
        assert getattr(grid, name) == getattr(usual, name), f"{name}: the page says these are the defaults"
