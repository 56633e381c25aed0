import copy
import io
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from uapray.models.exported import load_program
from uapray.models.tuning import tune
from uapray.models.zoo import build

Livened = Callable[..., nn.Module]


def norms(module: nn.Module) -> int:
    return sum(isinstance(inner, nn.BatchNorm1d | nn.BatchNorm2d) for inner in module.modules())


def gradient(module: nn.Module, pixels: Tensor) -> Tensor:
    free = pixels.clone().requires_grad_()
    (found,) = torch.autograd.grad(module(free)[:, 0].sum(), free)
    return found


def check_alike(module: nn.Module, tuned: nn.Module, pixels: Tensor) -> None:
    # Loose: a hundred layers of float32 add up; the test in float64 below is the sharp one.
    torch.testing.assert_close(tuned(pixels), module(pixels), rtol=5e-3, atol=1e-4)
    expected = gradient(module, pixels)
    # In the norm: a unit whose input is within rounding of zero may have the other of ReLU's two slopes.
    assert (gradient(tuned, pixels) - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize(
    ("name", "size", "left"),
    [
        ("small-cnn", 32, 0),
        ("resnet18", 32, 0),
        ("densenet121", 32, 62),  # those in front of a convolution stay
        ("efficientnet_b0", 32, 0),
        ("vit_tiny_patch16_224", 32, 0),
        pytest.param("resnet50", 64, 0, marks=pytest.mark.slow),
        pytest.param("vgg16_bn", 32, 0, marks=pytest.mark.slow),
        pytest.param("inception_v3", 96, 0, marks=pytest.mark.slow),
        pytest.param("inception_resnet_v2", 96, 0, marks=pytest.mark.slow),
        pytest.param("torchvision:resnet18", 32, 0, marks=pytest.mark.slow),
    ],
)
def test_gives_the_same_answers_without_batch_norm(livened: Livened, name: str, size: int, left: int) -> None:
    module = livened(build(name, classes=3, channels=1, size=(size, size)))
    before = copy.deepcopy(module.state_dict())
    tuned = tune(module)
    check_alike(module, tuned, torch.rand(3, 1, size, size))
    assert norms(tuned) == left
    exact, double = copy.deepcopy(module).double(), torch.rand(2, 1, size, size, dtype=torch.float64)
    torch.testing.assert_close(gradient(tune(exact, double), double), gradient(exact, double))
    assert not any(weight.requires_grad for weight in tuned.parameters())
    assert all(weight.requires_grad for weight in module.parameters())
    assert all(map(torch.equal, module.state_dict().values(), before.values()))


def test_evaluates_even_what_was_left_in_training(livened: Livened) -> None:
    module = livened(build("tiny-cnn", classes=2, channels=3, size=(32, 32))).train()
    tuned = tune(module)
    assert module.training
    assert not tuned.training
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(tuned(pixels), module.eval()(pixels))


def test_weights_lie_channels_last() -> None:
    tuned = tune(build("tiny-cnn", classes=2, channels=3, size=(32, 32)))
    weight = tuned.backbone[1][0].weight  # type: ignore[index, union-attr]
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_keeps_what_a_norm_does_besides(livened: Livened) -> None:
    module = livened(nn.Sequential(nn.Conv2d(3, 4, 3), timm.layers.BatchNormAct2d(4), nn.Flatten(), nn.Linear(144, 2)))
    tuned = tune(module.eval(), torch.rand(2, 3, 8, 8))
    assert norms(tuned) == 0
    check_alike(module, tuned, torch.randn(2, 3, 8, 8))
    assert (tuned[1](torch.tensor([-1.0, 1.0])) == torch.tensor([0.0, 1.0])).all()  # type: ignore[index]


def test_folds_into_linear_layers(livened: Livened) -> None:
    module = livened(
        nn.Sequential(nn.Flatten(), nn.Linear(48, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2))
    ).eval()
    tuned = tune(module, torch.rand(2, 3, 4, 4))
    assert norms(tuned) == 0
    check_alike(module, tuned, torch.rand(2, 3, 4, 4))


class Branching(nn.Module):
    """A convolution whose output is used before and after the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        first = self.conv(pixels)
        return self.last((first + self.norm(first)).mean((2, 3)))


class Shared(nn.Module):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.last(self.conv(self.norm(self.conv(pixels))).mean((2, 3)))


class Asking(nn.Module):
    """Code that reads its norm's attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(pixels)).mean((2, 3)) + self.norm.eps)


def in_between() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (Branching, 1),
        (Shared, 1),
        (Asking, 1),
        (in_between, 1),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), 0),
    ],
)
def test_modules_that_must_not_be_folded_everywhere(livened: Livened, make: Callable[[], nn.Module], left: int) -> None:
    module = livened(make()).eval()
    pixels = torch.rand(2, 3, 8, 8)
    tuned = tune(module, pixels)
    check_alike(module, tuned, pixels)
    assert norms(tuned) == left


def test_a_module_that_takes_no_guessed_shape_is_left_unfolded() -> None:
    module = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2)).eval()
    tuned = tune(module)
    assert norms(tuned) == 1
    assert tuned(torch.rand(1, 2, 3, 3)).shape == (1, 2)


def test_exported_programs_stay_as_they_are(livened: Livened) -> None:
    module = livened(build("tiny-cnn", classes=2, channels=1, size=(32, 32)))
    pixels, target = torch.rand(2, 1, 32, 32), io.BytesIO()
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(module, (pixels,), dynamic_shapes=dynamic), target)
    program = load_program("x.pt2", target.getvalue())
    check_alike(module, tune(program), pixels)
