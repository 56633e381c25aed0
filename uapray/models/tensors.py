"""Files of named arrays. Nothing is ever unpickled: a pickle can run any program when it is read."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from uapray.errors import ClassifierError
from uapray.objects import read_uri

CARD_KEY = "uapray_card"
PICKLED_SUFFIXES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".tar"})
_HOW = (
    "weights are never unpickled; where you trust the file, convert it once: "
    "safetensors.torch.save_file(model.state_dict(), 'x.safetensors') or torch.export.save(program, 'x.pt2')"
)


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """Named arrays as read.

    Attributes:
        tensors: On the CPU.
        card: JSON text of the card; None if the file is not one of ours.
    """

    tensors: dict[str, Tensor]
    card: str | None


def read_weights(uri: str) -> WeightsFile:
    """Read a ``.safetensors`` or ``.npz`` file; what it is, is told from its bytes.

    Raises:
        ClassifierError: If it is a pickle, damaged, or neither.
        NotFoundError: If nothing is there.
    """
    refuse_pickled_name(uri)
    body = read_uri(uri)
    refuse_pickle(uri, body)
    return decode_weights(uri, body)


def decode_weights(uri: str, body: bytes) -> WeightsFile:
    """Decode the bytes of a ``.safetensors`` or ``.npz`` file; ``uri`` is for the error."""
    if zipfile.is_zipfile(io.BytesIO(body)):
        return WeightsFile(_finite(uri, _read_npz(uri, body)), None)
    try:
        tensors = _finite(uri, safetensors.torch.load(body))
    except SafetensorError as error:
        raise ClassifierError(f"{uri}: expected a .safetensors file, got a damaged or other one ({error})") from None
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return WeightsFile(tensors, header.get("__metadata__", {}).get(CARD_KEY))


def refuse_pickled_name(uri: str) -> None:
    """Refuse a file whose name says that it is pickled, before it is read."""
    if (suffix := PurePosixPath(uri).suffix.lower()) in PICKLED_SUFFIXES:
        raise ClassifierError(f"{uri}: expected .safetensors or .pt2, got a pickle ({suffix});\n{_HOW}")


def refuse_pickle(uri: str, body: bytes) -> None:
    """Refuse bytes that are a pickle, or a zip with a pickle that torch would read as weights."""
    if body[:1] == b"\x80" and body[1:2] <= b"\x05":
        # Eight bytes of header length come first in safetensors; 0x80 there with 0 to 5 next would be a
        # header of 128 to 1,408 bytes. It is one if a JSON object follows.
        if body[8:9] == b"{" and body[4:8] == b"\0\0\0\0":
            return
        raise ClassifierError(f"{uri}: expected .safetensors or .pt2, got a pickle;\n{_HOW}")
    if _holds_pickle(body):
        raise ClassifierError(f"{uri}: expected .safetensors or .pt2, got a torch zip with a pickle in it;\n{_HOW}")


def encode_weights(tensors: Mapping[str, Tensor], card: str) -> bytes:
    """Return the ``.safetensors`` bytes of some tensors, with the card in the metadata."""
    # Copies: safetensors refuses tensors that share memory, which tied weights do.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return bytes(safetensors.torch.save(plain, metadata={CARD_KEY: card}))


def hash_tensors(tensors: Mapping[str, Tensor], origin: str = "") -> str:
    """Return the SHA-256 of names, types, shapes and bytes, in the order of the names.

    Args:
        tensors: E.g. a state dict; where they are and how they lie in memory does not matter.
        origin: What else tells two modules with equal weights apart, e.g. the function that made one.
    """
    total = hashlib.sha256(origin.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _finite(uri: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ClassifierError(f"{uri}: expected finite weights, got NaN or infinity in {name}")
    return tensors


def _holds_pickle(body: bytes) -> bool:
    if not zipfile.is_zipfile(io.BytesIO(body)):
        return False
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return any(PurePosixPath(name).name in ("data.pkl", "constants.pkl") for name in archive.namelist())


def _read_npz(uri: str, body: bytes) -> dict[str, Tensor]:
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name].copy()) for name in arrays.files}
    except Exception as error:  # numpy, zipfile and zlib have their own
        raise ClassifierError(
            f"{uri}: expected an .npz file of plain arrays, got another or a damaged one; numpy says: {error}"
        ) from None
