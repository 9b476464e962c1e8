"""An HTTP proxy in front of an S3 server. It forwards requests unchanged, counts them, and fails as it is told."""

import http.client
import os
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
"""Response headers that belong to the connection with the server. The proxy sends its own."""


class Request(NamedTuple):
    """A request of a client. `target` is the path and the query as they were sent; `key` is the path, decoded."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.target).path)


class Response(NamedTuple):
    """A response of the server."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset."""

Action = Callable[["Exchange"], None]
"""What the proxy does with a request."""


@dataclass
class Rule:
    """An action for every n-th request of some methods whose target matches a regular expression, at most `times` times."""

    action: Action
    methods: str
    target: str
    every: int
    times: int | None
    matched: int = 0
    hits: int = 0

    def applies(self, request: Request) -> bool:
        """Whether this request is one for the action. Counts it."""
        if not re.fullmatch(self.methods, request.method) or not re.search(self.target, unquote(request.target)):
            return False
        self.matched += 1
        chosen = self.matched % self.every == 0 and (self.times is None or self.hits < self.times)
        self.hits += chosen
        return chosen


def pass_on(exchange: "Exchange") -> None:
    """Forward the request, and send the response."""
    exchange.send(exchange.forward())


def answer(status: int, code: str, message: str = "from the test's proxy", **headers: str) -> Action:
    """Answer with an S3 error, without asking the server."""
    xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    named = [("Content-Type", "application/xml"), *((name.replace("_", "-"), value) for name, value in headers.items())]
    return lambda exchange: exchange.send(Response(status, http.client.responses[status], named, xml.encode()))


def reset(exchange: "Exchange") -> None:
    """Reset the connection. The server does not hear of the request."""
    exchange.reset()


def lose_answer(exchange: "Exchange") -> None:
    """Forward the request, and reset the connection instead of answering."""
    exchange.forward()
    exchange.reset()


def cut(exchange: "Exchange") -> None:
    """Close the connection in an orderly way after half of the body: a truncated response."""
    exchange.send(exchange.forward(), share=0.5)
    exchange.close()


def reset_in_body(exchange: "Exchange") -> None:
    """Reset the connection after half of the body."""
    exchange.send(exchange.forward(), share=0.5)
    time.sleep(0.05)  # what is sent must arrive before the reset, which discards it
    exchange.reset()


def silence(exchange: "Exchange") -> None:
    """Never answer, and keep the connection open."""
    exchange.wait_for_client()


def slow(seconds: float) -> Action:
    """Forward the request, and take so many seconds to send the body in ten pieces."""
    return lambda exchange: exchange.send(exchange.forward(), pieces=10, pause_s=seconds / 10)


def together(number: int) -> Action:
    """Hold requests until there are so many of them, and forward all at the same moment."""
    barrier = threading.Barrier(number, timeout=60)

    def wait_and_pass_on(exchange: Exchange) -> None:
        with suppress(threading.BrokenBarrierError):
            barrier.wait()
        pass_on(exchange)

    return wait_and_pass_on


class Exchange(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    request_read: Request

    @property
    def proxy(self) -> "_Listener":
        return cast(_Listener, self.server)

    def handle_one_request(self) -> None:
        """Read a request, and do with it what the rules say."""
        with suppress(ConnectionError, TimeoutError):
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            headers = [(name, value) for name, value in self.headers.items() if name.lower() != "expect"]
            self.request_read = Request(self.command, self.path, headers, self._body())
            self.proxy.choose(self.request_read)(self)
            return
        self.close_connection = True

    def _body(self) -> bytes:
        """The bytes of the body as they were sent, with the framing of chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        lines = [self.rfile.readline()]
        while size := int(lines[-1].split(b";")[0], 16):
            lines += [self.rfile.read(size + 2), self.rfile.readline()]
        while lines[-1] not in (b"\r\n", b""):
            lines.append(self.rfile.readline())
        return b"".join(lines)

    def forward(self) -> Response:
        """Send the request to the server, and return its response."""
        request = self.request_read
        server = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            server.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                server.putheader(name, value)
            server.endheaders(request.body)
            found = server.getresponse()
            return Response(found.status, found.reason, found.getheaders(), found.read())
        finally:
            server.close()

    def send(self, response: Response, share: float = 1.0, pieces: int = 1, pause_s: float = 0.0) -> None:
        """Send a response, or only this share of its body, in several pieces with pauses before them."""
        length = str(len(response.body))
        self.send_response_only(response.status, response.reason)
        for name, value in response.headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
            elif name.lower() == "content-length":
                length = value
        self.send_header("Content-Length", length)
        self.end_headers()
        body = b"" if self.command == "HEAD" else response.body[: int(len(response.body) * share)]
        step = -(-len(body) // pieces) or 1
        for start in range(0, len(body), step):
            time.sleep(pause_s)
            self.wfile.write(body[start : start + step])

    def close(self) -> None:
        """Close the connection after what was sent."""
        self.close_connection = True

    def reset(self) -> None:
        """Close the connection with a TCP reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        # `socket.close` would wait for `rfile`, and socketserver ends a connection in an orderly way first.
        os.close(self.connection.detach())

    def wait_for_client(self) -> None:
        """Wait until the client, or the proxy, closes the connection."""
        self.close_connection = True
        while self.rfile.read1(1 << 16):
            pass

    def log_message(self, *args: object) -> None:
        """Log nothing."""


class _Listener(ThreadingHTTPServer):
    """Accepts connections. Bound but not active, it refuses them."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, upstream: str, choose: Callable[[Request], Action]) -> None:
        super().__init__(("127.0.0.1", port), Exchange, bind_and_activate=False)
        self.upstream, self.choose = upstream, choose
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self.server_bind()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self.server_activate()
        self._thread.start()

    def stop(self) -> None:
        """Close the port and all connections."""
        if self.alive:
            self.shutdown()
            self._thread.join()
        self.server_close()
        for connection in list(self._connections):
            with suppress(OSError):  # its own thread has closed it
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().close_request(request)


class Proxy:
    """The proxy, as tests steer it. It counts requests in `requests`, by method and key (`/bucket/name`)."""

    def __init__(self, upstream: str) -> None:
        """`upstream` is the URL of the server."""
        self.upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._timer: threading.Timer | None = None
        self.requests: Counter[tuple[str, str]] = Counter()
        self._listener = self._bind(0)
        self.port = self._listener.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._listener.start()

    def _bind(self, port: int) -> _Listener:
        return _Listener(port, self.upstream, self._choose)

    def _choose(self, request: Request) -> Action:
        with self._lock:
            self.requests[request.method, request.key] += 1
            actions = [rule.action for rule in self._rules if rule.applies(request)]
        return actions[0] if actions else pass_on

    def fail(self, action: Action, methods: str = ".*", target: str = "", every: int = 1, times: int | None = None) -> Rule:
        """Do this, until healed, with every n-th request whose method and decoded target match regular expressions."""
        rule = Rule(action, methods, target, every, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def outage(self, action: Action, after: int, target: str = "", seconds: float | None = None) -> Rule:
        """From the request number `after` for this target on, do this with every request, for `seconds` or until healed."""

        def begin(exchange: Exchange) -> None:
            self.fail(action)
            if seconds is not None:
                self._timer = threading.Timer(seconds, self.heal)
                self._timer.start()
            action(exchange)

        return self.fail(begin, target=target, every=after, times=1)

    def heal(self) -> None:
        """Forward all requests from now on."""
        with self._lock:
            self._rules.clear()

    @contextmanager
    def failing(self, action: Action, methods: str = ".*", target: str = "", every: int = 1) -> Iterator[Rule]:
        """As `fail`, inside this block."""
        yield self.fail(action, methods, target, every)
        self.heal()

    def die(self, _exchange: Exchange | None = None) -> None:
        """Break all connections, and refuse new ones. This is an Action, too."""
        with self._lock:
            if self._listener.alive:
                self._listener.stop()
                self._listener = self._bind(self.port)

    def revive(self) -> None:
        """Accept connections again, and forward all requests."""
        self.heal()
        with self._lock:
            if not self._listener.alive:
                self._listener.start()

    def stop(self) -> None:
        """End the proxy."""
        if self._timer:
            self._timer.cancel()
        self._listener.stop()

    def count(self, methods: str, key: str) -> int:
        """Requests so far whose method and key match regular expressions."""
        with self._lock:
            found = list(self.requests.items())
        return sum(n for (method, name), n in found if re.fullmatch(methods, method) and re.search(key, name))
