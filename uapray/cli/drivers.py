"""A grid run by several drivers side by side: processes that each have a part of it, on the cluster that they share."""

import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from uapray.errors import ConfigError, RunError, StoppedError
from uapray.experiment import Summary
from uapray.group import STOPPED
from uapray.plan import Plan
from uapray.store.results import Results

_ENDS_WITH_THIS = ("setpriv", "--pdeathsig", "TERM")  # of util-linux: asked to stop when this process dies


def check_drivers(*, part: str | None, replicas: int | None, joined: bool) -> None:
    """Refuse what several drivers cannot be told, or cannot share.

    Args:
        part: Part of the grid that was asked for.
        replicas: Of a classifier, for each driver.
        joined: Whether there is a cluster that they can join.

    Raises:
        ConfigError: If that is so.
    """
    if part is not None:
        raise ConfigError(f"--drivers: each has a part of the grid; expected no --part beside it, got {part}")
    if replicas is None:
        raise ConfigError("--drivers: expected --replicas too: how many each of them has of a classifier, e.g. 4")
    if not joined:
        raise ConfigError("--drivers: expected a cluster that they share: `ray start --head`, then --address auto")


def as_words(options: Mapping[str, object]) -> list[str]:
    """Return options as a command line has them; one that is None or False stays away, one of a list is repeated."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            for one in value if isinstance(value, list) else [value]:
                words += [flag, str(one)]
    return words


def run_drivers(plan: Plan, results: Results, drivers: int, command: Sequence[str]) -> Summary:
    """Run what is missing of a plan, a part in each of some processes; SIGINT and SIGTERM are passed on to them.

    Args:
        plan: All of the grid.
        results: Where they write.
        drivers: How many; no more are started than there are trials.
        command: What runs one of them, but for its ``--part``.

    Raises:
        StoppedError: If they were asked to stop.
        RunError: If one died; the others finish their parts first.
    """
    standing, of = plan.count - plan.to_do(results.judgements()), min(drivers, len(plan.trials))
    if standing == plan.count:
        return Summary(0, standing, 0)
    running: dict[str, subprocess.Popen[bytes]] = {}
    with _passing_on(running) as passed_on:
        for number in range(1, of + 1):
            if passed_on:
                break
            part = f"{number}/{of}"
            running[part] = _started([*command, "--part", part])
        codes = {part: one.wait() for part, one in running.items()}
    left = plan.to_do(results.judgements())
    if left and (passed_on or StoppedError.exit_code in codes.values()):
        raise StoppedError(STOPPED)
    died = ", ".join(f"{part} ({_how(code)})" for part, code in codes.items() if code not in (0, 1))
    if left and died:
        raise RunError(f"drivers died: {died}; what is finished stays, and the same command does the rest")
    return Summary(plan.count - standing - left, standing, left)


def _started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    words = [*(_ENDS_WITH_THIS if shutil.which(_ENDS_WITH_THIS[0]) else ()), *command]
    # in a session of its own, so that a signal to the group of this process reaches it once, through this process
    return subprocess.Popen(  # noqa: S603  (this program)
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )


@contextmanager
def _passing_on(running: Mapping[str, subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Send SIGINT and SIGTERM to all that run, inside the block; yield what was sent."""
    passed_on: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        passed_on.append(number)
        for one in running.values():
            one.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield passed_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _how(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name
