"""Step keys: equal descriptions have equal keys, whoever asks and whenever."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

KEY_LENGTH = 20
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode  # `dumps` makes one each time
_encode_text = lru_cache(_encode)


class CanonicalJson(str):
    """Canonical JSON text of a value that many descriptions share, made once."""

    __slots__ = ()


def canonical_json(value: Any) -> CanonicalJson:
    """Return the canonical JSON text of a value: no blanks, entries in the order of their names."""
    return CanonicalJson(_encode(value))


def key_of(kind: str, description: Mapping[str, Any]) -> str:
    """Return the key of a step: the hash of its canonical description.

    Args:
        kind: What the step does, e.g. ``"train"``; two kinds never share a key.
        description: JSON values only, or their ``canonical`` text; the order of the entries does not matter.

    Returns:
        Twenty hexadecimal digits of the SHA-256 of the canonical JSON text.
    """
    entries = (f"{_encode_text(name)}:{_text(value)}" for name, value in sorted(description.items()))
    text = f"[{_encode_text(kind)},{{{','.join(entries)}}}]"
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _text(value: Any) -> str:
    if isinstance(value, CanonicalJson):
        return value
    return _encode_text(value) if isinstance(value, str) else _encode(value)
