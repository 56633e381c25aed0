"""Classifiers as graphs of torch's own layers: a process that opens one need not import what it was built with."""

import copy
from collections.abc import Callable
from math import ceil
from threading import Lock, get_ident
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

HEAVY = ("timm", "torchvision")  # benchmarks/memory.py prints what importing them takes
_tracing = Lock()  # of the process: torch.fx draws by exchanging the call of all modules, whoever calls them


class _ThisThread(fx.Tracer):
    """Draws what one thread calls; modules that others call meanwhile do what they always do."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return super().call_module(m, forward, args, kwargs) if self._is_mine() else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self._is_mine() else attr_val

    def _is_mine(self) -> bool:
        return get_ident() == self._thread


def as_graph(module: nn.Module, pixels: Tensor | None) -> nn.Module:
    """Return a module whose parts from heavy packages are graphs of torch's own layers, with the same weights.

    The same operations in the same order give the same bits. A part that decides by what it is given cannot be
    drawn as a graph; it stays as it is, as does the whole if the graph's logits differ in one bit. Convolutions that
    pad by the size of what they are given (TensorFlow's "same"), and vision transformers that fit their positions
    to it, are drawn for the size of these images.

    Args:
        module: In evaluation mode, from ``(n, c, h, w)`` to logits ``(n, k)``; not changed.
        pixels: Two images in [0, 1], on which both are asked, one and two at a time; None: nothing is drawn.
    """
    heavy = _outermost_heavy(module)
    if pixels is None or not heavy:
        return module
    graph = copy.deepcopy(module, {id(one): one for one in (*module.parameters(), *module.buffers())})
    _settle_padding(graph, pixels[:1])
    _settle_positions(graph)
    if not all(_draw(graph, name) for name in heavy):
        return module
    return graph if all(_agree(graph, module, pixels[:count]) for count in (1, 2)) else module


def _outermost_heavy(module: nn.Module) -> list[str]:
    found: list[str] = []
    for name, part in module.named_modules():  # owners come before what they own
        if type(part).__module__.split(".")[0] in HEAVY and not any(name.startswith(f"{one}.") for one in found):
            found.append(name)
    return found


def _settle_padding(module: nn.Module, pixels: Tensor) -> None:
    """Put a pad of fixed width and a plain convolution into the place of each `timm.layers.Conv2dSame`."""
    sizes: dict[str, tuple[int, int]] = {}
    same = {name: part for name, part in module.named_modules() if type(part).__name__ == "Conv2dSame"}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _part, given: sizes.update({name: (given[0].shape[2], given[0].shape[3])})

    hooks = [part.register_forward_pre_hook(watch(name)) for name, part in same.items()]
    if same:
        with torch.no_grad():
            module(pixels)
    for hook in hooks:
        hook.remove()
    for name, size in sizes.items():
        module.set_submodule(name, _padded(cast("nn.Conv2d", same[name]), size))


def _padded(conv: nn.Conv2d, size: tuple[int, int]) -> nn.Module:
    """Return what a convolution that gives ``ceil(size / stride)`` does to images of one size, on the same weights."""
    shapes = zip(size, conv.kernel_size, conv.stride, conv.dilation, strict=True)
    height, width = (max((ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in shapes)
    top, left = height // 2, width // 2
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        (conv.stride[0], conv.stride[1]),
        dilation=(conv.dilation[0], conv.dilation[1]),
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    plain.weight, plain.bias = conv.weight, conv.bias
    return nn.Sequential(nn.ZeroPad2d((left, width - left, top, height - top)), plain).eval()


def _settle_positions(module: nn.Module) -> None:
    """Have timm's vision transformers take images of the size they were built for, as most of them do."""
    for part in module.modules():
        if getattr(part, "dynamic_img_size", False):
            transformer = cast("Any", part)
            transformer.dynamic_img_size, transformer.patch_embed.flatten = False, True


def _agree(graph: nn.Module, module: nn.Module, pixels: Tensor) -> bool:
    with torch.no_grad():
        try:
            return torch.equal(graph(pixels), module(pixels))
        except (RuntimeError, ValueError, AssertionError, TypeError):
            return False


def _draw(module: nn.Module, name: str) -> bool:
    """Put the graph of a part into its place; False if there is none."""
    try:
        with _tracing:
            tracer = _ThisThread()
            graph = tracer.trace(module.get_submodule(name))
        module.set_submodule(name, fx.GraphModule(tracer.root, graph))
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError):
        return False
    return True
