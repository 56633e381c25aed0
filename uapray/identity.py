"""What of a search decides its result, and so is part of its key."""

import math
from functools import lru_cache
from typing import Any

from uapray.config import USUAL_XI_FROM, Search, Threat
from uapray.records import CanonicalJson, canonical_json
from uapray.rounds import least_rounds, leaves_out, screened_on


@lru_cache
def threat_identity(threat: Threat) -> CanonicalJson:
    """Return what of a threat decides a search's result."""
    usual = {"xi_from"} if threat.xi_from == USUAL_XI_FROM else None
    return canonical_json(threat.model_dump(mode="json", exclude=usual))


@lru_cache
def search_identity(
    search: Search, threat: Threat, class_names: tuple[str, ...], *, continues: bool = False
) -> CanonicalJson:
    """Return the settings that decide a search's result, the rule's own among them; a control has none."""
    if search.rule == "random":
        return canonical_json({"rule": search.rule})
    targeted = threat.target is not None
    leaves = leaves_out(search, len(class_names), targeted=targeted, continues=continues)
    described = search.model_dump(mode="json", exclude={"refine_epochs"} if leaves else {"refine_epochs", "leave_out"})
    limit = None if search.max_epochs == math.inf else search.max_epochs
    budget = {**described["budget"], "max_epochs": limit}
    loss, step_size = search.raised(targeted=targeted), search.first_step(threat.norm)
    kept = search.kept(len(class_names))
    resolved: dict[str, Any] = {"loss": loss, "step_size": step_size, "momentum": kept, "budget": budget}
    del described["least_rounds"], described["screen_images"], described["wiener_rounds"]
    if least := least_rounds(search, len(class_names), targeted=targeted, continues=continues):
        resolved["least_rounds"] = least
    screened = screened_on(search, len(class_names), targeted=targeted, continues=continues)
    if screened:
        resolved["screen_images"] = screened
    if search.filtered(threat.norm):
        resolved["wiener_rounds"] = search.filtered(threat.norm)
        resolved["wiener_bands"] = "by colour axis"  # other bits than of all channels together, as they once were
    if limit is not None:  # else a step that falls with the budget falls with image-gradients by the number of images
        resolved["step_decay"] = search.decay()
    return canonical_json({**described, **resolved})
