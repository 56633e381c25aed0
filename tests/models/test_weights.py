import io
import json
import pathlib
import pickle
from collections.abc import Callable

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from uapray.errors import ClassifierError, NotFoundError
from uapray.models.card import Card, Classifier
from uapray.models.tensors import decode_weights, encode_weights, hash_tensors
from uapray.models.weights import load_classifier, make_classifier, save_classifier, save_classifier_once, wrap_module
from uapray.models.zoo import build


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return pathlib.Path.touch, (self.path,)


@pytest.fixture
def classifier(livened: Callable[..., nn.Module]) -> Classifier:
    model = build("tiny-cnn", classes=2, channels=1, size=(32, 40), seed=4)
    livened(model)
    card = Card(
        architecture="tiny-cnn",
        class_names=("NORMAL", "PNEUMONIA"),
        channels=1,
        size=(32, 40),
        initial_weights="random",
        recipe={"epochs": 3},
        seed=4,
        data="chest",
        data_sha256="ab",
        mean=(0.5,),
        std=(0.25,),
        metrics={"test": {"accuracy": 0.91, "auc": None}},
    )
    return make_classifier(model, card)


def test_round_trip_is_bit_for_bit(tmp_path: pathlib.Path, classifier: Classifier) -> None:
    uri = str(tmp_path / "folder" / "x.safetensors")
    save_classifier(classifier, uri)
    loaded = load_classifier(uri)
    assert loaded.card == classifier.card
    assert loaded.sha256 == classifier.sha256
    came, went = loaded.module.state_dict(), classifier.module.state_dict()
    assert list(came) == list(went)
    for name, value in went.items():
        assert came[name].dtype == value.dtype
        assert torch.equal(came[name], value), name
    assert not loaded.module.training
    pixels = torch.rand(2, 1, 32, 40)
    assert torch.equal(loaded.module(pixels), classifier.module(pixels))


def test_the_card_is_in_the_file_and_beside_it(tmp_path: pathlib.Path, classifier: Classifier) -> None:
    save_classifier(classifier, str(tmp_path / "x.safetensors"))
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        inside = json.loads(file.metadata()["uapray_card"])
    assert inside == json.loads((tmp_path / "x.card.json").read_text())
    (tmp_path / "x.card.json").write_text("{}")
    assert load_classifier(str(tmp_path / "x.safetensors")).card == classifier.card


def test_the_same_classifier_makes_the_same_bytes(tmp_path: pathlib.Path, classifier: Classifier) -> None:
    for name in ("x", "y"):
        save_classifier(classifier, str(tmp_path / f"{name}.safetensors"))
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


def test_what_is_said_must_agree_with_the_card(tmp_path: pathlib.Path, classifier: Classifier) -> None:
    uri = str(tmp_path / "x.safetensors")
    save_classifier(classifier, uri)
    with pytest.raises(ClassifierError, match="expected channels 3, its card says 1"):
        load_classifier(uri, channels=3)


def test_weights_of_another_architecture(tmp_path: pathlib.Path, classifier: Classifier) -> None:
    card = classifier.card.model_copy(update={"architecture": "small-cnn"})
    uri = str(tmp_path / "x.safetensors")
    save_classifier(Classifier(classifier.module, card, ""), uri)
    with pytest.raises(ClassifierError, match="expected weights of small-cnn, got weights of another"):
        load_classifier(uri)


@pytest.mark.parametrize("kind", ["tensor", "legacy", "plain", "script"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_pickles_are_refused_whatever_their_name(tmp_path: pathlib.Path, kind: str, suffix: str) -> None:
    path, trace = tmp_path / f"x{suffix}", tmp_path / "unpickled"
    match kind:
        case "tensor":
            torch.save({"w": torch.zeros(2), "bomb": Bomb(trace)}, path)
        case "legacy":
            torch.save({"bomb": Bomb(trace)}, path, _use_new_zipfile_serialization=False)
        case "plain":
            path.write_bytes(pickle.dumps(Bomb(trace)))
        case "script":
            buffer = io.BytesIO()
            torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
            path.write_bytes(buffer.getvalue())
    for load in (
        load_classifier,
        lambda uri: build("tiny-cnn", classes=2, channels=1, size=(32, 32), initial_weights=uri),
    ):
        with pytest.raises(ClassifierError, match="never unpickled") as refusal:
            load(str(path))
        assert refusal.value.exit_code == 2
    assert not trace.exists()


@pytest.mark.parametrize("name", ["x.pth", "s3://bucket/x.ckpt", "x.PKL", "x.bin"])
def test_a_pickles_name_is_enough(name: str) -> None:
    with pytest.raises(ClassifierError, match="got a pickle"):
        load_classifier(name)


def test_damaged_and_missing_files(tmp_path: pathlib.Path, classifier: Classifier) -> None:
    uri = tmp_path / "x.safetensors"
    save_classifier(classifier, str(uri))
    uri.write_bytes(uri.read_bytes()[:-100])
    with pytest.raises(ClassifierError, match=r"expected a \.safetensors file, got a damaged"):
        load_classifier(str(uri))
    uri.write_bytes(b"")
    with pytest.raises(ClassifierError, match="damaged"):
        load_classifier(str(uri))
    uri.write_bytes(encode_weights({"w": torch.zeros(1)}, '{"architecture": "tiny-cnn"}'))
    with pytest.raises(ClassifierError, match="its card is damaged"):
        load_classifier(str(uri))
    with pytest.raises(NotFoundError):
        load_classifier(str(tmp_path / "none.safetensors"))


def test_plain_weights_need_to_be_said_what_they_are(tmp_path: pathlib.Path) -> None:
    source = build("resnet18", classes=3, channels=3, size=(32, 32), seed=8)
    uri = str(tmp_path / "w.safetensors")
    safetensors.torch.save_file(source.backbone.state_dict(), uri)
    with pytest.raises(ClassifierError, match=r"say in Python what they are: uapray.load_classifier\(…, architecture="):
        load_classifier(uri)
    names = ("a", "b", "c")
    loaded = load_classifier(uri, architecture="ResNet18", class_names=names, channels=3, size=(32, 32))
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.module(pixels), source(pixels))
    assert loaded.card.class_names == names
    assert loaded.card.architecture == "resnet18"
    with pytest.raises(ClassifierError, match=r"fc.weight \(3, 512\) instead of \(2, 512\)"):
        load_classifier(uri, architecture="resnet18", class_names=names[:2], channels=3, size=(32, 32))


def test_only_what_can_be_built_again_is_saved(tmp_path: pathlib.Path, classifier: Classifier) -> None:
    wrapped = wrap_module(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), channels=1, size=(4, 4))
    with pytest.raises(ClassifierError, match="cannot be built again"):
        save_classifier(wrapped, str(tmp_path / "x.safetensors"))
    with pytest.raises(ClassifierError, match=r"ends in \.safetensors"):
        save_classifier(classifier, str(tmp_path / "x.weights"))
    assert list(tmp_path.iterdir()) == []


tensors = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6),
    st.builds(
        lambda shape, dtype, seed: torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
        st.lists(st.integers(0, 3), max_size=4),
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]),
        st.integers(0, 99),
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=50)
@given(tensors, st.text(max_size=20))
def test_any_tensors_come_back_with_the_same_hash(named: dict[str, torch.Tensor], card: str) -> None:
    file = decode_weights("x", encode_weights(named, card))
    assert file.card == card
    assert hash_tensors(file.tensors) == hash_tensors(named)
    assert hash_tensors(dict(reversed(named.items()))) == hash_tensors(named)


def test_the_hash_sees_names_types_shapes_and_values_but_not_memory() -> None:
    one = {"a": torch.arange(12.0).view(1, 3, 2, 2)}
    assert hash_tensors({"a": one["a"].contiguous(memory_format=torch.channels_last)}) == hash_tensors(one)
    others = [
        {"b": one["a"]},
        {"a": one["a"].double()},
        {"a": one["a"].view(3, 1, 2, 2)},
        {"a": one["a"] + 1},
    ]
    assert len({hash_tensors(each) for each in [one, *others]}) == 5


def test_a_card_calls_no_function(tmp_path: pathlib.Path) -> None:
    card = Card(architecture="os:abort", class_names=("a", "b"), channels=1, size=(8, 8), initial_weights="random")
    body = safetensors.torch.save({"w": torch.zeros(1)}, {"uapray_card": card.model_dump_json()})
    (tmp_path / "x.safetensors").write_bytes(body)
    with pytest.raises(ClassifierError, match="its card names the function os:abort"):
        load_classifier(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: pathlib.Path, value: float) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors.torch.save({"w": torch.tensor([0.0, value])}))
    with pytest.raises(ClassifierError, match="expected finite weights, got NaN or infinity in w"):
        load_classifier(str(tmp_path / "x.safetensors"))


def test_of_two_trainings_that_race_the_first_classifier_stays(classifier: Classifier, tmp_path: pathlib.Path) -> None:
    uri = str(tmp_path / "x.safetensors")
    other = make_classifier(build("tiny-cnn", classes=2, channels=1, size=(32, 40), seed=5), classifier.card)
    other = Classifier(other.module, other.card.model_copy(update={"seed": 5}), other.sha256)
    assert save_classifier_once(classifier, uri)
    assert not save_classifier_once(other, uri)
    assert save_classifier_once(classifier, uri), "it stands"
    assert load_classifier(uri).sha256 == classifier.sha256 != other.sha256
    assert json.loads((tmp_path / "x.card.json").read_text())["seed"] == classifier.card.seed
