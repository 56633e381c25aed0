import hashlib
import io
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pytest

from uapray.data import fetch as module
from uapray.data.dataset import open_data
from uapray.data.fetch import Download, download, fetch, set_names
from uapray.errors import DataError

BODY = np.random.default_rng(0).bytes(900_000)


def md5(body):
    return hashlib.md5(body).hexdigest()


class FileServer(BaseHTTPRequestHandler):
    """Serves one body at every path; its server says how badly."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body, start = server.body, 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and server.ranges:
            start = int(match[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = server.cuts.pop(0) if server.cuts else len(body)
        self.wfile.write(body[start:end])
        if end < len(body):
            self.close_connection = True

    def log_message(self, *args):
        pass


class Proxy(BaseHTTPRequestHandler):
    """Forwards GET of http:// URLs; a host name that does not exist is the one file server."""

    def do_GET(self):
        self.server.asked.append(self.path)
        url = f"{self.server.target}{urlsplit(self.path).path}"
        with build_opener(ProxyHandler({})).open(url) as answer:
            body = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def serve(handler, **settings):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.asked = []
    for name, value in settings.items():
        setattr(server, name, value)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    return server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server():
    server = serve(FileServer, body=BODY, ranges=True, cuts=[], statuses=[])
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def file(server, tmp_path):
    return Download(f"{server.url}/set.npz", md5(BODY), tmp_path / "cache" / "set.npz")


def test_downloads_once(server, file):
    seen = []
    assert download(file, lambda here, total: seen.append((here, total))) == file.path
    assert file.path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    download(file)
    assert server.asked == [("/set.npz", None)]
    assert [path.name for path in file.path.parent.iterdir()] == ["set.npz"]


def test_connection_cut_in_the_middle_goes_on(server, file):
    server.cuts = [300_000, 650_000]
    download(file)
    assert file.path.read_bytes() == BODY
    asked = [int(r.removeprefix("bytes=").rstrip("-")) if r else 0 for _, r in server.asked]
    assert asked == sorted(asked)
    assert len(asked) == 3
    assert asked[2] > 300_000


def test_goes_on_after_another_process_ended(server, file):
    file.path.parent.mkdir()
    file.path.with_name("set.npz.part").write_bytes(BODY[:500_000])
    download(file)
    assert file.path.read_bytes() == BODY
    assert server.asked == [("/set.npz", "bytes=500000-")]


def test_server_without_ranges(server, file):
    server.ranges, server.cuts = False, [300_000]
    download(file)
    assert file.path.read_bytes() == BODY


def test_part_that_is_already_whole(server, file):
    file.path.parent.mkdir()
    file.path.with_name("set.npz.part").write_bytes(BODY)
    download(file)
    assert file.path.read_bytes() == BODY


@pytest.mark.parametrize("part", [BODY + b"more", b"another version" * 1000])
def test_part_of_something_else_starts_again(server, file, part):
    file.path.parent.mkdir()
    file.path.with_name("set.npz.part").write_bytes(part)
    download(file)
    assert file.path.read_bytes() == BODY


def test_wrong_bytes_are_refused_and_removed(server, file):
    server.body = BODY[:-1] + b"!"
    with pytest.raises(DataError, match=f"expected md5 {file.md5}, got {md5(server.body)}"):
        download(file)
    assert list(file.path.parent.iterdir()) == []


def test_damaged_file_in_the_cache_is_replaced(server, file):
    file.path.parent.mkdir()
    file.path.write_bytes(BODY[:1000])
    download(file)
    assert file.path.read_bytes() == BODY


def test_busy_server_is_asked_again(server, file):
    server.statuses = [503, 429]
    download(file)
    assert len(server.asked) == 3


def test_file_that_is_not_there(server, file):
    server.statuses = [404]
    with pytest.raises(DataError, match="expected the file, got HTTP 404"):
        download(file)
    assert len(server.asked) == 1


def test_server_that_never_answers(server, file, monkeypatch):
    monkeypatch.setattr(module, "_ATTEMPTS", 2)
    server.cuts = [400_000] * 20
    with pytest.raises(DataError, match=r"2 attempts failed, the last one because .* repeat to go on"):
        download(file)
    part = file.path.with_name("set.npz.part")
    assert BODY.startswith(part.read_bytes())
    server.cuts = []
    download(file)
    assert file.path.read_bytes() == BODY


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1/x", "http://"])
def test_url_that_is_none(url, file):
    with pytest.raises(DataError, match="makes no sense"):
        download(Download(url, file.md5, file.path))


def test_goes_through_a_proxy(server, file, monkeypatch):
    proxy = serve(Proxy, target=server.url)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("http_proxy", proxy.url)
    download(Download("http://data.example.invalid/set.npz", file.md5, file.path))
    proxy.shutdown()
    proxy.server_close()
    assert proxy.asked == ["http://data.example.invalid/set.npz"]
    assert file.path.read_bytes() == BODY


def npz(channels=()):
    rng = np.random.default_rng(1)
    arrays = {}
    for split, count in (("train", 20), ("val", 4), ("test", 8)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28, *channels), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    body = io.BytesIO()
    np.savez_compressed(body, **arrays)
    return body.getvalue()


@pytest.fixture
def small_facts(server, monkeypatch):
    """The facts of one set, but with the checksum of a small one of our own."""
    server.body = npz()
    facts = {"sets": {"pneumoniamnist": dict(module._facts()["sets"]["pneumoniamnist"])}}
    facts["sets"]["pneumoniamnist"]["files"] = {"28": {"file": "pneumoniamnist.npz", "md5": md5(server.body)}}
    monkeypatch.setattr(module, "_facts", lambda: facts)


@pytest.mark.usefixtures("small_facts")
def test_fetch_writes_a_data_set(server, tmp_path):
    out = str(tmp_path / "pneumonia.parquet")
    assert fetch("pneumoniamnist", out, base_url=f"{server.url}/files/", cache=tmp_path / "cache") == out
    assert server.asked == [("/files/pneumoniamnist.npz", None)]
    data = open_data(out)
    assert data.class_names == ("normal", "pneumonia")
    assert data.splits() == ("train", "val", "test")
    assert data.images("train").images.shape == (20, 28, 28, 1)
    with pytest.raises(DataError, match="is there already"):
        fetch("pneumoniamnist", out, base_url=server.url, cache=tmp_path / "cache")


@pytest.mark.usefixtures("small_facts")
def test_fetch_into_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("UAPRAY_CACHE", str(tmp_path / "own"))
    first = fetch("pneumoniamnist", None, base_url=server.url)
    assert first == str(tmp_path / "own" / "pneumoniamnist.parquet")
    assert fetch("pneumoniamnist", None, base_url=server.url) == first
    assert len(server.asked) == 1
    assert open_data(first).table.num_rows == 32


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        ("PneumoniaMNIST2", 28, "did you mean pneumoniamnist"),
        ("chest", 28, "did you mean chestmnist"),
        ("chestmnist", 28, r"14 labels an image \(multi-label\)"),
        ("bloodmnist", 32, "expected size 28, 64, 128, 224, got 32"),
    ],
)
def test_what_it_cannot_fetch(name, size, text, tmp_path):
    with pytest.raises(DataError, match=text):
        fetch(name, str(tmp_path / "x.parquet"), size=size, cache=tmp_path)


def test_facts_are_complete():
    assert len(set_names()) == 12
    assert module._facts()["base_url"].startswith("https://")
    seen = set()
    for name in set_names():
        facts = module._facts()["sets"][name]
        assert set(facts["files"]) == {"28", "64", "128", "224"}
        assert facts["channels"] in (1, 3)
        assert len(facts["labels"]) == len(set(facts["labels"])) > 1
        for file in facts["files"].values():
            assert re.fullmatch(r"[0-9a-f]{32}", file["md5"])
            seen.add(file["md5"])
    assert len(seen) == 48
