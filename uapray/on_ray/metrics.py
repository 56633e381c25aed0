"""What a run exports to Prometheus through Ray; ``cluster/grafana.json`` draws it."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

COUNTERS: Mapping[str, str] = {
    "uapray_image_gradients": "Gradients of one image, of searches",
    "uapray_image_queries": "Forward passes of one image without gradient, of searches",
    "uapray_trials_done": "Trials that stand in the store since the run began",
    "uapray_trials_failed": "Trials that failed for good",
    "uapray_retries": "Requests dealt to another replica because theirs was lost",
    "uapray_replicas_lost": "Replicas that died or hung",
    "uapray_store_errors": "Times that a search could not be kept in the store",
}
GAUGES: Mapping[str, str] = {
    "uapray_replicas": "Replicas asked for",
    "uapray_replicas_busy_share": "Share of the replicas that had work, in [0, 1]",
    "uapray_trials_under_way": "Trials under way",
    "uapray_trials_to_do": "Trials neither finished nor failed, those under way included",
}
NAMES = (*COUNTERS, *GAUGES)
_TAG = "grid"  # no trial ids: each value of a tag is a series that Prometheus keeps for ever


class Metrics:
    """The metrics of one grid; a name and its tag mean the same in every driver."""

    def __init__(self, grid: str) -> None:
        self._tags = {_TAG: grid}
        self._counters = {name: Counter(name, said, (_TAG,)) for name, said in COUNTERS.items()}
        self._gauges = {name: Gauge(name, said, (_TAG,)) for name, said in GAUGES.items()}
        self._before = dict.fromkeys(COUNTERS, 0.0)

    def show(self, totals: Mapping[str, float]) -> None:
        """Export what there is now.

        Args:
            totals: By name; of a counter all since the run began.
        """
        for name, counter in self._counters.items():
            if (more := totals[name] - self._before[name]) > 0:
                counter.inc(more, self._tags)
                self._before[name] = totals[name]
        for name, gauge in self._gauges.items():
            gauge.set(totals[name], self._tags)
