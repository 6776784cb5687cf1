"""A real HTTP server on loopback that serves byte ranges and misbehaves as told, request by request."""

from __future__ import annotations

import gzip
import re
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PASSING_FAULTS = ("reset", "cut", "less", "shifted", "503", "500", "429", "garbage")
"""What a client should survive by asking again; "hang" is the other one, left out here because it takes its time."""
_HANG_S = 5.0
_BLOCK_BYTES = 1 << 20


class FaultyServer:
    """Serves `files` (path, bytes), compressed to clients that accept gzip.

    It takes one fault off `script` per request, none when that is empty: a status ("404"); "503 after 1", with
    `Retry-After: 1`; "reset", a connection reset in the middle of the body; "cut", one closed there; "less", a shorter
    body and Content-Length under the right Content-Range; "shifted", another range of the same length; "whole", status
    200 and the whole file; "flip", one changed bit; "hang", no reply; "garbage", bytes that are no HTTP; "endless", a
    body that goes on for ever; "claims", a Content-Length of 10^12 and then nothing; "trickle", a byte now and then;
    "gzip", a body compressed although nobody asked; "circle", a redirection to itself; "elsewhere", one to a file; ""
    for none.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.script: deque[str] = deque()
        self.requests: list[str] = []
        """Method, path and range of every request."""
        self.num_bodies_cut = threading.Semaphore(0)
        """Bodies that the client did not want to the end."""
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.faulty = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def restart(self, script: Iterable[str] = ()) -> None:
        """Forget what was asked, and misbehave by `script` from now on."""
        with self._lock:
            self.script = deque(script)
            self.requests = []

    def next_fault(self, request: str) -> str:
        with self._lock:
            self.requests.append(request)
            return self.script.popleft() if self.script else ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients hang up as they like
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        faulty = self.server.faulty
        path = self.path.partition("?")[0]
        fault = faulty.next_fault(f"{self.command} {path} {self.headers.get('Range', '')}".rstrip())
        if status := re.match(r"\d{3}", fault):
            return self._refuse(int(status[0]), fault.partition(" after ")[2])
        if path not in faulty.files:
            return self._refuse(404)
        if fault == "hang":
            self.close_connection = True
            faulty.closing.wait(_HANG_S)
            return None
        if fault == "garbage":
            self.close_connection = True
            self.wfile.write(b"SSH-2.0-\x1b[31mOpenSSH\r\n\r\n")
            return None
        if fault in ("circle", "elsewhere"):
            if fault == "circle":
                faulty.script.appendleft(fault)
            return self._redirect(self.path if fault == "circle" else "file:///etc/hostname")
        return self._serve(faulty.files[path], fault)

    def _redirect(self, place: str) -> None:
        self.send_response(302)
        self.send_header("Location", place)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _refuse(self, status: int, retry_after: str = "") -> None:
        self.send_response(status)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _serve(self, whole: bytes, fault: str) -> None:
        headers = {}
        if "gzip" in self.headers.get("Accept-Encoding", "") or fault == "gzip":
            # As RFC 9110 has it, ranges then count the bytes of what is sent.
            whole, headers = gzip.compress(whole, mtime=0), {"Content-Encoding": "gzip"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or fault == "whole":
            return self._send(200, whole, headers, fault)
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(whole))
        if start >= len(whole):
            return self._refuse(416)
        if fault == "shifted":
            step = 1 if end < len(whole) else -1
            start, end = max(0, start + step), max(1, end + step)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(whole)}"
        return self._send(206, whole[start:end], headers, fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: str) -> None:
        if fault == "flip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 0x10]) + body[middle + 1 :]
        elif fault == "less":
            body = body[: len(body) // 2]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault == "endless":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(10**12 if fault == "claims" else len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("endless", "claims", "trickle"):
            self._go_on(fault)
            return
        if fault in ("reset", "cut"):
            body = body[: len(body) // 2]
            self.close_connection = True
        try:
            self.wfile.write(body)
            if fault == "reset":
                self.wfile.flush()
                # Closing with a linger time of zero sends RST instead of FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        except OSError:
            self.server.faulty.num_bodies_cut.release()
            self.close_connection = True

    def _go_on(self, fault: str) -> None:
        """Send without end, until the client has had enough."""
        self.close_connection = True
        block = b"%x\r\n%s\r\n" % (_BLOCK_BYTES, bytes(_BLOCK_BYTES)) if fault == "endless" else b"z"
        try:
            while not self.server.faulty.closing.wait(0.0 if fault == "endless" else 0.05):
                if fault != "claims":
                    self.wfile.write(block)
                elif not self.connection.recv(1):
                    raise ConnectionResetError
        except OSError:
            self.server.faulty.num_bodies_cut.release()
