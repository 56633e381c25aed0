"""At how many GPUs one driver saturates: the real coordinator and the real dealing, with replicas that do nothing.

    python benchmarks/scale.py [--size 299] [--batch-ms 50] [--replicas 1 4 16 64 128 256] [--batches-a-round 1 16]

First it measures on a Ray of its own what `ray.put` of a perturbation, a request and the fetching of an answer cost
the driver: processor time and waiting. Then `uapray.trial.find` searches on the real `RayPool`, whose Ray is exchanged
for one in this process: replicas sleep for the time of a batch, and where they make rounds one after another for the
step of each as well, which was measured; puts and fetches cost what was measured, answers are pickled and read, added
and stepped on as ever. It prints for each number of replicas how busy they are with batches, and what a batch costs the
driver in processor time: of that follows at how many replicas a driver with a core of its own is full.
"""

import argparse
import heapq
import math
import os
import pickle
import statistics
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import uapray.on_ray.host as host_module
import uapray.on_ray.pool as pool_module
from uapray.api import search_settings
from uapray.arena import Arena
from uapray.ascent import Ascending, Ascent
from uapray.attack.partial import PartialUpdate
from uapray.attack.rules import Rule, State
from uapray.config import BLACK_BOX, SEQUENTIAL, STEP_SIZES, Threat
from uapray.data.images import ImageSet
from uapray.on_ray.pool import RayPool
from uapray.replica import ANSWER_S, Batch
from uapray.trial import find, rule_of

BATCH = 16
WARM_S = 4.0
Answer = tuple[str, tuple[int, ...]]  # which method was asked, about how many images or rounds


@dataclass(frozen=True)
class Cost:
    """What an operation costs the driver: processor time and waiting, seconds."""

    cpu_s: float
    wait_s: float

    def pay(self) -> None:
        """Compute and wait for so long."""
        until = time.thread_time() + self.cpu_s
        while time.thread_time() < until:
            pass
        if self.wait_s > 0:
            time.sleep(self.wait_s)

    def __str__(self) -> str:
        return f"{1e3 * self.cpu_s:.2f} ms of processor, {1e3 * self.wait_s:.2f} ms of waiting"


@dataclass(frozen=True)
class Costs:
    """What Ray costs the driver, and a step the replica.

    Attributes:
        put: Of a perturbation.
        submit: A request.
        fetch: Of an answer, besides reading it.
        put_state: Of where a search stands.
        fetch_state: Of where it came to, besides reading it.
        step_s: A step, seconds.
    """

    put: Cost
    submit: Cost
    fetch: Cost
    put_state: Cost
    fetch_state: Cost
    step_s: float


class SleepingRay:
    """Stands for the module `ray` inside the pool: the same calls, answered by replicas that sleep."""

    def __init__(self, costs: Costs, batch_s: float, transfer_s: float, answers: dict[str, Any]) -> None:
        self.costs, self.batch_s, self.transfer_s = costs, batch_s, transfer_s
        self.answers = {name: pickle.dumps(answer, protocol=5) for name, answer in answers.items()}
        self.busy_s = 0.0
        self.gradients = 0
        self.over = threading.Event()
        self._due: list[tuple[float, int, Future[Answer], Answer]] = []
        self._turn = threading.Condition()
        self._numbers = iter(range(2**62))
        threading.Thread(target=self._deliver, daemon=True).start()

    def remote(self, _kind: Any) -> "SleepingRay":
        """Take any class for one of sleeping replicas."""
        return self

    def options(self, **_settings: Any) -> Any:
        """Take all options."""
        return type("Actors", (), {"remote": lambda *_, **__: SleepingReplica(self)})

    def get_runtime_context(self) -> SimpleNamespace:
        """Say that the job brings nothing of its own."""
        return SimpleNamespace(runtime_env={})

    def put(self, value: Any) -> Any:
        """Pay for it."""
        (self.costs.put_state if isinstance(value, State) else self.costs.put).pay()
        return value

    def wait(self, refs: list[Future[Answer]], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        """Wait as Ray does."""
        ready = wait(refs, timeout, FIRST_COMPLETED).done if timeout else {ref for ref in refs if ref.done()}
        few = list(ready)[:num_returns]
        return few, [ref for ref in refs if ref not in few]

    def get(self, ref: Future[Answer], timeout: float | None = None) -> Any:
        """Pay for it, and read the answer."""
        if self.over.is_set():
            raise SystemExit
        method, counts = ref.result(timeout)
        if method == "ready":
            return None
        (self.costs.fetch_state if method == "ascend" else self.costs.fetch).pay()
        answer = pickle.loads(self.answers[method])
        if method == "ascend":
            return Ascent(answer, counts[0])
        return [answer[:images] if method == "logits" else answer for images in counts]

    def kill(self, _replica: Any) -> None:
        """Leave it asleep."""

    def later(self, at: float, method: str, counts: tuple[int, ...] = ()) -> Future[Answer]:
        """Return what is done at a time."""
        ref: Future[Answer] = Future()
        with self._turn:
            heapq.heappush(self._due, (at, next(self._numbers), ref, (method, counts)))
            self._turn.notify()
        return ref

    def _deliver(self) -> None:
        while True:
            with self._turn:
                while not self._due or self._due[0][0] > time.perf_counter():
                    self._turn.wait(max(0.0, self._due[0][0] - time.perf_counter()) if self._due else None)
                _, _, ref, answer = heapq.heappop(self._due)
            ref.set_result(answer)


class SleepingReplica:
    """One request after another, each a sleep."""

    def __init__(self, ray: SleepingRay) -> None:
        self._ray, self._free_at, self._lock = ray, 0.0, threading.Lock()
        self.ask = self.ask_each = self.__ray_ready__ = self

    def remote(self, method: str = "ready", *arguments: Any) -> Future[Answer]:
        """Send a request, for what it costs."""
        ray = self._ray
        if method == "ready":
            return ray.later(time.perf_counter(), method)
        ray.costs.submit.pay()
        if method == "ascend":
            return self._ascend(*arguments)
        batches = arguments[1]
        each = ray.batch_s if method == "gradient" else ray.batch_s / 3
        batches = batches[: max(1, math.ceil(ANSWER_S / each))]
        ray.gradients += len(batches) * (method == "gradient")
        return self._after(len(batches) * each, 0.0, method, tuple(len(batch.indices) for batch in batches))

    def _ascend(self, _state: State, images: Batch, _first: int, how: Ascending) -> Future[Answer]:
        ray, batches = self._ray, how.pace.batches_a_round
        each = batches * ray.batch_s + ray.costs.step_s
        rounds = min(len(images.indices) // how.pace.round_size, math.ceil(ANSWER_S / each))
        ray.gradients += rounds * batches
        return self._after(rounds * batches * ray.batch_s, rounds * ray.costs.step_s, "ascend", (rounds,))

    def _after(self, computing_s: float, stepping_s: float, method: str, counts: tuple[int, ...]) -> Future[Answer]:
        with self._lock:
            self._free_at = max(time.perf_counter(), self._free_at) + computing_s + stepping_s
            done = self._free_at
        self._ray.busy_s += computing_s
        return self._ray.later(done + self._ray.transfer_s, method, counts)


@dataclass(frozen=True)
class Row:
    """What one run came to.

    Attributes:
        busy: Share of the replicas' time.
        answers_per_s: Gradients of a batch a second.
        cpu_s: Processor time of the driver for each.
        core: Share of a core that the driver had.
    """

    busy: float
    answers_per_s: float
    cpu_s: float
    core: float


def run(costs: Costs, asked: argparse.Namespace, replicas: int, trials: int, batches_a_round: int) -> Row:
    """Let some trials search at the same time for some seconds; count what comes after the first one."""
    shape = (3, asked.size, asked.size)
    total = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    answers = {"gradient": PartialUpdate(total, BATCH), "logits": logits, "ascend": stepped(asked)}
    pixels = np.full((asked.images, asked.size, asked.size, 3), 100, np.uint8)
    images = ImageSet(
        name="none",
        split="train",
        images=pixels,
        labels=np.arange(asked.images) % 3,
        ids=tuple(map(str, range(asked.images))),
        groups=tuple(map(str, range(asked.images))),
        class_names=("a", "b", "c"),
    )
    ray = SleepingRay(costs, asked.batch_ms / 1e3, asked.transfer_ms / 1e3, answers)
    for module in (pool_module, host_module):
        vars(module)["ray"] = ray
    pool = RayPool(torch.nn.Identity(), {"train": pixels[:1]}, replicas=replicas, may_grow=True)
    size = BATCH * batches_a_round
    settings = {"batch_size": BATCH, "round_size": size, "max_epochs": 1000, "starts": 1}
    search = search_settings(asked.rule, settings)
    arena = Arena(pool, {"train": images})
    arena.clean("train")
    arena.mean_norm("train", asked.norm)

    def trial(seed: int) -> None:
        find(arena, Threat(norm=asked.norm, zeta=0.04), search, seed=seed)

    threads = [threading.Thread(target=trial, args=(seed,), daemon=True) for seed in range(trials)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_S)
    begun, cpu, busy, gradients = time.perf_counter(), time.process_time(), ray.busy_s, ray.gradients
    time.sleep(asked.seconds)
    taken, cpu = time.perf_counter() - begun, time.process_time() - cpu
    made, busy = ray.gradients - gradients, ray.busy_s - busy
    ray.over.set()
    for thread in threads:
        thread.join(1)
    return Row(min(1.0, busy / taken / replicas), made / taken, cpu / max(1, made), cpu / taken)


def stepped(asked: argparse.Namespace) -> State:
    """Return where a search stands after three rounds."""
    rule, state, update = _rule(asked)
    for number in range(3):
        state = rule.step(state, update, number / 40)
    return state


def _rule(asked: argparse.Namespace) -> tuple[Rule, State, PartialUpdate]:
    """Return the rule with a first state and a round's gradients."""
    shape = (3, asked.size, asked.size)
    xi = 0.05 if asked.norm == "linf" else 10.0
    rule, _ = rule_of(search_settings(asked.rule, {}), Threat(norm=asked.norm, zeta=0.04), xi, asked.images, 3)
    total = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return rule, rule.start(torch.zeros(shape)), PartialUpdate(total, BATCH)


def measure(asked: argparse.Namespace) -> Costs:
    """Measure what Ray costs the driver, beside replicas that answer at once, and what a step costs."""
    import ray

    from uapray.on_ray.session import session

    v = np.random.default_rng(0).random((3, asked.size, asked.size), np.float32)
    rule, _, update = _rule(asked)
    after = stepped(asked)
    step_s = statistics.median(_timed(lambda: rule.step(after, update, 0.1))[0] for _ in range(30))

    class Answers:
        def ask(self, method: str, _v: Any) -> Any:
            return [update] if method == "gradient" else Ascent(after, 1)

    costs: list[Cost] = []
    with session("local", cpus=4):
        actors = [ray.remote(Answers).options(num_cpus=0).remote() for _ in range(2)]
        ray.get([actor.ask.remote("gradient", None) for actor in actors])
        for method, value, answer in (("gradient", v, [update]), ("ascend", after, Ascent(after, 1))):
            puts, submits, fetches = [], [], []
            for turn in range(60):
                puts.append(_timed(lambda value=value: ray.put(value)))
                sent, asks = ray.put(value), actors[turn % 2].ask
                kept: list[Any] = []
                submits.append(
                    _timed(
                        lambda asks=asks, kept=kept, sent=sent, method=method: kept.append(asks.remote(method, sent))
                    )
                )
                ray.wait(kept, num_returns=1)
                time.sleep(0.01)
                fetches.append(_timed(lambda kept=kept: (ray.wait(kept, num_returns=1, timeout=1), ray.get(kept[0]))))
            body = pickle.dumps(answer, protocol=5)
            read = statistics.median(_timed(lambda body=body: pickle.loads(body))[0] for _ in range(20))
            fetch = _median(fetches)
            costs += [_median(puts), _median(submits), Cost(max(0.0, fetch.cpu_s - read), fetch.wait_s)]
    put, submit, fetched, put_state, _, fetched_state = costs
    return Costs(put, submit, fetched, put_state, fetched_state, step_s)


def _timed(do: Any) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.thread_time()
    do()
    cpu = time.thread_time() - cpu
    return cpu, max(0.0, time.perf_counter() - wall - cpu)


def _median(each: list[tuple[float, float]]) -> Cost:
    return Cost(*(statistics.median(part) for part in zip(*each[10:], strict=True)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--images", type=int, default=5000, help="of the data set")
    parser.add_argument("--rule", default="spgd", choices=sorted(STEP_SIZES.keys() - SEQUENTIAL - BLACK_BOX))
    parser.add_argument("--norm", default="linf", choices=("linf", "l2"))
    parser.add_argument("--batch-ms", type=float, default=50.0, help="what a replica takes for a batch")
    parser.add_argument("--transfer-ms", type=float, default=2.0, help="what an answer is on its way")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 16, 64, 128, 256])
    parser.add_argument("--batches-a-round", type=int, nargs="+", default=[1, 16])
    parser.add_argument(
        "--trials-each", type=float, default=2.0, help="trials in flight for each replica, as grids have"
    )
    parser.add_argument("--drivers", type=int, default=1, help="drivers that share the replicas; one of them is run")
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    costs = measure(asked)
    print(f"put of a perturbation   {costs.put}")
    print(f"request                 {costs.submit}")
    print(f"fetching of an answer   {costs.fetch}, besides reading it")
    print(f"put of a search's state {costs.put_state}")
    print(f"fetching of it          {costs.fetch_state}, besides reading it")
    print(f"step in the replica     {1e3 * costs.step_s:.2f} ms of processor")
    print(f"load of the machine     {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    batch_s = asked.batch_ms / 1e3
    for batches in asked.batches_a_round:
        print(f"\n{batches} batches a round, {asked.drivers} drivers; of one driver:")
        print("replicas  trials  busy   batches/s  driver's processor  its share of a core  full at")
        for total in asked.replicas:
            replicas = max(1, total // asked.drivers)
            trials = max(1, math.ceil(asked.trials_each * replicas))
            row = run(costs, asked, replicas, trials, batches)
            print(
                f"{replicas:8}  {trials:6}  {row.busy:4.0%}  {row.answers_per_s:9.0f}  {1e3 * row.cpu_s:10.2f} ms/batch"
                f"  {row.core:19.0%}  {batch_s / row.cpu_s:4.0f} replicas",
                flush=True,
            )
    os._exit(0)  # sleeping threads hold nothing


if __name__ == "__main__":
    main()
