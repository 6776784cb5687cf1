"""Replies of an HTTP server: what is wrong, endless or late is asked for again or refused, never taken for the data."""

from __future__ import annotations

import contextlib
import gzip
import random
import re
import socket
import threading
import time
from collections import deque
from functools import cached_property
from pathlib import Path
from typing import Any

from fuzz.area import ACCEPTED, REFUSED, Area, Plan, Run, check_sentence, need
from fuzz.common import SHARDS, choose, make_common
from fuzz.mutate import WORDS, damaged_bytes

_PIECE = b"z" * (1 << 20)
_MAX_SENT_BYTES = 6 << 30


class Replies(Area):
    """Opening and verifying a shard folder behind a URL."""

    name = "http"
    limit_s = 10.0

    def prepare(self) -> None:
        make_common(with_run=False)

    def make(self, draw: random.Random, work: Path) -> Plan:
        kinds = [
            ("status", 3),
            ("garbage", 3),
            ("length", 4),
            ("endless", 2),
            ("range", 3),
            ("body", 4),
            ("redirect", 2),
        ]
        kinds += [("encoding", 2), ("slow", 1), ("head", 3), ("close", 1)]
        faults = [
            {"kind": choose(draw, kinds), "seed": draw.randrange(1 << 30)} for _ in range(draw.choice((1, 1, 1, 2, 30)))
        ]
        entry = choose(draw, [("open", 3), ("verify", 1)])
        return {"entry": entry, "skip": draw.choice((0, 0, 1, 2, 3, 5, 8)), "faults": faults}

    def judge(self, work: Path, plan: Plan, run: Run) -> str:
        from shards.config import RemoteConfig
        from shards.errors import InputError
        from shards.indexload import load_index
        from shards.survey import verify

        remote = RemoteConfig(num_tries=2, timeout_s=0.5, first_wait_s=0.01)
        with _Server(self._files, plan) as server:
            try:
                if plan["entry"] == "verify":
                    problems = verify([server.url], remote=remote)
                    for problem in problems:
                        check_sentence(problem)
                    return REFUSED if problems else ACCEPTED
                index = load_index([server.url], remote)
                rows = [index.values(name) for name in ("key", "emotion", "shard", "audio_offset", "pcm_sha256")]
            except InputError as error:
                check_sentence(str(error))
                return REFUSED
        need(rows == self._right, f"other rows after {plan}")
        return ACCEPTED

    @cached_property
    def _files(self) -> dict[str, bytes]:
        return {f"/{path.name}": path.read_bytes() for path in SHARDS.iterdir() if path.is_file()}

    @cached_property
    def _right(self) -> list[Any]:
        from shards.indexload import load_index

        index = load_index([SHARDS])
        return [index.values(name) for name in ("key", "emotion", "shard", "audio_offset", "pcm_sha256")]


class _Server:
    """Speaks HTTP on a socket, well or as `plan` says."""

    def __init__(self, files: dict[str, bytes], plan: Plan) -> None:
        self._files = files
        self._faults = deque([None] * plan["skip"] + plan["faults"])
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._is_over = False
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> _Server:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over = True
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as stream:
            while True:
                request = stream.readline().decode("latin-1").split(" ")
                headers = {}
                while (line := stream.readline().decode("latin-1").strip()) != "":
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                if len(request) < 2:
                    return
                with self._lock:
                    fault = self._faults.popleft() if self._faults else None
                if not self._answer(connection, request[0], request[1].partition("?")[0], headers, fault):
                    return

    def _answer(
        self, connection: socket.socket, method: str, path: str, headers: dict[str, str], fault: dict[str, Any] | None
    ) -> bool:
        """Send a reply; return whether the connection stays open."""
        whole = self._files.get(path)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", ""))
        if whole is None:
            status, body, said = "404 Not Found", b"", {"Content-Length": "0"}
        elif asked is None:
            status, body, said = "200 OK", whole, {"Content-Length": str(len(whole)), "Accept-Ranges": "bytes"}
        else:
            body = whole[int(asked[1]) : int(asked[2]) + 1]
            end = int(asked[1]) + len(body) - 1
            said = {"Content-Length": str(len(body)), "Content-Range": f"bytes {asked[1]}-{end}/{len(whole)}"}
            status = "206 Partial Content"
        if fault is None:
            _send(connection, status, said, b"" if method == "HEAD" else body)
            return True
        draw = random.Random(fault["seed"])
        return self._misbehave(draw, connection, fault["kind"], status, said, b"" if method == "HEAD" else body)

    def _misbehave(
        self, draw: random.Random, connection: socket.socket, kind: str, status: str, said: dict[str, str], body: bytes
    ) -> bool:
        if kind == "status":
            words = (
                "100 Continue",
                "204 No Content",
                "301 Moved",
                "401 No",
                "403 No",
                "404 Not Found",
                "416 No",
                "429 Wait",
            )
            words += (
                "500 x",
                "503 x",
                "599 x",
                "999 x",
                "0 x",
                "-1 x",
                "abc",
                "200 \x1b[2J",
                f"500 {draw.choice(WORDS)}",
            )
            said = {**said, "Retry-After": draw.choice(("0", "-1", "1e9", "x", "0.1"))}
            _send(connection, draw.choice(words), said, body)
        elif kind == "garbage":
            head = _head(status, said)
            connection.sendall(
                draw.choice((draw.randbytes(200), b"\0" * 5000, b"\n" * 100, damaged_bytes(draw, head) + body))
            )
            return False
        elif kind == "length":
            values = (str(10**12), "-1", "x", "", "0", str(len(body) + 5), str(max(0, len(body) - 5)), "1e3", "9" * 400)
            _send(connection, status, {**said, "Content-Length": draw.choice(values)}, body)
            return draw.random() < 0.5
        elif kind == "endless":
            self._endless(draw, connection, status, said)
            return False
        elif kind == "range":
            values = (
                "bytes 0-0/1",
                "bytes */5",
                "bytes 5-1/9",
                "x",
                "",
                "bytes 0-99999999999/1",
                "bytes -1-5/9",
                "bytes 1-2/*",
            )
            if draw.random() < 0.3:
                body = body[::-1]
            _send(connection, draw.choice((status, "200 OK")), {**said, "Content-Range": draw.choice(values)}, body)
        elif kind == "body":
            changed = damaged_bytes(draw, body)
            _send(connection, status, {**said, "Content-Length": str(len(changed))}, changed)
        elif kind == "redirect":
            places = (
                f"{self.url}/manifest.json",
                "/",
                "file:///etc/passwd",
                "http://127.0.0.1:9/",
                "ftp://x",
                "",
                "\x1b[2J",
                "http://",
            )
            _send(
                connection,
                draw.choice(("302 Found", "307 x")),
                {"Location": draw.choice(places), "Content-Length": "0"},
                b"",
            )
        elif kind == "encoding":
            coding = draw.choice(("gzip", "deflate", "br", "zstd", "x", "gzip, gzip"))
            bomb = gzip.compress(bytes(200 << 20), 1, mtime=0) if draw.random() < 0.2 else body
            _send(connection, status, {**said, "Content-Encoding": coding, "Content-Length": str(len(bomb))}, bomb)
        elif kind == "slow":
            connection.sendall(_head(status, said))
            for at in range(min(len(body), 30)):
                connection.sendall(body[at : at + 1])
                time.sleep(0.05)
            return False
        elif kind == "head":
            more = draw.choice(
                ("X: " + "y" * 100_000, "no colon", ": none", "X\0: y", "Content-Length: 5", "A: b\r\n" * 2000)
            )
            connection.sendall(_head(status, said).removesuffix(b"\r\n") + more.encode() + b"\r\n\r\n" + body)
        else:
            return False
        return True

    def _endless(self, draw: random.Random, connection: socket.socket, status: str, said: dict[str, str]) -> None:
        kind = draw.choice(("chunks", "no length", "head", "large chunk"))
        said = {name: value for name, value in said.items() if name != "Content-Length"}
        if kind in ("chunks", "large chunk"):
            said["Transfer-Encoding"] = "chunked"
        piece = {
            "chunks": b"100000\r\n" + _PIECE + b"\r\n",
            "no length": _PIECE,
            "head": b"X: y\r\n" * 1000,
            "large chunk": _PIECE,
        }[kind]
        connection.sendall(_head(status, said).removesuffix(b"\r\n" if kind == "head" else b""))
        if kind == "large chunk":
            connection.sendall(b"FFFFFFFFFFFFFFFF\r\n")
        num_sent = 0
        while not self._is_over and num_sent < _MAX_SENT_BYTES:
            connection.sendall(piece)
            num_sent += len(piece)


def _head(status: str, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "replace") + b"\r\n"


def _send(connection: socket.socket, status: str, headers: dict[str, str], body: bytes) -> None:
    connection.sendall(_head(status, headers) + body)
