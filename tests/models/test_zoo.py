import pathlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from uapray.errors import ClassifierError
from uapray.models.zoo import PAPERS, build, canonical, known_names


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("InceptionV3", "inception_v3"),
        ("Inception-ResNet-v2", "inception_resnet_v2"),
        ("VGG16", "vgg16"),
        ("DenseNet169", "densenet169"),
        ("small_cnn", "small-cnn"),
        ("ResNet18", "resnet18"),
        ("resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("torchvision:squeezenet1_0", "torchvision:squeezenet1_0"),
    ],
)
def test_understands_the_papers_spellings_and_other_zoos(spelt: str, name: str) -> None:
    assert canonical(spelt) == name


def test_every_known_name_is_canonical() -> None:
    names = known_names()
    assert set(PAPERS) < set(names)
    assert len(names) == len(set(names)) > 1000
    assert [canonical(name) for name in names] == names


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("resnet5", "resnet50"), ("smal-cnn", "small-cnn"), ("resnet50.a1_in1", "resnet50.a1_in1k")],
)
def test_a_misspelt_name_gets_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ClassifierError, match=f"unknown architecture '{wrong}'; did you mean .*{right}"):
        canonical(wrong)


@pytest.mark.parametrize("channels", [1, 3])
def test_small_ones_work_from_28_pixels(channels: int) -> None:
    model = build("small-cnn", classes=5, channels=channels, size=(28, 28))
    assert model(torch.rand(2, channels, 28, 28)).shape == (2, 5)
    assert 240_000 < sum(weight.numel() for weight in model.parameters()) < 243_000


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "vit_tiny_patch16_224", "torchvision:squeezenet1_0"])
def test_grey_images_go_into_backbones_of_three_channels(name: str) -> None:
    model = build(name, classes=3, channels=1, size=(64, 64))
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_all_of_the_papers_architectures_train(name: str) -> None:
    model = build(name, classes=4, channels=1, size=(96, 96)).train()
    logits = model(torch.rand(2, 1, 96, 96))
    logits.sum().backward()
    assert logits.shape == (2, 4)


def test_vgg_has_the_papers_head() -> None:
    model = build("vgg16", classes=2, channels=3, size=(32, 32))
    assert sum(weight.numel() for weight in model.parameters()) == 14_714_688 + 2 * 513


def test_normalisation_is_the_weights_own_or_the_users() -> None:
    assert build("resnet18", classes=2, channels=3, size=(32, 32)).mean.flatten().tolist() == pytest.approx(
        [0.485, 0.456, 0.406]
    )
    model = build("resnet18", classes=2, channels=3, size=(32, 32), mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_random_weights_depend_on_the_seed_alone_and_leave_the_global_state() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, again, other = (build("tiny-cnn", classes=2, channels=1, size=(32, 32), seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    assert not torch.equal(first.backbone[-1].weight, other.backbone[-1].weight)  # type: ignore[index]


def test_classifiers_built_side_by_side_are_those_built_alone() -> None:
    def built(seed: int) -> torch.Tensor:
        return torch.cat(
            [w.flatten() for w in build("resnet18", classes=2, channels=1, size=(32, 32), seed=seed).parameters()]
        )

    alone = [built(seed) for seed in range(2)]
    with ThreadPoolExecutor(4) as threads:
        for place, weights in enumerate(threads.map(built, [0, 1] * 4)):
            assert torch.equal(weights, alone[place % 2])


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 64), ("small-cnn", 12), ("vit_tiny_patch16_224", 8)])
def test_images_too_small_for_an_architecture(name: str, size: int) -> None:
    with pytest.raises(ClassifierError, match=rf"{name}: .*{size}x{size} px") as refusal:
        build(name, classes=2, channels=3, size=(size, size))
    assert str(refusal.value).count("\n") == 0


def test_refuses_odd_numbers() -> None:
    with pytest.raises(ClassifierError, match="at least 2 classes, got 1"):
        build("tiny-cnn", classes=1, channels=1, size=(32, 32))
    with pytest.raises(ClassifierError, match="1 or 3 channels, got 4"):
        build("tiny-cnn", classes=2, channels=4, size=(32, 32))
    for name in ("tiny-cnn", "torchvision:resnet18", "legacy_seresnet18", "resnet10t.nothing"):
        with pytest.raises(ClassifierError, match=r"publishe|unknown"):
            build(name, classes=2, channels=3, size=(32, 32), initial_weights="pretrained")


def test_pretrained_weights_out_of_reach(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ClassifierError, match="resnet18: pretrained weights could not be loaded") as refusal:
        build("resnet18", classes=2, channels=3, size=(32, 32), initial_weights="pretrained")
    assert "give a local .safetensors file as initial weights, or 'random'" in str(refusal.value)
