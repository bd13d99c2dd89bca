"""Keys of servers: read from the environment of the command alone, and never shown."""

from __future__ import annotations

import os
import re

from factory.errors import InputError

# What a bearer token is made of. A line break would come back in the HTTP client's own error, key and all.
PRINTABLE = re.compile(r"^[\x21-\x7e]+$")


class Secret:
    """A key that travels to the pools' actors, which do not have the driver's environment.

    Neither ``repr`` nor ``str`` shows it: whatever logs, prints or formats the values around it prints ``***``.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "***"

    def reveal(self) -> str:
        """The key itself, for the request's header and nothing else."""
        return self._value

    def redact(self, text: str) -> str:
        """The text without the key: servers quote headers in their errors."""
        return text.replace(self._value, "***")


def from_environment(where: str, variable: str | None) -> Secret | None:
    """The key in an environment variable; None where the recipe names none.

    Raises:
        InputError: the variable is not set, or holds what no key is made of; ``where`` is the recipe's key.
    """
    if variable is None:
        return None
    value = os.environ.get(variable, "").strip()
    if not value:
        raise InputError(f"{where}: the environment variable {variable} is not set; export the server's key in it")
    if not PRINTABLE.match(value):
        raise InputError(f"{where}: the environment variable {variable} holds what no key is made of")
    return Secret(value)
