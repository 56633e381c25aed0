import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uapray.records import canonical_json, key_of

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
descriptions = st.dictionaries(st.text(min_size=1, max_size=5).filter(lambda name: name != "kind"), values, max_size=5)


def reversed_everywhere(value: Any) -> Any:
    """Return the same value with the entries of every mapping in the other order."""
    if isinstance(value, dict):
        return {name: reversed_everywhere(inner) for name, inner in reversed(value.items())}
    return [reversed_everywhere(inner) for inner in value] if isinstance(value, list) else value


@given(descriptions)
def test_the_order_of_entries_does_not_matter(description: dict[str, Any]) -> None:
    assert key_of("trial", reversed_everywhere(description)) == key_of("trial", description)


@given(descriptions, values)
def test_parts_may_be_canonical_already(description: dict[str, Any], part: Any) -> None:
    whole = key_of("trial", {**description, "part": part})
    assert key_of("trial", {**description, "part": canonical_json(part)}) == whole
    text = json.dumps(["trial", {**description, "part": part}], sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest().startswith(whole)


@given(descriptions)
def test_a_key_is_twenty_hexadecimal_digits_and_differs_by_kind(description: dict[str, Any]) -> None:
    key = key_of("trial", description)
    assert len(key) == 20
    assert set(key) <= set("0123456789abcdef")
    assert key_of("train", description) != key


@given(descriptions, st.text(min_size=6, max_size=8), values, values)
def test_another_value_is_another_key(description: dict[str, Any], name: str, one: Any, other: Any) -> None:
    assert key_of("trial", description) != key_of("trial", {**description, name: one})
    if repr(one) != repr(other):
        assert key_of("trial", {name: one}) != key_of("trial", {name: other})


@given(st.floats(1e-6, 1))
def test_a_float_counts_to_its_last_bit(value: float) -> None:
    assert key_of("trial", {"zeta": value}) == key_of("trial", {"zeta": float(repr(value))})
    assert key_of("trial", {"zeta": value}) != key_of("trial", {"zeta": math.nextafter(value, 2)})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        key_of("trial", {"zeta": value})


def test_keys_of_this_version() -> None:
    assert key_of("trial", {"zeta": 0.04, "norm": "linf", "target": None}) == "6400d0984c7e79fe0695"
    assert key_of("data", {"size": [64, 64], "name": "Röntgen"}) == "8b8c404b4a16bec7cc8d"


def test_a_description_cannot_pass_for_another_kind() -> None:
    assert key_of("train", {"kind": "trial"}) != key_of("trial", {})
