"""Initial weights from a file: another classifier's, or plain ones under timm's or torchvision's names."""

from collections.abc import Mapping

from torch import Tensor, nn

from uapray.errors import ClassifierError
from uapray.models.card import read_card
from uapray.models.pixel import PixelModel
from uapray.models.spellings import in_timms_names
from uapray.models.tensors import read_weights

_PREFIXES = ("module.", "backbone.", "model.", "_orig_mod.")
_AUXILIARY = ("AuxLogits.", "aux_logits.", "aux1.", "aux2.")  # heads that only torchvision's training uses
_SHOWN = 3


def adopt(model: PixelModel, architecture: str, uri: str, *, keep_normalisation: bool) -> None:
    """Put the weights of a file into a model in place; a last layer of another shape is left as it is.

    Args:
        model: Freshly built.
        architecture: Its canonical name.
        uri: ``.safetensors`` or ``.npz``.
        keep_normalisation: Leave the model's mean and std, whatever the file says.

    Raises:
        ClassifierError: If anything but the last layer does not fit.
    """
    file = read_weights(uri)
    if file.card is not None:
        origin = read_card(uri, file.card).architecture
        if fold_name(origin) != fold_name(architecture):
            raise ClassifierError(
                f"{uri}: expected weights of {architecture}, got weights of another architecture ({origin})"
            )
    came = strip_prefixes(file.tensors)
    for name, buffer in (("mean", model.mean), ("std", model.std)):
        # Weights are worth most under the normalisation they were trained with.
        value = came.pop(name, None)
        if value is not None and value.shape == buffer.shape and not keep_normalisation:
            buffer.copy_(value)
    head = head_prefixes(model.backbone)
    expected = model.backbone.state_dict()
    fitted = _fit(came, expected, head)
    if misfits(fitted, expected, head):
        fitted = _fit(in_timms_names(came, model.backbone), expected, head)
    if wrong := misfits(fitted, expected, head):
        raise ClassifierError(f"{uri}: expected weights of {architecture}, got {describe(wrong)}")
    merged = {name: fitted[name] if _fits(fitted, name, value) else value for name, value in expected.items()}
    if not all(_fits(fitted, name, expected[name]) for name in expected if name.startswith(head)):
        merged |= {name: value for name, value in expected.items() if name.startswith(head)}
    model.backbone.load_state_dict(merged)


def fold_name(architecture: str) -> str:
    """Return a name without what two spellings of it may differ in: case, punctuation, timm's tag of weights."""
    return "".join(letter for letter in architecture.lower().partition(".")[0] if letter.isalnum())


def misfits(came: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: tuple[str, ...] = ()) -> list[str]:
    """Name every tensor that is missing, of another shape or unexpected, the last layer aside."""
    return [
        *(
            f"{name} missing"
            for name in expected
            if name not in came and not name.startswith(head) and not _is_counter(name)
        ),
        *(
            f"{name} {tuple(came[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in expected
            if name in came and came[name].shape != expected[name].shape and not name.startswith(head)
        ),
        *(f"{name} unexpected" for name in came if name not in expected),
    ]


def describe(wrong: list[str]) -> str:
    """Return a phrase for weights that do not fit."""
    rest = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return f"weights of another architecture: {', '.join(wrong[:_SHOWN])}{rest}"


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what wrappers put before every name: ``module.``, ``backbone.`` and the like."""
    found = dict(tensors)
    for _ in range(len(_PREFIXES)):
        body = [name for name in found if name not in ("mean", "std")]
        prefix = next((p for p in _PREFIXES if body and all(name.startswith(p) for name in body)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def head_prefixes(backbone: nn.Module) -> tuple[str, ...]:
    """Return what the names of the last layer's tensors begin with; two for a model with two heads."""
    named = getattr(backbone, "pretrained_cfg", {}).get("classifier")
    if named:
        return tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))
    layers = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return tuple(f"{name}." for name in layers[-1:])


def _fit(came: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: tuple[str, ...]) -> dict[str, Tensor]:
    """Leave out what no classifier of ours has, and turn the first layer from 3 channels to 1 or back."""
    layers_cut: tuple[str, ...] = () if any(name.startswith("pre_logits.") for name in expected) else ("pre_logits.",)
    if "features.0.weight" in expected and "head.fc.weight" in expected and layers_cut:
        layers_cut += ("classifier.",)  # torchvision's name of the layers that the papers cut off VGG
    fitted = {
        name: value.to(expected[name].dtype) if name in expected else value
        for name, value in came.items()
        if not name.startswith(_AUXILIARY + layers_cut) and (name in expected or not name.startswith(head))
    }
    first = next((name for name, value in expected.items() if value.ndim == 4), None)
    if first in fitted:
        fitted[first] = _recoloured(fitted[first], expected[first])
    return fitted


def _recoloured(weight: Tensor, wanted: Tensor) -> Tensor:
    before, after = weight.shape[1:2], wanted.shape[1:2]
    same_otherwise = weight.ndim == 4 and weight.shape[0] == wanted.shape[0] and weight.shape[2:] == wanted.shape[2:]
    if not same_otherwise or before == after or {*before, *after} != {1, 3}:
        return weight
    # Equal answers to a grey picture, whether it comes once or three times over.
    return weight.sum(1, keepdim=True) if after == (1,) else weight.expand(-1, 3, -1, -1) / 3


def _fits(came: Mapping[str, Tensor], name: str, expected: Tensor) -> bool:
    return name in came and came[name].shape == expected.shape


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")  # files from other frameworks lack it; nothing depends on it
