"""A chat completion server for tests, on a loopback port of its own, that has the faults it is told to have."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from factory.engine.scripted import WORDS

MODEL = "faulty-7b"


@dataclass
class Fault:
    """What comes instead of a completion; ``drip`` sends a byte each tenth of a second, ``cut`` half of the reply."""

    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    how: str = "whole"


@dataclass
class Server:
    """``faults`` is asked at every chat completion, with the request's body and its number, from 0."""

    faults: Callable[[dict[str, Any], int], Fault | None] = lambda body, number: None
    delay: float = 0.0
    key: str | None = None  # that it asks for, and quotes in its refusal
    knows_prefill: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_answered: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = 0
        self._sockets: set[socket.socket] = set()
        self._port = 0
        self._http: ThreadingHTTPServer | None = None

    def __enter__(self) -> Server:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def listen(self) -> None:
        """Start, or start again on the same port."""
        self._http = _Http(("127.0.0.1", self._port), _handler(self))
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def cut(self) -> None:
        """Stop listening, and close every connection in the middle of whatever it is at."""
        if self._http is None:
            return
        self._http.shutdown()
        self._http.server_close()
        self._http = None
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._sockets.clear()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are part of the tests."""


def answer(body: dict[str, Any], *, knows_prefill: bool = True) -> bytes:
    """A completion drawn by the request's seed."""
    draw = random.Random(body.get("seed", 0))
    text = f"{' '.join(draw.choices(WORDS, k=12))}."
    last = body["messages"][-1]["content"]
    opened = knows_prefill and body.get("continue_final_message", False)
    if "Response: <" in last:
        text = f"Thought: {' '.join(draw.choices(WORDS, k=8))}.\nResponse: {text}"
    words = sum(len(turn["content"].split()) for turn in body["messages"])
    usage = {"prompt_tokens": words + (0 if opened else 5), "completion_tokens": len(text.split())}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with server._lock:
                server._sockets.add(self.connection)

        def finish(self) -> None:
            with server._lock:
                server._sockets.discard(self.connection)
            with contextlib.suppress(OSError):
                super().finish()

        def log_message(self, *_: Any) -> None:
            """Nothing: a test prints what matters."""

        def do_GET(self) -> None:
            models = {"data": [{"id": MODEL}]}
            self._send(self._locked_out() or Fault(content=json.dumps(models).encode()))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server._lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server._busy += 1
                server.most_at_once = max(server.most_at_once, server._busy)
            try:
                fault = self._locked_out() or server.faults(body, number)
                if fault is None:
                    time.sleep(server.delay)
                    fault = Fault(content=answer(body, knows_prefill=server.knows_prefill))
                    with server._lock:
                        server.num_answered += 1
                self._send(fault)
            finally:
                with server._lock:
                    server._busy -= 1

        def _locked_out(self) -> Fault | None:
            given = self.headers.get("Authorization", "")
            if server.key is None or given == f"Bearer {server.key}":
                return None
            return Fault(401, json.dumps({"error": {"message": f"bad key in 'Authorization: {given}'"}}).encode())

        def _send(self, fault: Fault) -> None:
            if fault.how == "hang":
                time.sleep(3600)
            self.send_response(fault.status)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(fault.content)))
            self.end_headers()
            if fault.how == "cut":
                self.wfile.write(fault.content[: len(fault.content) // 2])
                self.close_connection = True
            elif fault.how == "drip":
                for i in range(len(fault.content)):
                    self.wfile.write(fault.content[i : i + 1])
                    self.wfile.flush()
                    time.sleep(0.1)
            else:
                self.wfile.write(fault.content)

    return Handler
