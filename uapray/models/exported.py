"""Programs written by `torch.export.save`: a graph of operators with its weights, and no Python."""

import io
import json
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from uapray.errors import ClassifierError
from uapray.models.archive import cleaned, is_archive

_HOW = "export it with dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"


def is_program(body: bytes) -> bool:
    """Whether the bytes are an exported program (``.pt2``)."""
    return is_archive(body)


def load_program(origin: str, body: bytes) -> "ExportedModule":
    """Check the file's bytes and make a module of them.

    Raises:
        ClassifierError: If it holds more than tensors and operators, cannot be read by this torch, or takes
            other things than images ``(n, c, h, w)`` with any ``n``.
    """
    return ExportedModule(origin, body)


class ExportedModule(nn.Module):
    """An exported program as a module that can be copied, pickled and moved like any other.

    Attributes:
        channels: Of the images it takes; None if any.
        size: ``(h, w)`` of the images it takes; None if any.
        graph_text: The program without its weights, for hashing.
    """

    def __init__(self, origin: str, body: bytes) -> None:
        super().__init__()
        clean, program = cleaned(origin, body)
        try:
            loaded = torch.export.load(io.BytesIO(clean))
        except Exception as error:  # whatever torch's reader trips over
            said = str(error).strip().partition("\n")[0]
            raise ClassifierError(
                f"{origin}: torch {torch.__version__} cannot read this exported program ({said}); "
                "export the module again with it"
            ) from error
        self._origin, self._body = origin, clean
        self.graph_text = json.dumps({**program, "torch_version": ""}, sort_keys=True)
        self.channels, self.size = _image_shape(origin, loaded)
        self._graph = loaded.module()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits ``(n, k)`` of [0, 1] pixels ``(n, c, h, w)``."""
        logits: Tensor = self._graph(pixels)
        return logits

    def train(self, mode: bool = True) -> Self:
        """Do nothing: the graph was fixed when it was exported."""
        self.training = mode
        return self

    def __reduce__(self) -> tuple[Callable[[str, bytes], "ExportedModule"], tuple[str, bytes]]:
        # A graph module does not pickle by itself, and what arrives is checked again.
        return load_program, (self._origin, self._body)


def _image_shape(origin: str, program: Any) -> tuple[int | None, tuple[int, int] | None]:
    names = program.graph_signature.user_inputs
    values = [node.meta.get("val") for node in program.graph.nodes if node.name in names]
    if len(names) != 1 or not isinstance(values[0], Tensor) or values[0].ndim != 4:
        raise ClassifierError(f"{origin}: expected a program of one input, images (n, c, h, w), got {len(names)}")
    batch, channels, *size = values[0].shape
    if isinstance(batch, int):
        raise ClassifierError(f"{origin}: expected a program for any number of images, got one for {batch}; {_HOW}")
    height, width = size
    known = isinstance(height, int) and isinstance(width, int)
    return channels if isinstance(channels, int) else None, (height, width) if known else None
