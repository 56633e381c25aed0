"""Where the replicas of a node come from: one process that has imported what they need, and is forked for each.

Imports are most of what a small replica takes: 280 MB that nobody else can use, and seconds of a core. Pages that the
nursery has written before it forks are shared by all that come from it. Ray starts a worker by a command. The first one
of a raylet becomes the nursery; the others hand over what they were given, and wait for the worker's end.
Knows neither Ray nor torch until it serves: a command must be quick.
"""

import contextlib
import gc
import hashlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import NoReturn

# None of them may call CUDA, which cannot be forked, or import Ray, which then reads which job it works for.
PRELOADED = ("uapray.replica", "uapray.models.graph", "uapray.models.tuning", "kornia.metrics")
_PASSING = ("RAY_", "SHLVL", "_")  # how variables begin that differ from worker to worker and decide nothing here
_OWN_PYTHON = frozenset({"py_executable", "pip", "uv", "conda", "container", "image_uri"})
_IDLE_S = 60.0  # without a worker, after which the next one begins another nursery
_HELD_S = 0.05  # until another command that becomes the nursery listens
# Ray's own workers are started by the node's interpreter, whose path only the node knows: the driver's, where that is
# there too, or what the path of programs has. Without uapray there is no nursery, and the worker begins as Ray's do.
_CHOOSE = """for python in "$0" python python3; do
"$python" -c 'import uapray.on_ray.nursery' 2>/dev/null && exec "$python" -m uapray.on_ray.nursery "$@"
done; exec "$(command -v "$0" python3 python | head -n 1)" "$@\""""


def command(job: Collection[str]) -> dict[str, str]:
    """Return what a runtime environment says, so that an actor comes from the nursery of its node.

    Nothing where there is none: beside Linux, where ``UAPRAY_NURSERY`` is ``off``, and where the job's environment
    brings a Python of its own.

    Args:
        job: What the runtime environment of the job names.
    """
    if sys.platform != "linux" or os.environ.get("UAPRAY_NURSERY") == "off" or not _OWN_PYTHON.isdisjoint(job):
        return {}
    return {"py_executable": f"bash -c {shlex.quote(_CHOOSE)} {shlex.quote(sys.executable)}"}


def main() -> None:
    """Begin the worker of this command's arguments: by telling the nursery and waiting, or as the nursery."""
    while True:
        with socket.socket(socket.AF_UNIX) as nursery, contextlib.suppress(ConnectionError):
            nursery.connect(_address())
            _tell(nursery)
            return
        with socket.socket(socket.AF_UNIX) as door:
            try:
                door.bind(_address())
            except OSError:  # another command was quicker
                time.sleep(_HELD_S)
            else:
                _serve(door)
                return


def _address() -> str:
    """Return the name of the nursery that a worker comes from: one a raylet and environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PASSING)}
    asked = [os.getppid(), os.getcwd(), sys.executable, sorted(kept.items())]
    return f"\0uapray-nursery-{os.getuid()}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}"


def _tell(nursery: socket.socket) -> None:
    """Have a worker begun, and wait for its end."""
    if not _of_same_user(nursery):  # somebody else sits there and is told nothing
        _work(sys.argv[1:])
        return
    told = json.dumps([sys.argv[1:], dict(os.environ)]).encode()
    socket.send_fds(nursery, [struct.pack("!I", len(told))], [0, 1, 2])
    nursery.sendall(told)
    if not nursery.recv(1):
        raise ConnectionError("the nursery ended before the worker began")
    with contextlib.suppress(ConnectionError):
        nursery.recv(1)  # nothing more comes, until the worker ends


def _serve(door: socket.socket) -> None:
    """Fork a worker for this command and for each that comes, until the raylet ends or none is left for a while."""
    raylet = os.pidfd_open(os.getppid())
    door.listen(1024)
    begun: set[int] = set()
    ended: set[int] = set()

    def bury(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (child := os.waitpid(-1, os.WNOHANG)[0]) > 0:
                ended.add(child)

    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()  # a collection would write to pages that are shared
    signal.signal(signal.SIGCHLD, bury)

    def fork(
        command: socket.socket | None, streams: Sequence[int], arguments: list[str], given: dict[str, str]
    ) -> None:
        if (child := os.fork()) == 0:
            door.close()
            _become(command, streams, arguments, given)
        begun.add(child)

    fork(None, (), sys.argv[1:], dict(os.environ))
    while raylet not in (ready := select.select([door.fileno(), raylet], [], [], _IDLE_S)[0]):
        if not ready:
            if begun <= ended:
                return
            continue
        command, _ = door.accept()
        with command, contextlib.ExitStack() as received:
            if not _of_same_user(command):
                continue
            head, streams, _, _ = socket.recv_fds(command, 4, 3)
            for stream in streams:
                received.callback(os.close, stream)
            with contextlib.suppress(ValueError, struct.error):  # a command that was killed meanwhile
                told = command.makefile("rb").read(struct.unpack("!I", head)[0])
                fork(command, streams, *json.loads(told))


def _become(
    command: socket.socket | None, streams: Sequence[int], arguments: list[str], environment: dict[str, str]
) -> NoReturn:
    """Be the worker that a command asked for; its open connection tells it when this process ends."""
    code = 1
    try:
        if command is not None:
            command.sendall(b"+")
        os.setsid()  # Ray ends a worker with all of its group
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(environment)
        _work(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _work(arguments: list[str]) -> None:
    """Run Ray's program for workers, which ends with the worker."""
    sys.argv, sys.path[0] = arguments, os.path.dirname(arguments[0])
    runpy.run_path(arguments[0], run_name="__main__")


def _of_same_user(peer: socket.socket) -> bool:
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.getuid())


if __name__ == "__main__":
    main()
