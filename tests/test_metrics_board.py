"""The Grafana board: it draws what the code exports through Ray, and all of it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BOARD = Path(__file__).parent.parent / "cluster/grafana.json"

# A Ray of its own, in a process of its own; prints what Prometheus would read of it.
SCRAPE = """
import time, urllib.request, ray
from s3_server import free_ports
from uapray.on_ray.metrics import NAMES, Metrics
(port,) = free_ports(1)
quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
ray.init(address="local", num_cpus=1, _metrics_export_port=port, **quiet)
Metrics("chest").show(dict.fromkeys(NAMES, 1.0))
end, text = time.monotonic() + 60, ""
while time.monotonic() < end and not all(name in text for name in NAMES):
    time.sleep(1)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        pass
print(text)
ray.shutdown()
"""


def board() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(BOARD.read_text())
    return read


def drawn() -> set[str]:
    """Return the metrics that the board's queries name."""
    expressions = [target["expr"] for panel in board()["panels"] for target in panel["targets"]]
    expressions += [variable["query"] for variable in board()["templating"]["list"]]
    return {name for one in expressions for name in re.findall(r"\bray_\w+", one)}


def test_it_draws_what_the_code_exports_and_all_of_it() -> None:
    metrics = pytest.importorskip("uapray.on_ray.metrics")
    assert {name.removeprefix("ray_").removesuffix("_total") for name in drawn()} == set(metrics.NAMES)


@pytest.mark.ray
def test_prometheus_reads_the_names_that_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray adds a prefix to a name, and to a counter's an ending."""
    pytest.importorskip("uapray.on_ray.metrics")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    scraped = subprocess.run([sys.executable, "-c", SCRAPE], capture_output=True, text=True, timeout=200)
    assert scraped.returncode == 0, scraped.stderr
    assert drawn() == set(re.findall(r"^(ray_uapray_\w+)\{.*grid=\"chest\"", scraped.stdout, re.MULTILINE))


def test_grafana_can_lay_it_out() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert 'grid=~"$grid"' in target["expr"]
