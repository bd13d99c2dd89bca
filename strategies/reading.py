"""Reading the answer out of an assistant turn that may hold a thought and a response.

Elicitive and refine ask for ``Thought: ... Response: ...`` (PopAlign, section 3.1); only the response is data.
"""

from __future__ import annotations

import re

from strategies.contrast import Read

# Chat models like to set the markers in bold: **Response:** and **Response**: are the same marker.
MARKER = re.compile(r"\**\b(Thought|Response)\b\**[ \t]*:\**")


def answer(text: str, read: Read, prefill: str = "") -> str | None:
    """The part of an assistant turn that ``read`` names, stripped, or ``None`` where the turn does not hold it.

    ``text`` is what the model wrote after ``prefill``. The whole answer is the text alone, which cuts an affix; a
    thought or a response may have its marker in the prefill.
    """
    if read == "whole":
        return text.strip()
    return _response(prefill + text) if read == "response" else _thought(prefill + text)


def _response(turn: str) -> str | None:
    """The text after the last ``Response:``, cut at a further ``Thought:``."""
    markers = list(MARKER.finditer(turn))
    responses = [marker for marker in markers if marker[1] == "Response"]
    if not responses:
        return None
    start = responses[-1].end()
    end = min((marker.start() for marker in markers if marker.start() >= start), default=len(turn))
    return turn[start:end].strip()


def _thought(turn: str) -> str | None:
    """The text after the first ``Thought:``, cut at the next marker."""
    markers = list(MARKER.finditer(turn))
    if not markers or markers[0][1] != "Thought":
        return None
    end = markers[1].start() if len(markers) > 1 else len(turn)
    return turn[markers[0].end() : end].strip()
