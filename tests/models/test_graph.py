import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_tuning import gradient
from torch import nn

from uapray.models.graph import as_graph
from uapray.models.tuning import tune
from uapray.models.zoo import build

PIXELS = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def fast(architecture: str, size: int = 64) -> nn.Module:
    return tune(build(architecture, classes=3, channels=3, size=(size, size), initial_weights="random"), PIXELS[:2])


def origins(module: nn.Module) -> set[str]:
    return {type(part).__module__.split(".")[0] for part in module.modules()}


@pytest.mark.parametrize(
    "architecture",
    [
        "resnet18",
        "densenet121",
        "test_vit",
        "torchvision:squeezenet1_0",
        pytest.param("vgg16", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("mobilenetv3_small_100", marks=pytest.mark.slow),
        pytest.param("tf_efficientnet_b0", marks=pytest.mark.slow),
        pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
    ],
)
def test_a_graph_gives_the_same_bits_and_needs_torch_alone(architecture: str) -> None:
    module = fast(architecture)
    graph = as_graph(module, PIXELS[:2])
    assert origins(graph) == {"uapray", "torch"}
    assert torch.equal(graph(PIXELS), module(PIXELS))
    assert torch.equal(gradient(graph, PIXELS), gradient(module, PIXELS))


def test_a_part_deeper_down_is_drawn_too() -> None:
    filtered = nn.Sequential(nn.Identity(), fast("resnet18"))
    graph = as_graph(filtered, PIXELS[:2])
    assert "timm" in origins(filtered)
    assert "timm" not in origins(graph)
    assert torch.equal(graph(PIXELS), filtered(PIXELS))


def test_a_classifier_that_decides_by_its_input_stays_as_it_is() -> None:
    module = fast("test_vit", size=96)  # it fits its positions to the 64 pixels that it is given
    assert as_graph(module, PIXELS[:2]) is module


@pytest.mark.parametrize(("height", "width"), [(64, 64), (63, 50)])
def test_padding_by_the_size_of_the_images_is_drawn_for_that_size(height: int, width: int) -> None:
    pixels = torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(5))
    built = build("tf_efficientnet_lite0", classes=3, channels=3, size=(height, width), initial_weights="random")
    module = tune(built, pixels[:2])
    graph = as_graph(module, pixels[:2])
    assert origins(graph) == {"uapray", "torch"}
    assert torch.equal(graph(pixels), module(pixels))
    assert torch.equal(gradient(graph, pixels), gradient(module, pixels))
    mine = {one.data_ptr() for one in graph.parameters()}
    assert mine == {one.data_ptr() for one in module.parameters()}, "no weight is copied"


def test_a_classifier_without_heavy_parts_stays_as_it_is() -> None:
    module = fast("tiny-cnn")
    assert as_graph(module, PIXELS[:2]) is module
    assert as_graph(fast("resnet18"), None).__class__ is fast("resnet18").__class__


def test_classifiers_drawn_side_by_side_disturb_neither_each_other_nor_one_that_is_at_work() -> None:
    """Groups of a grid run in threads of one driver."""
    drawn, working = [fast("resnet18") for _ in range(2)], fast("resnet18")
    expected = working(PIXELS)
    over = threading.Event()

    def work() -> int:
        rounds = 0
        while not over.is_set() or not rounds:
            assert torch.equal(working(PIXELS), expected)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(3) as threads:
        at_work = threads.submit(work)
        graphs = list(threads.map(lambda module: [as_graph(module, PIXELS[:2]) for _ in range(4)], drawn))
        over.set()
        assert at_work.result() > 0
    assert all(origins(graph) == {"uapray", "torch"} for some in graphs for graph in some)
    assert all(torch.equal(graph(PIXELS), drawn[0](PIXELS)) for graph in graphs[0])


def test_who_opens_a_graph_imports_neither_timm_nor_torchvision(tmp_path: Path) -> None:
    graph = as_graph(fast("resnet18"), PIXELS[:2])
    file = tmp_path / "graph.pickle"
    file.write_bytes(pickle.dumps((graph, PIXELS)))
    words = (
        "import pickle, sys, pathlib; graph, pixels = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()); "
        "print(graph(pixels).sum().item(), 'timm' in sys.modules, 'torchvision' in sys.modules)"
    )
    came = subprocess.run([sys.executable, "-c", words, file], check=True, capture_output=True, text=True).stdout
    assert came.split() == [str(graph(PIXELS).sum().item()), "False", "False"]
