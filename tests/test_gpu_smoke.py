"""jobs/gpu_smoke.py runs where there is no GPU, as far as that goes, and tells what fails."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "jobs" / "gpu_smoke.py"
SMALL = ("--device", "cpu", "--size", "32")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)


def test_checks_are_printed_as_ok() -> None:
    ended = run(*SMALL, "--architectures", "tiny-cnn", "--only", "precisions agree", "judged in fp32", "repeated")
    assert ended.returncode == 0, ended.stderr
    states = [line.split()[0] for line in ended.stdout.splitlines()]
    assert states == ["ok", "ok", "ok", "all"]


def test_a_check_that_fails_is_said_and_the_others_run() -> None:
    ended = run(*SMALL, "--architectures", "tiny-cnn", "no-such-net", "--only", "judged in fp32", "repeated")
    assert ended.returncode == 1
    first, second, last = ended.stdout.splitlines()
    assert first.startswith("ok      judged in fp32")
    assert second.startswith("FAILED  repeated")
    assert "no-such-net" in second
    assert last == "1 checks failed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_line() -> None:
    ended = run()
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "gpu_smoke: expected a GPU that torch sees, got none; --device cpu tries the script\n"


def test_an_unknown_check_is_refused() -> None:
    ended = run(*SMALL, "--only", "everything")
    assert ended.returncode == 2
    assert "no check is called 'everything'" in ended.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_all_checks_that_a_cpu_can_do() -> None:
    ended = run(*SMALL, "--architectures", "tiny-cnn")
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.endswith("all is well\n")
