"""Modules of the user's own: found by ``package.module:function`` and tried before they are trusted."""

import importlib
import os
import re
import sys

import torch
from torch import Tensor, nn

from uapray.errors import ClassifierError
from uapray.steady import drawing

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_TOLERANCE = 1e-3


def is_reference(text: str) -> bool:
    """Whether a text reads as ``package.module:function`` (and is not a torchvision architecture)."""
    return _REFERENCE.fullmatch(text) is not None and not text.startswith("torchvision:")


def call(reference: str) -> nn.Module:
    """Import ``package.module``, call ``function()`` and return the module that it returns.

    Raises:
        ClassifierError: If it cannot be imported, fails, or returns something else.
    """
    home, _, name = reference.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        # As "python script.py" would: a console script's own path has no working folder. It stays, because
        # the module may import its neighbours later.
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(home), name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise ClassifierError(
            f"{reference}: expected an importable module with a function {name} ({type(error).__name__}: {error}); "
            "run where it can be imported, or install it"
        ) from error
    try:
        with drawing:
            module = function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ClassifierError(f"{reference}: the function failed ({type(error).__name__}: {error})") from error
    if not isinstance(module, nn.Module):
        raise ClassifierError(f"{reference}: expected a torch.nn.Module, got {type(module).__name__}")
    return module


def count_classes(name: str, module: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Try a module on noise and return how many logits it gives.

    Raises:
        ClassifierError: If it does not take three images of that shape, returns no finite ``(n, k)``, returns
            probabilities, or if an image's logits depend on the images beside it (batch norm in training).
    """
    shape = (channels, *size)
    noise = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)).to(_device_of(module))
    logits, alone = _answer(name, module, noise), _answer(name, module, noise[:1])
    if logits.ndim != 2 or logits.shape[0] != 3 or logits.shape[1] < 2:
        raise ClassifierError(f"{name}: expected logits (3, classes) for 3 images, got {tuple(logits.shape)}")
    if not logits.isfinite().all():
        raise ClassifierError(f"{name}: expected finite logits for pixels in [0, 1], got {_some(logits)}")
    if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4):
        raise ClassifierError(f"{name}: expected logits, got probabilities that sum to 1; leave the softmax out")
    if (logits[:1] - alone).abs().max() > _TOLERANCE * logits.abs().max():
        raise ClassifierError(
            f"{name}: an image's logits depend on the batch around it; export or build it in evaluation mode"
        )
    return logits.shape[1]


def _answer(name: str, module: nn.Module, pixels: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            logits = module(pixels)
    except Exception as error:  # the user's code may raise anything
        said = str(error).strip().partition("\n")[0]
        raise ClassifierError(
            f"{name}: expected a module that takes [0, 1] pixels (n, c, h, w), any n; "
            f"it failed on {tuple(pixels.shape)} ({type(error).__name__}: {said})"
        ) from error
    if not isinstance(logits, Tensor):
        raise ClassifierError(f"{name}: expected a tensor of logits, got {type(logits).__name__}")
    return logits.float()


def _device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))


def _some(logits: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in logits[0, :4].tolist())
