import pathlib
import sys

import pytest
import torch
from torch import nn

from uapray.errors import ClassifierError
from uapray.models.foreign import is_reference
from uapray.models.weights import load_classifier, save_classifier, wrap_module

SOURCE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))

def fail():
    raise OSError("no such device")

def number():
    return 7
"""


@pytest.fixture
def package(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "hospital_models.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.delitem(sys.modules, "hospital_models", raising=False)
    return "hospital_models"


@pytest.mark.parametrize("text", ["a:b", "a.b_c:d1"])
def test_references(text: str) -> None:
    assert is_reference(text)


@pytest.mark.parametrize(
    "text", ["a.safetensors", "s3://a/b", "C:/x.pt2", "a:b.c", "torchvision:resnet18", "file:///a"]
)
def test_not_references(text: str) -> None:
    assert not is_reference(text)


def test_a_function_in_the_working_folder_is_called(package: str, tmp_path: pathlib.Path) -> None:
    loaded = load_classifier(f"{package}:build", channels=3, size=(4, 4))
    assert loaded.card.class_names == ("class 0", "class 1", "class 2")
    assert loaded.card.architecture == f"{package}:build"
    assert loaded.module(torch.rand(2, 3, 4, 4)).shape == (2, 3)
    with torch.no_grad():
        loaded.module[1].weight.add_(1)  # type: ignore[index, union-attr]
    changed = wrap_module(loaded.module, channels=3, size=(4, 4), architecture=f"{package}:build")
    assert changed.sha256 != loaded.sha256
    save_classifier(changed, str(tmp_path / "hardened.safetensors"))
    with pytest.raises(ClassifierError, match=r"its card names the function .*, which no file may have called"):
        load_classifier(str(tmp_path / "hardened.safetensors"))
    trusted = load_classifier(str(tmp_path / "hardened.safetensors"), architecture=f"{package}:build")
    assert trusted.sha256 == changed.sha256


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fail", "the function failed .OSError: no such device"),
        ("number", "expected a torch.nn.Module, got int"),
        ("nothing", "a function nothing"),
    ],
)
def test_functions_that_do_not_give_a_module(package: str, function: str, message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        load_classifier(f"{package}:{function}", channels=3, size=(4, 4))
    with pytest.raises(ClassifierError, match="expected an importable module"):
        load_classifier(f"no_such_{package}:build", channels=3, size=(4, 4))


def linear(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))


class Two(nn.Module):
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pixels, pixels


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (linear(47, 2), r"it failed on \(3, 3, 4, 4\) \(RuntimeError: mat1 and mat2"),
        (nn.Flatten(0), r"expected logits \(3, classes\) for 3 images, got \(144,\)"),
        (linear(48, 1), r"got \(3, 1\)"),
        (
            nn.Sequential(linear(48, 2), nn.Softmax(1)),
            "got probabilities that sum to 1; leave the softmax out",
        ),
        (nn.Sequential(nn.Flatten(), nn.Threshold(2, float("nan"))), "expected finite logits"),
        (Two(), "expected a tensor of logits, got tuple"),
    ],
)
def test_modules_that_are_no_classifiers(module: nn.Module, message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        wrap_module(module, channels=3, size=(4, 4))


def test_wrapping_says_what_is_missing_and_counts_classes() -> None:
    with pytest.raises(ClassifierError, match="say which images it takes: channels and size"):
        wrap_module(linear(48, 2))
    with pytest.raises(ClassifierError, match=r"expected 3 logits \(a, b, c\), got 2"):
        wrap_module(linear(48, 2), ("a", "b", "c"), 3, (4, 4))


def test_modules_of_equal_weights_but_other_kind_hash_differently() -> None:
    module = linear(48, 2)
    first = wrap_module(module, channels=3, size=(4, 4), architecture="a:one")
    second = wrap_module(module, channels=3, size=(4, 4), architecture="a:two")
    assert first.sha256 != second.sha256
