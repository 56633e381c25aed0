"""Step keys: equal descriptions have equal keys, whoever asks and whenever."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY_LENGTH = 20


class CanonicalJson(str):
    """CanonicalJson JSON text of a value that many descriptions share, made once."""

    __slots__ = ()


def canonical_json(value: Any) -> CanonicalJson:
    """Return the canonical JSON text of a value: no blanks, entries in the order of their names."""
    return CanonicalJson(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False))


def key_of(kind: str, description: Mapping[str, Any]) -> str:
    """Return the key of a step: the hash of its canonical description.

    Args:
        kind: What the step does, e.g. ``"train"``; two kinds never share a key.
        description: JSON values only, or their ``canonical`` text; the order of the entries does not matter.

    Returns:
        Twenty hexadecimal digits of the SHA-256 of the canonical JSON text.
    """
    entries = (
        f"{json.dumps(name)}:{value if isinstance(value, CanonicalJson) else canonical_json(value)}"
        for name, value in sorted(description.items())
    )
    text = f"[{json.dumps(kind)},{{{','.join(entries)}}}]"
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
