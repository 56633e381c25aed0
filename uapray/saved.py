"""Searches under way, as bytes: what an interrupted one needs to go on to the same bits."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from uapray.attack.objective import Objective
from uapray.attack.rules import State
from uapray.coordinator import Measurement, Snapshot, Start
from uapray.errors import StoreError

_KEPT = ("v", "point", "memory", "squares", "earlier", "bands")  # of a state

Answers = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search has come.

    A search by gradients goes on from its latest snapshot. One that asks for answers only is walked through once more
    with the answers that it had: they are small, and a meta-heuristic's own state is a library's affair.

    Attributes:
        snapshot: Where a search by gradients stood; None: it is one by answers.
        history: The measurements up to there.
        answers: Logits ``(n, k)`` that a search by answers was given, in order.
        seconds: Wall time spent.
    """

    snapshot: Snapshot | None = None
    history: tuple[Measurement, ...] = ()
    answers: Answers = ()
    seconds: float = 0.0


def pack(progress: Progress, origin: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file that ``unpack`` reads.

    Args:
        progress: How far the search has come.
        origin: What it may be continued under, e.g. the hash of the classifier and the versions of the code.
    """
    tensors: dict[str, Tensor] = {}
    said: dict[str, Any] = {"history": list(map(asdict, progress.history)), "seconds": progress.seconds}
    if progress.answers:
        tensors["answers"] = torch.from_numpy(np.concatenate(progress.answers))
        said["lengths"] = list(map(len, progress.answers))
    if (now := progress.snapshot) is not None:
        tensors["best"] = now.best
        for start in now.starts:
            tensors |= {f"{start.index}/{name}": tensor for name, tensor in _tensors(start.state).items()}
        plain = replace(now, best=None, measured=(), starts=())  # type: ignore[arg-type]
        said["snapshot"] = asdict(plain) | {"starts": list(map(_plain, now.starts))}
    metadata = {"progress": json.dumps(said), "origin": json.dumps(dict(origin), sort_keys=True)}
    body: bytes = safetensors.torch.save({name: one.clone().contiguous() for name, one in tensors.items()}, metadata)
    return body


def unpack(body: bytes, origin: Mapping[str, str], *, name: str) -> Progress | None:
    """Return how far a search had come; None if it was one of another classifier or by another version of the code.

    Args:
        body: What ``pack`` returned.
        origin: What the search would go on under.
        name: Of the object, for the error.

    Raises:
        StoreError: If the bytes are damaged.
    """
    try:
        tensors = safetensors.torch.load(body)
        metadata = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
        if json.loads(metadata["origin"]) != dict(origin):
            return None
        return _progress(tensors, json.loads(metadata["progress"]))
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{name}: damaged, no search to go on with; delete it and run again: {error}") from error


def _progress(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> Progress:
    history, seconds = tuple(Measurement(**row) for row in said["history"]), float(said["seconds"])
    if "lengths" in said:
        ends = np.cumsum(said["lengths"])[:-1]
        return Progress(None, history, tuple(np.split(tensors["answers"].numpy(), ends)), seconds)
    if "snapshot" not in said:
        return Progress(None, history, (), seconds)
    plain = dict(said["snapshot"])
    starts = tuple(_start(one, tensors) for one in plain.pop("starts"))
    plain |= {"starts": starts, "best": tensors["best"], "measured": ()}
    return Progress(Snapshot(**plain), history, (), seconds)


def _tensors(state: State) -> dict[str, Tensor]:
    named = {name: getattr(state, name) for name in _KEPT}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _plain(start: Start) -> dict[str, Any]:
    """Return all of a start but its tensors."""
    counts = {name: getattr(start, name) for name in ("index", "rounds", "moved", "image_gradients", "image_queries")}
    return counts | {"aim": asdict(start.aim), "inner": start.state.inner}


def _start(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Start:
    kept = {name: tensors.get(f"{plain['index']}/{name}") for name in _KEPT}
    counts = {name: value for name, value in plain.items() if name not in ("aim", "inner")}
    return Start(state=State(**kept, inner=plain["inner"]), aim=Objective(**plain["aim"]), **counts)  # type: ignore[arg-type]
