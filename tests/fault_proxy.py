"""An HTTP proxy before a real S3 server that goes wrong on purpose: it cuts, delays, refuses, truncates, corrupts."""

import http.client
import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal[
    "none",
    "cut request",  # closed before the server hears of it
    "cut answer",  # closed after the server has done it
    "truncate",  # half of the answer, then closed
    "corrupt",  # the whole answer, one byte of its body changed
    "delay",
    "slow down",
    "internal error",
    "no answer",  # the server does it, and the client waits longer than it will
    "conflict",
    "conditions refused",  # as by servers that know none
    "conditions ignored",
]
FAULTS: tuple[Fault, ...] = ("cut request", "cut answer", "truncate", "slow down", "internal error", "delay")
_DELAY_S = 0.3
_HOP = {"connection", "keep-alive", "expect", "transfer-encoding", "content-length"}


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for.

    Attributes:
        method: GET, PUT, …
        path: Path and query.
        attempt: How often this was asked for, from 0.
        headers: Names of its headers, in small letters, with their values.
    """

    method: str
    path: str
    attempt: int
    headers: Mapping[str, str]


Choice = Callable[[Request], Fault]


@dataclass
class Traffic:
    """What went through a proxy.

    Attributes:
        endpoint: Its URL.
        seen: How often each fault came to pass.
        asked: How often each method and path was asked for.
    """

    endpoint: str
    seen: Counter[Fault] = field(default_factory=Counter)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def first_attempts(faults: Sequence[Fault] = FAULTS, *, attempts: int = 1) -> Choice:
    """Spoil the first attempts at everything, each with the next fault in turn."""
    turn, lock = iter(range(10**9)), threading.Lock()

    def choose(request: Request) -> Fault:
        if request.attempt >= attempts:
            return "none"
        with lock:
            return faults[next(turn) % len(faults)]

    return choose


@contextmanager
def fault_proxy(server: str, choose: Choice) -> Iterator[Traffic]:
    """Serve the S3 server at URL ``server`` through a port of its own, with the faults that ``choose`` returns."""
    traffic = Traffic("")
    over = threading.Event()

    class Handler(_Handler):
        upstream = urlsplit(server).netloc

        def fault(self) -> Fault:
            about = (self.command, self.path)
            with traffic.lock:
                attempt = traffic.asked[about]
                traffic.asked[about] += 1
            fault = choose(Request(*about, attempt, {name.lower(): value for name, value in self.headers.items()}))
            with traffic.lock:
                traffic.seen[fault] += 1
            return fault

        def wait_for_nothing(self) -> None:
            over.wait(60)

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    traffic.endpoint = f"http://127.0.0.1:{proxy.server_port}"
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield traffic
    finally:
        over.set()
        proxy.shutdown()
        thread.join()
        proxy.socket.close()  # not server_close: it would wait for connections that clients keep open


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream = ""

    def fault(self) -> Fault:
        raise NotImplementedError

    def wait_for_nothing(self) -> None:
        raise NotImplementedError

    def _serve(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match fault := self.fault():
            case "cut request":
                self.close_connection = True
                return
            case "slow down":
                self._refuse(503, "SlowDown", "Please reduce your request rate.")
                return
            case "internal error":
                self._refuse(500, "InternalError", "We encountered an internal error. Please try again.")
                return
            case "conflict":
                self._refuse(409, "ConditionalRequestConflict", "A conflicting operation is under way.")
                return
            case "conditions refused" if "If-None-Match" in self.headers:
                self._refuse(501, "NotImplemented", "A header you provided implies functionality not implemented.")
                return
            case "conditions ignored":
                del self.headers["If-None-Match"]
            case "delay":
                time.sleep(_DELAY_S)
        status, headers, body = self._forward(asked)
        match fault:
            case "cut answer":
                self.close_connection = True
                return
            case "no answer":
                self.wait_for_nothing()
                self.close_connection = True
                return
            case "corrupt" if body:
                body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        length = dict(headers).get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
        if "Content-Length" not in dict(headers):
            self.send_header("Content-Length", length)
        self.end_headers()
        if fault == "truncate":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _forward(self, asked: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    upstream.putheader(name, value)  # with the Host that was signed
            if asked or self.command in ("PUT", "POST"):
                upstream.putheader("Content-Length", str(len(asked)))
            upstream.endheaders(asked or None)
            answer = upstream.getresponse()
            kept = [
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in _HOP or (name == "Content-Length" and self.command == "HEAD")
            ]
            return answer.status, kept, answer.read()
        finally:
            upstream.close()

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...
