"""Step keys: equal descriptions have equal keys, whoever asks and whenever."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY_LENGTH = 20


def key_of(kind: str, description: Mapping[str, Any]) -> str:
    """Return the key of a step: the hash of its canonical description.

    Args:
        kind: What the step does, e.g. ``"train"``; two kinds never share a key.
        description: JSON values only; the order of the entries does not matter.

    Returns:
        Twenty hexadecimal digits of the SHA-256 of the canonical JSON text.
    """
    text = json.dumps([kind, dict(description)], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
