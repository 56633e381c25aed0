import copy
import io
import json
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from uapray.errors import ClassifierError
from uapray.models.exported import ExportedModule
from uapray.models.weights import load_classifier
from uapray.models.zoo import build

Records = dict[str, bytes]


@pytest.fixture(scope="session")
def source() -> nn.Module:
    return build("tiny-cnn", classes=2, channels=1, size=(32, 32), seed=3)


def exported(
    module: nn.Module, *, batch: Any = torch.export.Dim.DYNAMIC, shape: tuple[int, ...] = (1, 32, 32)
) -> bytes:
    target = io.BytesIO()
    program = torch.export.export(module, (torch.rand(2, *shape),), dynamic_shapes=({0: batch},))
    torch.export.save(program, target)
    return target.getvalue()


@pytest.fixture(scope="session")
def program(source: nn.Module) -> bytes:
    return exported(source)


def written(path: pathlib.Path, body: bytes) -> str:
    path.write_bytes(body)
    return str(path)


def tampered(body: bytes, change: Callable[[Records], None]) -> bytes:
    """Open an archive, change its records by their name below the root folder, and write it again."""
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, record in records.items():
            archive.writestr(f"model/{name}", record)
    return target.getvalue()


def edited(records: Records, name: str, edit: Callable[[Any], None]) -> None:
    value = json.loads(records[name])
    edit(value)
    records[name] = json.dumps(value).encode()


def test_gives_the_sources_logits_and_gradients_for_any_number(
    tmp_path: pathlib.Path, source: nn.Module, program: bytes
) -> None:
    loaded = load_classifier(written(tmp_path / "x.pt2", program), class_names=("a", "b"))
    assert (loaded.card.channels, loaded.card.size) == (1, (32, 32))
    for count in (1, 2, 5):
        pixels = torch.rand(count, 1, 32, 32, requires_grad=True)
        ours, theirs = loaded.module(pixels), source(pixels)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(logits[:, 1].sum(), pixels)[0] for logits in (ours, theirs)))


def test_copies_and_pickles(tmp_path: pathlib.Path, program: bytes) -> None:
    loaded = load_classifier(written(tmp_path / "x.pt2", program))
    pixels = torch.rand(3, 1, 32, 32)
    for other in (pickle.loads(pickle.dumps(loaded.module)), copy.deepcopy(loaded.module)):
        assert torch.equal(other(pixels), loaded.module(pixels))
        assert other.train().eval() is other


def test_the_hash_is_of_weights_and_graph(tmp_path: pathlib.Path, source: nn.Module, program: bytes) -> None:
    same = load_classifier(written(tmp_path / "same.pt2", program)).sha256
    assert same == load_classifier(written(tmp_path / "other_name.pt2", program)).sha256

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.mean, self.std = source.backbone, source.mean, source.std

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return 2 * self.backbone((pixels - self.mean) / self.std)

    assert same != load_classifier(written(tmp_path / "doubled.pt2", exported(Doubled().eval()))).sha256


def test_a_fixed_number_of_images_is_refused(tmp_path: pathlib.Path, source: nn.Module) -> None:
    uri = written(tmp_path / "x.pt2", exported(source, batch=None))
    with pytest.raises(ClassifierError, match=r"any number of images, got one for 2; export it with dynamic_shapes"):
        load_classifier(uri)


def test_a_program_left_in_training_is_refused(tmp_path: pathlib.Path) -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm2d(1, track_running_stats=False), nn.Linear(16, 2)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(pixels).flatten(1))

    uri = written(tmp_path / "x.pt2", exported(Restless(), shape=(1, 4, 4)))
    with pytest.raises(ClassifierError, match="depend on the batch around it"):
        load_classifier(uri)


class Bomb:
    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return pathlib.Path.touch, (self.path,)


def test_sample_inputs_are_never_unpickled(tmp_path: pathlib.Path, source: nn.Module, program: bytes) -> None:
    trace, evil = tmp_path / "unpickled", io.BytesIO()
    torch.save(Bomb(trace), evil)
    body = tampered(program, lambda records: records.update({"data/sample_inputs/model.pt": evil.getvalue()}))
    loaded = load_classifier(written(tmp_path / "x.pt2", body))
    pixels = torch.rand(2, 1, 32, 32)
    assert torch.equal(loaded.module(pixels), source(pixels))
    assert not trace.exists()


def test_guards_are_never_evaluated(tmp_path: pathlib.Path, program: bytes) -> None:
    trace = tmp_path / "evaluated"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch() or True"
    body = tampered(program, lambda r: edited(r, "models/model.json", lambda model: model.update(guards_code=[code])))
    load_classifier(written(tmp_path / "x.pt2", body)).module(torch.rand(1, 1, 32, 32))
    assert not trace.exists()


def first_node(model: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = model["graph_module"]["graph"]["nodes"][0]
    return node


def batch_size(model: dict[str, Any]) -> dict[str, Any]:
    size: dict[str, Any] = model["graph_module"]["graph"]["tensor_values"]["pixels"]["sizes"][0]["as_expr"]
    return size


def weights_config(edit: Callable[[dict[str, Any]], None]) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        edited(
            records,
            "data/weights/model_weights_config.json",
            lambda c: edit(next(iter(c["config"].values()))),
        )

    return change


def model_json(edit: Callable[[dict[str, Any]], None]) -> Callable[[Records], None]:
    return lambda records: edited(records, "models/model.json", edit)


def node(**changes: Any) -> Callable[[Records], None]:
    return model_json(lambda model: first_node(model).update(changes))


def layout(kind: str) -> Callable[[Records], None]:
    spec = json.dumps([1, {"type": kind, "context": "{}", "children_spec": []}])
    return model_json(lambda model: model["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=spec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (weights_config(lambda entry: entry.update(use_pickle=True)), "a pickled tensor"),
        (weights_config(lambda entry: entry.update(path_name="../evil")), "a tensor without bytes"),
        (lambda records: records.update({"data/weights/model.pt": b""}), "the record .*model.pt"),
        (lambda records: records.update({"data/constants/custom_obj_0": b""}), "the record .*custom_obj_0"),
        (lambda records: records.update({"data/aotinductor/model/evil.so": b""}), "the record .*evil.so"),
        (lambda records: records.pop("models/model.json"), "no readable models/model.json"),
        (node(target="torch.hub.load"), "the operator 'torch.hub.load'"),
        (node(target="torch.ops.aten.from_file.default"), "the operator '.*from_file"),
        (node(name="x\nimport os"), "the name"),
        (node(inputs=[{"name": "filename", "arg": {"as_string": "x"}}]), "the text argument 'filename'"),
        (node(inputs=[{"name": "f", "arg": {"as_operator": "torch.load"}}]), "as_operator"),
        (model_json(lambda m: batch_size(m).update(expr_str="__import__('os').abort()")), "the size"),
        (model_json(lambda m: m["range_constraints"].update({"exit()": {}})), "a symbol"),
        (layout("collections.defaultdict"), "the container 'collections.defaultdict'"),
    ],
)
def test_archives_that_could_run_something_are_refused(
    tmp_path: pathlib.Path, program: bytes, change: Callable[[Records], None], message: str
) -> None:
    uri = written(tmp_path / "x.pt2", tampered(program, change))
    with pytest.raises(ClassifierError, match=rf"got .*{message}") as refusal:
        load_classifier(uri)
    assert "\n" not in str(refusal.value)


def test_a_truncated_archive_is_refused(tmp_path: pathlib.Path, program: bytes) -> None:
    with pytest.raises(ClassifierError):
        load_classifier(written(tmp_path / "x.pt2", program[: len(program) // 2]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "efficientnet_b0", "vit_tiny_patch16_224", "convnext_atto"]
)
def test_common_architectures_pass_the_checks(name: str) -> None:
    model = build(name, classes=3, channels=3, size=(64, 64))
    pixels = torch.rand(3, 3, 64, 64)
    loaded = ExportedModule(name, exported(model, shape=(3, 64, 64)))
    torch.testing.assert_close(loaded(pixels), model(pixels))
