"""A small threaded HTTP/1.1 server: connections are kept open, and a request costs little more than its bytes.

Python's own `http.server` parses headers with the e-mail parser and werkzeug closes every connection; both show when an
image is a few thousand requests of half a MiB.
"""

import json
import socket
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl

LONGEST_LINE = 64 * 1024


@dataclass
class Request:
    """One request, read to its end."""

    method: str
    path: str  # as sent: still percent-encoded
    query: str
    headers: dict  # names in lower case
    body: bytes
    connection: socket.socket = field(repr=False, default=None)

    def arguments(self):
        """The query string as a dictionary; an argument without a value is the empty string."""
        return dict(parse_qsl(self.query, keep_blank_values=True))

    def json(self):
        return json.loads(self.body or b"{}")


@dataclass
class Response:
    """What goes back. `chunks` instead of `body` where the whole would be too large for memory; needs `length`."""

    status: int = 200
    headers: list = field(default_factory=list)
    body: bytes = b""
    chunks: object = None
    length: int = None

    @staticmethod
    def of_json(value, status=200):
        return Response(status, [("Content-Type", "application/json")], json.dumps(value).encode() + b"\n")


class HangUp(Exception):
    """Raised by a handler: the connection is reset, no answer is given."""


def serve(listener, handler, connections):
    """Takes connections until the listener is closed; `handler(Request) -> Response` runs in a thread of each.

    `connections` is a set that holds the open ones.
    """
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connections.add(connection)
        threading.Thread(target=_converse, args=(connection, handler, connections), daemon=True).start()


def reset(connection):
    """Closes a connection so that the other side gets "connection reset"."""
    linger_zero = b"\1\0\0\0\0\0\0\0"
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        connection.close()
    except OSError:
        pass


def _converse(connection, handler, connections):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = connection.makefile("rb", buffering=64 * 1024)
    try:
        while True:
            request = _read(stream, connection)
            if request is None:
                break
            response = handler(request)
            _write(connection, request, response)
            if request.headers.get("connection", "").lower() == "close":
                break
    except HangUp:
        # The file object holds the socket open: it goes first.
        stream.close()
        reset(connection)
    except (OSError, ValueError):
        pass
    finally:
        connections.discard(connection)
        try:
            stream.close()
            connection.close()
        except OSError:
            pass


def _line(stream):
    line = stream.readline(LONGEST_LINE)
    if len(line) == LONGEST_LINE:
        raise ValueError("line too long")
    return line.rstrip(b"\r\n").decode("latin-1")


def _read(stream, connection):
    line = _line(stream)
    if not line:
        return None
    method, target, _version = line.split(" ", 2)
    headers = {}
    while line := _line(stream):
        name, _, value = line.partition(":")
        name = name.lower()
        value = value.strip()
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b"".join(_chunks(stream))
    else:
        length = int(headers.get("content-length") or 0)
        body = stream.read(length) if length else b""
        if len(body) != length:
            raise ValueError("the body ended early")
    path, _, query = target.partition("?")
    return Request(method, path, query, headers, body, connection)


def _chunks(stream):
    while True:
        size = int(_line(stream).partition(";")[0], 16)
        if size == 0:
            while _line(stream):
                pass
            return
        yield stream.read(size)
        _line(stream)


def _write(connection, request, response):
    length = len(response.body) if response.chunks is None else response.length
    try:
        reason = HTTPStatus(response.status).phrase
    except ValueError:
        reason = "Unknown"
    head = [f"HTTP/1.1 {response.status} {reason}"]
    head += [f"{name}: {value}" for name, value in response.headers]
    # Where there is no body by definition, its length still tells what a GET would send: the handler's business.
    if request.method != "HEAD" and response.status not in (204, 304):
        head.append(f"Content-Length: {length}")
    bytes_ = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")
    if request.method == "HEAD":
        connection.sendall(bytes_)
    elif response.chunks is None:
        connection.sendall(bytes_ + response.body if length < 4096 else bytes_)
        if length >= 4096:
            connection.sendall(response.body)
    else:
        connection.sendall(bytes_)
        for chunk in response.chunks:
            connection.sendall(chunk)
