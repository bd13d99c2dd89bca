"""What is checked of an endpoint before anything starts: it answers, serves the model, and takes what will be asked."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import httpx

from factory.engine import chat
from factory.engine.base import Request
from factory.engine.chat import Fault
from factory.engine.endpoint import settings, trouble
from factory.errors import InputError, nearest
from factory.recipe import Variant
from factory.secret import from_environment

# The first token of a server that has just started takes long; one that is not there fails at once.
TIMEOUT_S = 60.0
ATTEMPTS = 3
WAIT_S = 1.0


class Server:
    """Questions to the server of one variant. Every method raises ``InputError`` where it gives no answer."""

    def __init__(self, name: str, variant: Variant) -> None:
        assert variant.url is not None
        self._key_of_recipe = f"variants.{name}"
        self._variant = variant
        self._url = variant.url
        self._key = from_environment(f"{self._key_of_recipe}.api_key_env", variant.api_key_env)
        self._client = httpx.Client(**settings(self._url, self._key, 1, min(TIMEOUT_S, variant.request_timeout)))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def require_model(self) -> None:
        """The server lists the model; a server without a list is asked for a token later anyway."""
        try:
            listed = json.loads(self._ask("GET", "models"))["data"]
            served = {str(model["id"]): model for model in listed}
        except Fault as fault:
            if fault.absent:
                return
            raise self._error("url", fault) from None
        except (ValueError, KeyError, TypeError):
            return
        model = self._variant.model
        if served and model not in served:
            raise InputError(f"{self._key_of_recipe}.model: {self._url} serves no '{model}'{nearest(model, served)}")

    def require_service(self, asked: Sequence[Request]) -> None:
        """A request with every field that the run's requests will have is served, and not refused for one of them."""
        fields: dict[str, Any] = {}
        for request in asked:
            fields |= chat.body(self._variant.model, request)
        for prefill in ("continue_final_message", "add_generation_prompt"):
            fields.pop(prefill, None)
        if "min_tokens" in fields:
            fields["min_tokens"] = 1
        try:
            chat.completion(self._ask("POST", "chat/completions", {**fields, **chat.trial(self._variant.model)}))
        except Fault as fault:
            raise self._error("url", fault) from None

    def prefills(self) -> bool:
        """Whether the server continues an assistant turn that is opened: servers that do not know the wish ignore it.

        Then they close the turn and open another, as without it, and count the same tokens for the prompt.
        """
        turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "(a prefill)"}]
        closed = {**chat.trial(self._variant.model), "messages": turns}
        opened = {**closed, "continue_final_message": True, "add_generation_prompt": False}
        try:
            counts = [
                chat.completion(self._ask("POST", "chat/completions", content)).prompt_tokens
                for content in (opened, closed)
            ]
        except Fault as fault:
            if fault.kind == "refused":
                return False
            raise self._error("url", fault) from None
        return 0 < counts[0] < counts[1]

    def _error(self, field: str, fault: Fault) -> InputError:
        where = f"{self._key_of_recipe}.{field}: {self._url}"
        if fault.kind == "refused":
            return InputError(f"{where} refuses requests such as this recipe's: {fault}")
        hint = "; does the url end with /v1?" if fault.absent and not self._url.rstrip("/").endswith("/v1") else ""
        return InputError(f"{where} serves nothing to us: {fault}{hint}")

    def _ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> bytes:
        for attempt in range(ATTEMPTS):
            try:
                return self._attempt(method, path, content)
            except Fault as fault:
                if fault.kind != "passing" or fault.timed_out or attempt == ATTEMPTS - 1:
                    raise
            time.sleep(WAIT_S)
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, method: str, path: str, content: dict[str, Any] | None) -> bytes:
        try:
            response = self._client.request(method, chat.address(self._url, path), json=content)
        except httpx.TimeoutException as error:
            raise Fault("passing", trouble(error, self._key), timed_out=True) from None
        except httpx.HTTPError as error:
            raise Fault("passing", trouble(error, self._key)) from None
        if response.status_code != 200:
            raise chat.fault(response.status_code, response.headers, response.content, self._key)
        return response.content
