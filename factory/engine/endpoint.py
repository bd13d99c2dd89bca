"""The endpoint engine: any OpenAI-compatible server, asked over HTTP.

What is lost on the way is asked for again. Whether a failure is the request's own or the server's is never guessed: if
nothing else was answered meanwhile, one tiny trial question decides, and while that has no answer either, all requests
wait for it and none is counted as tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from factory.engine import chat
from factory.engine.base import Completion, Request, RequestError
from factory.engine.chat import Fault
from factory.errors import InputError, RunError
from factory.recipe import Variant
from factory.secret import Secret

# Attempts of a request while others succeed around it; of time-outs fewer, since each costs so much.
MAX_ATTEMPTS = 8
MAX_TIMEOUTS = 3
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
LONGEST_TRIAL_WAIT_S = 5.0
# What a server may ask for in Retry-After; some name the end of the day.
LONGEST_ASKED_S = 60.0
TRIAL_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
# Below the 5 s after which uvicorn, vLLM's server, closes an idle connection: a request must not meet the closing.
KEEP_ALIVE_S = 2.0
LARGEST_REPLY = 2**24

log = logging.getLogger(__name__)
# At DEBUG these print whole headers.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


class EndpointEngine:
    """Requests to one server, as many at once as it bears."""

    watched = False  # every wait in here is bounded: a pool that only waits for a server to come back is no hung one

    def __init__(self, name: str, variant: Variant, key: Secret | None) -> None:
        assert variant.url is not None
        self._name = name
        self._model = variant.model
        self._url = variant.url
        self._key = key
        self._timeout = variant.request_timeout
        self._patience = variant.patience
        self._most = variant.max_num_seqs
        self._window = Window(variant.max_num_seqs)
        self._client: httpx.AsyncClient | None = None
        self._answers = 0  # completions and refusals: signs that the server works
        self._revival: asyncio.Task[bool] | None = None

    async def complete(self, request: Request) -> Completion:
        content = chat.body(self._model, request)
        attempts = timeouts = tries = 0
        while True:
            if self._revival is not None:
                await asyncio.shield(self._revival)
            seen = self._answers
            began = time.monotonic()
            try:
                async with self._window.slot():
                    began = time.monotonic()
                    done = await self._ask(content, self._timeout)
            except Fault as fault:
                if fault.kind == "refused":
                    kind = "over_input_limit" if chat.too_long(str(fault)) else "endpoint_refused"
                    raise RequestError(f"{kind}: {fault}") from None
                self._window.shrink(began)
                if fault.kind == "denied" and not self._answers:
                    raise self._denied(fault) from None
                if self._answers > seen or await self._lives():
                    if fault.kind == "denied":  # the server serves others: it dislikes this one
                        raise RequestError(f"endpoint_refused: {fault}") from None
                    attempts += 1
                    timeouts += fault.timed_out
                if attempts >= MAX_ATTEMPTS or timeouts >= MAX_TIMEOUTS:
                    raise RequestError(f"endpoint_failed: {attempts} attempts, the last: {fault}") from None
                await asyncio.sleep(wait(tries, fault.wait, LONGEST_WAIT_S))
                tries += 1
            else:
                self._window.grow()
                return done

    def close(self) -> None:
        """Nothing was started; connections end with the process."""

    async def _ask(self, content: dict[str, Any], timeout: float) -> Completion:
        """One attempt.

        Raises:
            Fault: it gave no completion.
        """
        if self._client is None:  # here, because its connections belong to the running loop
            self._client = httpx.AsyncClient(**settings(self._url, self._key, self._most))
        reply = bytearray()
        try:
            # httpx's own limits are for each read: a server that drips would never time out.
            async with (
                asyncio.timeout(timeout),
                self._client.stream("POST", chat.address(self._url, "chat/completions"), json=content) as response,
            ):
                async for part in response.aiter_bytes():
                    reply += part
                    if len(reply) > LARGEST_REPLY:
                        raise Fault("passing", f"the reply is longer than {LARGEST_REPLY >> 20} MiB")
            if response.status_code != 200:
                raise chat.fault(response.status_code, response.headers, bytes(reply), self._key)
            done = chat.completion(bytes(reply))
        except Fault as fault:
            self._answers += fault.kind == "refused"
            raise
        except (TimeoutError, httpx.TimeoutException):
            raise Fault("passing", f"no answer within {timeout:g} s", timed_out=True) from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Fault("passing", trouble(error, self._key)) from None
        self._answers += 1
        return done

    async def _lives(self) -> bool:
        """Whether the server answers a trial at once; where it does not, waits until it does, together with all others.

        Raises:
            RunError: it had no answer for as long as the recipe's patience.
            InputError: it denies the service.
        """
        if self._revival is None:
            self._revival = asyncio.ensure_future(self._revive())
        return await asyncio.shield(self._revival)

    async def _revive(self) -> bool:
        began = time.monotonic()
        trial = chat.trial(self._model)
        tries = 0
        try:
            while True:
                try:
                    await self._ask(trial, min(self._timeout, TRIAL_TIMEOUT_S))
                    break
                except Fault as fault:
                    if fault.kind == "refused":  # an answer all the same
                        break
                    if fault.kind == "denied" and not fault.absent:
                        raise self._denied(fault) from None
                    out = time.monotonic() - began
                    if out > self._patience:
                        raise RunError(
                            f"variant '{self._name}': {self._url} has completed nothing for {out:.0f} s (patience "
                            f"{self._patience:g}), the last: {fault}; what is stored is kept, and the same command "
                            "goes on from there"
                        ) from None
                    if not tries:
                        log.warning("%s: %s is out: %s", self._name, self._url, fault)
                    pause = wait(tries, fault.wait, LONGEST_TRIAL_WAIT_S)
                    await asyncio.sleep(min(pause, max(0.1, self._patience - out)))
                    tries += 1
        finally:
            self._revival = None
        if tries:
            log.warning("%s: %s is back after %.1f s", self._name, self._url, time.monotonic() - began)
        return not tries

    def _denied(self, fault: Fault) -> InputError:
        return InputError(f"variants.{self._name}: {self._url} serves nothing to us: {fault}")


class Window:
    """How many requests are in flight: one more sixteenth of the most after a round that went well, half after trouble.

    It starts at the most, because servers of our own queue what they cannot do at once and lose nothing by it.
    """

    def __init__(self, most: int) -> None:
        self.size = float(most)
        self._most = most
        self._busy = 0
        self._changed = asyncio.Condition()
        self._halved_at = -1.0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place in the window, in order of arrival, and hold it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._busy < int(self.size))
            self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            async with self._changed:
                self._changed.notify(2)  # the window may have grown by one

    def grow(self) -> None:
        self.size = min(self._most, self.size + max(1.0, self._most / 16) / self.size)

    def shrink(self, began: float) -> None:
        """Halve, once for all requests that were in flight together: not for one that began before the last halving."""
        if began > self._halved_at:
            self._halved_at = time.monotonic()
            self.size = max(1.0, self.size / 2)


def wait(tries: int, asked: float, longest: float) -> float:
    """Seconds before another attempt: at random up to a bound that doubles, so that many do not come back as one."""
    jitter = random.uniform(0, min(longest, FIRST_WAIT_S * 2 ** min(tries, 10)))
    return min(asked, LONGEST_ASKED_S) + jitter


def settings(url: str, key: Secret | None, connections: int, timeout: float | None = None) -> dict[str, Any]:
    """Of a client for one server. It follows no redirect: the key goes to the address of the recipe only."""
    return {
        "headers": chat.headers(key),
        "timeout": httpx.Timeout(timeout, connect=CONNECT_TIMEOUT_S),
        "limits": httpx.Limits(
            max_connections=None, max_keepalive_connections=connections, keepalive_expiry=KEEP_ALIVE_S
        ),
        "trust_env": not _loopback(url),  # proxies are for servers elsewhere
        "follow_redirects": False,
    }


def trouble(error: Exception, key: Secret | None) -> str:
    """A failure of the connection in one line."""
    return chat.line(f"{type(error).__name__}: {error}".rstrip(": "), key)


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
