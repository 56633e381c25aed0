"""What all tests share: one thread, the settings of hypothesis, and the place of the real images."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("uapray", deadline=None, max_examples=25, print_blob=True)
settings.load_profile("uapray")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of the real images, or skip the test."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("UAPRAY_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real images in {folder}; set UAPRAY_TEST_DATA to the folder that holds them")
    return folder
