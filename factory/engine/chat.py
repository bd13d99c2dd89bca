"""The wire of OpenAI-compatible servers: a request's body, a reply's completion, and what each failure means.

No I/O here: the engine and the check before a run share it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from factory.engine.base import Completion, Request
from factory.secret import Secret

# passing: asking again can help. refused: this request can never succeed. denied: none can (key, model, address).
Kind = Literal["passing", "refused", "denied"]
PASSING = {408, 409, 425, 429}
REFUSED = {400, 413, 414, 415, 422, 451}
# vLLM, SGLang and OpenAI say so in a 400.
TOO_LONG = ("context length", "context_length", "max_model_len", "too many tokens")
LONGEST_MESSAGE = 200


class Fault(Exception):
    """An attempt that gave no completion; the message is one line without secrets."""

    def __init__(
        self, kind: Kind, message: str, *, wait: float = 0.0, timed_out: bool = False, absent: bool = False
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.absent = absent  # nothing is at the address; a gateway says so too while the server behind it restarts
        self.wait = wait  # seconds that the server asks for
        self.timed_out = timed_out


def address(url: str, path: str) -> str:
    """``http://host/v1`` and ``models`` -> ``http://host/v1/models``."""
    return f"{url.rstrip('/')}/{path}"


def headers(key: Secret | None) -> dict[str, str]:
    """What goes with every request."""
    return {} if key is None else {"Authorization": f"Bearer {key.reveal()}"}


def body(model: str, request: Request) -> dict[str, Any]:
    """The JSON of a request; what the recipe leaves open is left to the server's own defaults."""
    turns = [{"role": role, "content": content} for role, content in request.messages]
    wanted = request.sampling
    optional = {
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "max_tokens": wanted.max_tokens,
        "stop": list(wanted.stop or ()) or None,
        # Of vLLM and SGLang; sent only where the recipe or a strategy asks for them.
        "repetition_penalty": wanted.repetition_penalty,
        "min_tokens": wanted.min_tokens or None,
        "bad_words": list(wanted.bad_words or ()) or None,
    }
    content: dict[str, Any] = {
        "model": model,
        "messages": turns,
        "seed": request.seed,
        **{name: value for name, value in optional.items() if value is not None},
    }
    if request.prefill:
        turns.append({"role": "assistant", "content": request.prefill})
        content |= {"continue_final_message": True, "add_generation_prompt": False}
    return content


def trial(model: str) -> dict[str, Any]:
    """The least that can be asked: one token."""
    return {"model": model, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}


def completion(content: bytes) -> Completion:
    """The completion in a reply with status 200.

    Raises:
        Fault: the reply is garbage, or was cut off, or the server withholds the text.
    """
    try:
        reply = json.loads(content)
        choice = reply["choices"][0]
        text = choice["message"].get("content") or ""
        usage = reply.get("usage") or {}
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        finish = choice.get("finish_reason") or "stop"
        if not isinstance(text, str) or not isinstance(finish, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise Fault("passing", "the reply is no chat completion") from None
    if finish == "content_filter":
        raise Fault("refused", "the server's content filter withholds the answer")
    if finish in {"abort", "error"}:  # a server that is going down ends its requests so
        raise Fault("passing", f"the server ended the answer with '{finish}'")
    return Completion(text, "length" if finish == "length" else "stop", counts[0], counts[1], cached)


def fault(status: int, reply_headers: Mapping[str, str], content: bytes, key: Secret | None) -> Fault:
    """What a reply with another status than 200 means."""
    said = message(content, key)
    text = f"the server answers {status}{f': {said}' if said else ''}"
    if status in PASSING or status >= 500:
        return Fault("passing", text, wait=retry_after(reply_headers.get("retry-after")))
    if status in REFUSED:
        return Fault("refused", text)
    return Fault("denied", text, absent=status == 404)


def message(content: bytes, key: Secret | None) -> str:
    """The server's own words in one short line."""
    text = content.decode(errors="replace")
    try:
        reply = json.loads(text)
        error = reply.get("error", reply)
        text = str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        pass
    return line(text, key)


def line(text: str, key: Secret | None) -> str:
    """A text in one short line without the key, which goes first: what is cut off would no longer be recognised."""
    text = " ".join((text if key is None else key.redact(text)).split())
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 3]}..."


def retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, which holds seconds or a date; 0 where there is none to understand."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def too_long(text: str) -> bool:
    """Whether a refusal means that the prompt is longer than the model reads."""
    return any(phrase in text.lower() for phrase in TOO_LONG)
