"""A run of a plan: what it is of, where it goes, who watches, and whether it is to stop."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from uapray.coordinator import Snapshot
from uapray.judgement import Judgement
from uapray.models.card import Classifier
from uapray.models.training import EpochReport
from uapray.plan import Plan
from uapray.resources import Resources
from uapray.steps import TrialStep
from uapray.store.results import Results
from uapray.victims import Victim


@dataclass(frozen=True, slots=True)
class Watcher:
    """What a run tells while it goes on; each is called from any thread, one at a time."""

    to_train: Callable[[Victim], None] = lambda _victim: None
    training: Callable[[Victim, EpochReport], None] = lambda _victim, _report: None
    hardening: Callable[[Victim, float], None] = lambda _victim, _share_of_searches: None
    trained: Callable[[Victim, Classifier], None] = lambda _victim, _classifier: None
    searching: Callable[[TrialStep, Snapshot], None] = lambda _step, _snapshot: None
    judging: Callable[[TrialStep, float], None] = lambda _step, _share_of_controls: None
    judged: Callable[[TrialStep, Judgement], None] = lambda _step, _judgement: None
    done: Callable[[TrialStep], None] = lambda _step: None
    failed: Callable[[str, str], None] = lambda _step, _message: None
    spent: Callable[[int, int], None] = lambda _image_gradients, _image_queries: None
    unkept: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a plan into a store.

    Attributes:
        plan: What is to stand in the end.
        results: Where.
        resources: On what.
        watcher: Who is told.
        stop: Set when the run is to stop.
        save_every_s: Seconds between two times that a search under way is kept in the store.
    """

    plan: Plan
    results: Results
    resources: Resources
    watcher: Watcher = Watcher()
    stop: threading.Event = field(default_factory=threading.Event)
    save_every_s: float = 120.0
