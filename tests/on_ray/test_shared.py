import copy
import pickle
import sys
from typing import Any

import pytest
import ray
import torch
from torch import Tensor, nn

from uapray.models.tuning import tune
from uapray.models.zoo import build
from uapray.on_ray.pool import RayPool
from uapray.on_ray.shared import pack, share

PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


class Odd(nn.Module):
    """Tied weights, one of no dimension, one of half precision, one that is a view with gaps, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.coarse = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        self.gaps = nn.Parameter(torch.arange(8.0)[::2])
        self.register_buffer("kept", torch.ones(3), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.second(self.first(rows)) * self.scale * self.coarse.float() + self.gaps


def weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]


@pytest.mark.parametrize("odd", [True, False])
def test_a_module_is_the_same_after_packing(odd: bool) -> None:
    module = Odd() if odd else tune(build("resnet18", classes=3, channels=3, size=(32, 32), initial_weights="random"))
    module.requires_grad_(requires_grad=False)
    before = copy.deepcopy(module)
    again = pickle.loads(pickle.dumps(pack(module))).unpack()
    rows = torch.rand(2, 4) if odd else PIXELS
    assert torch.equal(again(rows), before(rows))
    for (name, came), (expected, weight), (_, own) in zip(
        weights(again), weights(before), weights(module), strict=True
    ):
        assert (name, came.shape, came.stride(), came.dtype) == (expected, weight.shape, weight.stride(), weight.dtype)
        assert torch.equal(came, weight)
        assert torch.equal(own, weight)  # packing changes nothing of what is packed
    if odd:
        assert again.first.weight is again.second.weight


def test_weights_that_take_gradients_are_not_shared() -> None:
    assert not pack(nn.Linear(3, 2)).weights


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_replicas_read_one_copy_of_the_weights_and_import_no_timm() -> None:
    def look(host: Any) -> tuple[int, set[str]]:  # in here, since replicas know nothing of this file
        with open("/proc/self/maps") as lines:
            stored = [line.split()[0].split("-") for line in lines if "plasma" in line or "/dev/shm" in line]
        where = [(int(begin, 16), int(end, 16)) for begin, end in stored]
        weights = [one for one in host._replica._module.parameters() if any(a <= one.data_ptr() < b for a, b in where)]
        return sum(one.nbytes for one in weights), {"timm", "torchvision"} & sys.modules.keys()

    module = build("resnet18", classes=3, channels=3, size=(32, 32), initial_weights="random")
    pool = RayPool(module, {"train": share((PIXELS * 255).byte().permute(0, 2, 3, 1).numpy())}, replicas=2)
    try:
        for replica in pool.replicas():
            stored, imported = ray.get(replica.__ray_call__.remote(look))
            assert stored > 40 * 2**20
            assert not imported
    finally:
        pool.close()
