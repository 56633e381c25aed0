"""Places that cannot be: one clear error each, nothing written, no secret told."""

import http.server
import os
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3_server import S3Server, free_ports

from uapray.errors import NotFoundError, StoreError
from uapray.objects import Objects, open_objects

ACTS: dict[str, Callable[[Objects], object]] = {
    "check": lambda objects: objects.check(),
    "read": lambda objects: objects.read("a"),
    "write": lambda objects: objects.write("a", b"x"),
    "keys": lambda objects: objects.keys(),
    "exists": lambda objects: objects.exists("a"),
    "delete": lambda objects: objects.delete("a"),
}
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYsecret"


def refusal(act: str, objects: Objects) -> str:
    """Return the text of the error, after looking that it is short and tells no secret."""
    with pytest.raises(StoreError) as caught:
        ACTS[act](objects)
    assert not isinstance(caught.value, NotFoundError)
    text = str(caught.value)
    assert len(text.splitlines()) <= 2
    whole = "".join(traceback.format_exception(caught.value))
    for secret in (
        SECRET,
        "testsecret",
        *(os.environ.get(f"AWS_{n}", SECRET) for n in ("SECRET_ACCESS_KEY",)),
    ):
        assert secret not in whole
    return text


@pytest.mark.parametrize("act", ACTS)
def test_bucket_that_does_not_exist(on_moto: S3Server, act: str) -> None:
    bucket = f"none-{uuid.uuid4().hex[:12]}"
    assert f"no bucket '{bucket}'" in refusal(act, open_objects(f"s3://{bucket}/prefix"))
    assert bucket not in on_moto.buckets()


@pytest.mark.s3
@pytest.mark.parametrize("act", ["check", "read", "keys", "exists"])
def test_bucket_that_the_server_would_make(on_seaweedfs: S3Server, act: str) -> None:
    bucket = f"none-{uuid.uuid4().hex[:12]}"
    assert f"no bucket '{bucket}'" in refusal(act, open_objects(f"s3://{bucket}/prefix"))
    assert bucket not in on_seaweedfs.buckets()


@pytest.mark.s3
@pytest.mark.parametrize("act", ACTS)
def test_wrong_secret(on_seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    on_seaweedfs.make_bucket(bucket := f"uapray-{uuid.uuid4().hex[:12]}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = refusal(act, open_objects(f"s3://{bucket}"))
    assert "refused the credentials" in text
    assert "AWS_SECRET_ACCESS_KEY" in text
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", on_seaweedfs.secret_key)
    assert open_objects(f"s3://{bucket}").keys() == []


@pytest.mark.s3
def test_unknown_access_key(on_seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    on_seaweedfs.make_bucket(bucket := f"uapray-{uuid.uuid4().hex[:12]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "refused the credentials" in refusal("check", open_objects(f"s3://{bucket}"))


@pytest.mark.parametrize("act", ["check", "keys"])
def test_endpoint_that_nobody_listens_at(on_moto: S3Server, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    text = refusal(act, open_objects("s3://bucket/prefix"))
    assert "no answer" in text
    assert endpoint in text


@pytest.mark.parametrize("act", ["check", "read"])
def test_no_credentials(on_moto: S3Server, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    text = refusal(act, open_objects("s3://bucket/prefix"))
    assert "expected S3 credentials" in text
    assert "AWS_PROFILE" in text


def test_half_of_the_credentials(on_moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "expected S3 credentials" in refusal("check", open_objects("s3://bucket"))


def test_settings_that_boto3_cannot_use(on_moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert "expected a bucket" in refusal("check", open_objects("s3://no such/bucket"))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_PROFILE", "nobody")
        assert "nobody" in refusal("check", open_objects("s3://bucket"))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"me:{SECRET}@not a url")
        assert "AWS_ENDPOINT_URL" in refusal("check", open_objects("s3://bucket"))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "no region")
        assert "no region" in refusal("check", open_objects("s3://bucket"))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SESSION_TOKEN", f"{SECRET}\n")  # boto3 quotes a header that it cannot send
        assert "line breaks" in refusal("check", open_objects("s3://bucket"))


def test_a_password_in_the_endpoint_is_not_told(on_moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRET[:5]}hidden@127.0.0.1:{free_ports(1)[0]}")
    assert "hidden" not in refusal("check", open_objects("s3://bucket"))


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x", "s3://", "s3:///key", "file://host/x", "file://x"])
def test_uris_that_mean_nothing(uri: str) -> None:
    with pytest.raises(StoreError, match="expected"):
        open_objects(uri)


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for folder in ("file", "file/below"):
        for act in ("check", "write"):
            assert "found a file" in refusal(act, open_objects(str(tmp_path / folder)))
    assert "found a file" in refusal("keys", open_objects(str(tmp_path / "file")))
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_writing_over_a_folder(tmp_path: Path) -> None:
    objects = open_objects(str(tmp_path))
    objects.write("a/b", b"1")
    assert "found a folder" in refusal("write", objects)
    assert objects.keys() == ["a/b"]


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="too long"):
        open_objects(str(tmp_path)).write("x" * 300, b"")


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """The superuser may write everywhere; be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder that everybody may read and nobody write; pytest's own may not even be entered."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").write_bytes(b"mine")
        Path(folder).chmod(0o555)
        yield Path(folder)
        Path(folder).chmod(0o755)


@pytest.mark.parametrize(("act", "below"), [("check", ""), ("check", "store"), ("write", ""), ("delete", "")])
def test_a_folder_that_is_not_writable(locked_folder: Path, as_nobody: None, act: str, below: str) -> None:
    assert "not permitted" in refusal(act, open_objects(str(locked_folder / below)))
    assert [path.name for path in locked_folder.iterdir()] == ["a"]


def test_a_disk_without_room(small_disk: Path) -> None:
    objects = open_objects(str(small_disk / "store"))
    text = refusal("check", objects)
    assert "64 MiB free, found" in text
    assert list(small_disk.iterdir()) == []

    objects.write("a", b"old")
    with pytest.raises(StoreError, match="no room left"):
        objects.write("a", bytes(2**21))
    assert objects.read("a") == b"old"
    assert [path.name for path in (small_disk / "store").iterdir()] == ["a"]


@contextmanager
def http_server(answer: Callable[[http.server.BaseHTTPRequestHandler, int], None]) -> Iterator[str]:
    """Serve every request with a function of the handler and the number of the request."""
    asked = iter(range(1000))

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer(self, next(asked))

        do_GET = do_HEAD = do_PUT = do_DELETE = _answer

        def log_message(self, *_: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_without_room(on_moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handler: http.server.BaseHTTPRequestHandler, _: int) -> None:
        body = b"<Error><Code>InternalError</Code><Message>no writable volumes</Message></Error>"
        if handler.command == "GET":
            body = b"<ListBucketResult></ListBucketResult>"
        handler.send_response(200 if handler.command == "GET" else 500)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with http_server(full) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        text = refusal("check", open_objects("s3://bucket"))
    assert "InternalError: no writable volumes" in text
    assert "room" in text


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, "<!doctype html><html><p>Console<br></html>", "is an S3 server"),
        (200, "<ListBucketResult><Name>cut", "is an S3 server"),
        (404, "<!doctype html><html><p>Console<br></html>", "is an S3 server"),
        (403, "", "refused"),
    ],
)
def test_a_server_that_is_no_s3(
    on_moto: S3Server, monkeypatch: pytest.MonkeyPatch, status: int, body: str, said: str
) -> None:
    def page(handler: http.server.BaseHTTPRequestHandler, _: int) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body.encode())

    with http_server(page) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        assert said in refusal("check", open_objects("s3://bucket"))


@pytest.mark.parametrize("lasts", [False, True])
def test_a_body_that_ends_too_early_is_asked_for_again(
    on_moto: S3Server, monkeypatch: pytest.MonkeyPatch, lasts: bool
) -> None:
    def cut(handler: http.server.BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"0123" if lasts or number < 2 else b"0123456789")
        handler.close_connection = True

    with http_server(cut) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        objects = open_objects("s3://bucket")
        if not lasts:
            assert objects.read("a") == b"0123456789"
        else:
            monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
            assert "s3://bucket/a" in refusal("read", objects)
