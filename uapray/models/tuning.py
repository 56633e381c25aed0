"""A classifier made fast for input gradients: no batch norm, channels last, frozen weights."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uapray.errors import ClassifierError

FUSED_TOLERANCE = 1e-3
# By name, so that a replica of a model without timm does not import it.
_CONVOLUTIONS = ("torch.nn.modules.conv.Conv2d", "timm.layers.conv2d_same.Conv2dSame")
_NORM_WITH_ACTIVATION = "timm.layers.norm_act.BatchNormAct2d"
_NORMS_2D = ("torch.nn.modules.batchnorm.BatchNorm2d", _NORM_WITH_ACTIVATION)
_GUESSED_SIZES = (64, 224, 299)
_Seen = dict[str, list[tuple[Tensor, int]]]  # by module: the tensors it returned or took, and their versions


def tune(module: nn.Module, pixels: Tensor | None = None) -> nn.Module:
    """Return a copy of a classifier, in evaluation mode, that gives the same logits and gradients faster.

    A batch norm that stands directly behind a convolution or linear layer is folded into it. Which do, is
    seen by watching one forward pass; the folded copy is kept only if its logits agree with the unfolded
    one's to `FUSED_TOLERANCE` of their scale. Weights take no gradients and lie channels last, as uint8
    images ``(n, h, w, c)`` do once they are permuted.

    Args:
        module: Takes ``(n, c, h, w)``, returns logits ``(n, k)``; not changed.
        pixels: Some images of the right shape in [0, 1]; None: noise of the shape that the module says of
            itself (``channels``, ``size``) or that its first convolution takes.
    """
    plain = _frozen_copy(module)
    watched = _watched(plain, [pixels] if pixels is not None else _noises(plain))
    if watched is None or not watched.pairs:
        return plain
    fused = copy.deepcopy(plain)
    for pair in watched.pairs:
        _fold(fused, pair)
    _settle(fused)
    return fused if _agrees(fused, watched) else plain


@dataclass(frozen=True, slots=True)
class _Pair:
    """Names of a layer and of the batch norm that takes its output."""

    layer: str
    norm: str


@dataclass(frozen=True, slots=True, eq=False)
class _Watched:
    pairs: tuple[_Pair, ...]
    pixels: Tensor
    logits: Tensor


def _frozen_copy(module: nn.Module) -> nn.Module:
    try:
        copied = copy.deepcopy(module)
    except Exception as error:  # a foreign class may refuse in any way
        raise ClassifierError(f"classifier: expected a module that can be copied, got {error}") from error
    return _settle(copied.eval().requires_grad_(requires_grad=False))


def _settle(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.channels_last)


def _noises(module: nn.Module) -> Iterator[Tensor]:
    """Return noise in the shapes that the module may take."""
    first = next((inner for inner in module.modules() if isinstance(inner, nn.Conv2d)), None)
    channels = getattr(module, "channels", None) or (first.in_channels if first is not None else 3)
    size = getattr(module, "size", None)
    sizes = [size] if isinstance(size, tuple) else [(side, side) for side in _GUESSED_SIZES]
    for height, width in sizes:
        generator = torch.Generator().manual_seed(0)
        yield torch.rand(2, channels, height, width, generator=generator)


def _watched(module: nn.Module, candidates: Iterable[Tensor]) -> _Watched | None:
    """Run the module on the first candidate that it takes, and see which batch norm follows which layer."""
    layers = {name: inner for name, inner in module.named_modules() if _foldable(inner)}
    norms = {name: inner for name, inner in module.named_modules() if _is_norm(inner)}
    if not layers or not norms:
        return None
    for pixels in candidates:
        moved = pixels.to(next(iter(norms.values())).running_mean.device)
        outputs: _Seen = {name: [] for name in layers}
        inputs: _Seen = {name: [] for name in norms}
        hooks = [
            *(inner.register_forward_hook(_keep_output(outputs[name])) for name, inner in layers.items()),
            *(inner.register_forward_pre_hook(_keep_input(inputs[name])) for name, inner in norms.items()),
        ]
        try:
            with torch.no_grad():
                logits = module(moved)
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError):
            continue
        finally:
            for hook in hooks:
                hook.remove()
        if isinstance(logits, Tensor):
            return _Watched(_pairs(module, outputs, inputs), moved, logits)
    return None


def _keep_output(kept: list[tuple[Tensor, int]]) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _module, _inputs, output: kept.append((output, output._version))


def _keep_input(kept: list[tuple[Tensor, int]]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _module, inputs: kept.append((inputs[0], inputs[0]._version))


def _pairs(module: nn.Module, outputs: _Seen, inputs: _Seen) -> tuple[_Pair, ...]:
    """Match each norm's input with the layer that returned that very tensor; both used once."""
    # The version tells a tensor from itself after an activation changed it in place.
    makers = {_identity(kept[0]): name for name, kept in outputs.items() if len(kept) == 1}
    takers = [id(tensor) for kept in inputs.values() for tensor, _ in kept]
    return tuple(
        _Pair(makers[_identity(kept[0])], name)
        for name, kept in inputs.items()
        if len(kept) == 1
        and _identity(kept[0]) in makers
        and takers.count(id(kept[0][0])) == 1
        and _same_kind(module.get_submodule(makers[_identity(kept[0])]), module.get_submodule(name))
    )


def _identity(seen: tuple[Tensor, int]) -> tuple[int, int]:
    tensor, version = seen
    return id(tensor), version


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _foldable(module: nn.Module) -> bool:
    # Subclasses may change the weight on its way (weight standardisation, parametrisations); hooks may too.
    known = _kind(module) in _CONVOLUTIONS or type(module) is nn.Linear
    return known and not module._forward_pre_hooks and not module._forward_hooks


def _is_norm(module: nn.Module) -> bool:
    known = _kind(module) in _NORMS_2D or type(module) is nn.BatchNorm1d
    return known and module.running_mean is not None and not module._forward_pre_hooks


def _same_kind(layer: nn.Module, norm: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) == (type(norm) is nn.BatchNorm1d)


def _fold(module: nn.Module, pair: _Pair) -> None:
    """Move a batch norm's factor and shift into the layer before it, in place; what it did besides stays."""
    layer, norm = module.get_submodule(pair.layer), module.get_submodule(pair.norm)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    factor, shift = _affine(norm)
    weight = layer.weight.double()
    bias = shift if layer.bias is None else layer.bias.double() * factor + shift
    factor = factor.view(-1, *(1,) * (weight.ndim - 1))
    layer.weight = nn.Parameter((weight * factor).to(layer.weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
    parent, _, name = pair.norm.rpartition(".")
    setattr(module.get_submodule(parent), name, _remainder(norm))


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return factor and shift of a batch norm in evaluation mode, float64 ``(channels,)``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.double()


def _remainder(norm: nn.Module) -> nn.Module:
    if _kind(norm) == _NORM_WITH_ACTIVATION:
        parts: Any = norm
        return nn.Sequential(parts.drop, parts.act)
    return nn.Identity()


def _agrees(fused: nn.Module, watched: _Watched) -> bool:
    try:
        with torch.no_grad():
            logits = fused(watched.pixels)
    except (RuntimeError, ValueError, AssertionError, TypeError, AttributeError):
        return False  # code that asks its batch norm for more than to be called
    scale = watched.logits.abs().max()
    return bool((logits - watched.logits).abs().max() <= FUSED_TOLERANCE * scale)
