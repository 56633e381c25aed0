"""Through a network that cuts, delays, refuses and truncates, every row comes once and whole."""

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from fault_proxy import FAULTS, Choice, Fault, Request, Traffic, fault_proxy, first_attempts
from s3_server import S3Server
from test_compaction import content, fill, rows_files
from test_half_steps import blank

from uapray.errors import StoreError
from uapray.objects import S3Objects, keeps_first, read_all
from uapray.objects.s3 import PART_BYTES
from uapray.query import query
from uapray.store.compaction import compact
from uapray.store.results import open_results

pytestmark = pytest.mark.s3
WORDS: tuple[Fault, ...] = ("cut request", "cut answer", "slow down", "internal error", "delay")


@dataclass
class Outage:
    """Cut whatever comes, from the first request on, until this long has passed and this many have been cut."""

    seconds: float
    requests: int
    began: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, _: Request) -> Fault:
        with self.lock:
            self.began = self.began or time.monotonic()
            self.requests -= 1
            return "cut request" if self.requests >= 0 or time.monotonic() < self.began + self.seconds else "none"


@contextmanager
def through(server: S3Server, choose: Choice) -> Iterator[Traffic]:
    """Lead boto3 through a proxy."""
    with fault_proxy(server.endpoint, choose) as traffic, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", traffic.endpoint)
        yield traffic


@pytest.fixture
def bucket(on_seaweedfs: S3Server) -> str:
    on_seaweedfs.make_bucket(name := f"uapray-{uuid.uuid4().hex[:12]}")
    return name


@pytest.mark.parametrize("fault", [*FAULTS, "corrupt"])
def test_every_act_outlives_a_fault(on_seaweedfs: S3Server, bucket: str, fault: Fault) -> None:
    objects = S3Objects(bucket, "below")
    with through(on_seaweedfs, first_attempts([fault])) as traffic:
        assert objects.write_once("a", b"first")
        assert not objects.write_once("a", b"second")
        objects.write("b", b"0123456789")
        assert objects.read("a") == b"first"
        assert objects.read_end("b", 3) == b"789" or fault == "corrupt", "an end carries no checksum of its own"
        if fault != "corrupt":  # a listing carries none
            assert objects.keys() == ["a", "b"]
        assert objects.exists("a")
        assert not objects.exists("c")
        objects.delete("b")
    assert traffic.seen[fault] >= 5
    assert objects.keys() == ["a"]
    assert objects.read("a") == b"first"


def test_no_answer_is_asked_again(on_seaweedfs: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uapray.objects.s3.READ_TIMEOUT_S", 1)
    objects = S3Objects(bucket)
    with through(on_seaweedfs, first_attempts(["no answer"])) as traffic:
        assert objects.write_once("a", b"first"), "the one in the way is our own"
        assert objects.read("a") == b"first"
    assert traffic.seen["no answer"] == 2


@pytest.mark.parametrize("faults", [("cut answer", "slow down", "internal error"), ("cut request", "truncate")])
def test_a_large_object_in_parts(on_seaweedfs: S3Server, bucket: str, faults: tuple[Fault, ...]) -> None:
    objects, body = S3Objects(bucket), bytes(range(256)) * (5 * PART_BYTES // 512)
    with through(on_seaweedfs, first_attempts(faults)) as traffic:
        objects.write("large", body)
    assert sum("uploadId" in path and method == "PUT" for method, path in traffic.asked) == 3
    with through(on_seaweedfs, first_attempts(["truncate"])):
        assert objects.read("large") == body
    assert objects.keys() == ["large"]


def test_an_outage_of_seconds_is_outlived_by_many_at_once(on_seaweedfs: S3Server, bucket: str) -> None:
    objects, names = S3Objects(bucket), [f"{number:02}" for number in range(24)]
    for name in names:
        objects.write(name, name.encode())
    outage = Outage(seconds=3, requests=2 * len(names))
    with through(on_seaweedfs, outage) as traffic:
        assert read_all(objects, names) == [name.encode() for name in names]
    assert traffic.seen["cut request"] >= 2 * len(names)


def test_a_server_that_stays_broken_is_one_clear_error(on_seaweedfs: S3Server, bucket: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_MAX_ATTEMPTS", "2")
        with through(on_seaweedfs, lambda _: "slow down") as traffic:
            with pytest.raises(StoreError, match="SlowDown") as caught:
                S3Objects(bucket).write("a", b"1")
            assert len(str(caught.value).splitlines()) <= 2
    assert traffic.seen == {"slow down": 2}
    assert S3Objects(bucket).keys() == []


def test_a_lasting_fault_leaves_no_half(on_seaweedfs: S3Server, bucket: str) -> None:
    objects = S3Objects(bucket)
    objects.write("a", b"old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_MAX_ATTEMPTS", "2")
        second = through(on_seaweedfs, lambda one: "cut request" if "partNumber=2" in one.path else "none")
        with second, pytest.raises(StoreError):
            objects.write("a", bytes(3 * PART_BYTES))
        with through(on_seaweedfs, lambda _: "truncate"), pytest.raises(StoreError):
            objects.read("a")
    assert objects.read("a") == b"old"


def test_rows_written_read_and_folded_come_once(on_seaweedfs: S3Server, bucket: str) -> None:
    results = open_results(f"s3://{bucket}/store")
    with through(on_seaweedfs, first_attempts()) as traffic:
        fill(results, 4)
        before = content(results)
        list(compact(results.objects))
        assert content(results) == before
        assert query(results, "SELECT count(*) AS n FROM flows").to_pylist() == [{"n": 8}]
    assert set(FAULTS) <= set(traffic.seen)
    assert content(results) == before
    assert all(set(rows.values()) == {1} for rows in before.values())
    assert len(rows_files(results.objects)) == 8


def test_two_drivers_through_faults_give_each_row_once(on_seaweedfs: S3Server, bucket: str) -> None:
    results, steps = open_results(f"s3://{bucket}/store"), [f"{number}-test" for number in range(4)]

    def drive(driver: int) -> list[str]:
        won = []
        for key in steps:
            results.write_rows("images", "g", key, [blank("images", id=f"{image}") for image in range(3)])
            if results.write_rows("trials", "g", key, [blank("trials", trial_id=key, wall_s=float(driver))]):
                won.append(key)
        return won

    with through(on_seaweedfs, first_attempts(WORDS)), ThreadPoolExecutor(2) as threads:
        won = list(threads.map(drive, (0, 1)))
    assert sorted(won[0] + won[1]) == steps, "whoever was told that its row stands is right"
    rows = results.rows("trials").to_pylist()
    assert {row["trial_id"]: int(row["wall_s"]) for row in rows} == {
        key: driver for driver in (0, 1) for key in won[driver]
    }
    assert results.rows("images").num_rows == 3 * len(steps)


def test_a_conflict_is_asked_again(on_seaweedfs: S3Server, bucket: str) -> None:
    with through(on_seaweedfs, first_attempts(["conflict"], attempts=2)) as traffic:
        assert S3Objects(bucket).write_once("a", b"1")
    assert traffic.seen["conflict"] == 2


def test_what_is_deleted_while_it_is_compared_is_written(on_seaweedfs: S3Server, bucket: str) -> None:
    objects = S3Objects(bucket)
    objects.write("a", b"first")

    def delete_before_it_is_read(request: Request) -> Fault:
        if request.method == "GET" and request.attempt == 0:
            objects.delete("a")
        return "none"

    with through(on_seaweedfs, delete_before_it_is_read) as traffic:
        assert objects.write_once("a", b"second")
    assert [traffic.asked[method, f"/{bucket}/a"] for method in ("PUT", "GET", "DELETE")] == [2, 1, 1]
    assert objects.read("a") == b"second"


@pytest.mark.parametrize("fault", ["conditions refused", "conditions ignored"])
def test_servers_without_conditions_keep_the_last(on_moto: S3Server, fault: Fault) -> None:
    on_moto.make_bucket(bucket := f"uapray-{uuid.uuid4().hex[:12]}")
    objects = S3Objects(bucket)
    assert keeps_first(objects)
    with through(on_moto, lambda _: fault):  # moto looks at no signature, of which the condition is a part
        assert not keeps_first(objects)
        assert objects.write_once("a", b"first")
        assert objects.write_once("a", b"second")
        assert objects.read("a") == b"second"
    assert objects.keys() == ["a"]


@pytest.mark.parametrize("when", ["when_supported", "when_required"])
def test_checksums_go_along_unless_an_old_server_is_not_to_have_them(
    on_seaweedfs: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.setenv(name, when)
    asked: list[Request] = []

    def note(request: Request) -> Fault:
        asked.append(request)
        return "none"

    objects, large = S3Objects(bucket), bytes(PART_BYTES + 1)
    with through(on_seaweedfs, note):
        objects.check()
        objects.write("small", b"1")
        assert objects.write_once("once", b"1")
        objects.write("large", large)
        assert objects.read("large") == large
    with_checksum = [any("checksum" in name or name == "x-amz-trailer" for name in one.headers) for one in asked]
    puts = [has for one, has in zip(asked, with_checksum, strict=True) if one.method == "PUT"]
    assert len(puts) == 5
    assert set(puts) == {when == "when_supported"}
    gets = [
        has
        for one, has in zip(asked, with_checksum, strict=True)
        if one.method == "GET" and "list-type" not in one.path
    ]
    assert set(gets) == {when == "when_supported"}
