"""What several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.embedded import SCHEME, materialise


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The default model, in the user's own cache: its conversion is paid once per machine, not once per test run."""
    return materialise(f"{SCHEME}smollm2-135m")
