"""A Ray of the tests' own: it never joins a cluster that runs on the machine."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield
        ray.shutdown()
