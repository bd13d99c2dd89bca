"""Loading the wording of the contrasts: the two presets of the paper, or a user's file of the same form."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from factory.errors import InputError, nearest
from strategies.preset import Preset

PRESETS = ("alignment", "leaderboard")


def load_preset(name: str) -> Preset:
    """The preset of that name, or of the YAML file at that path.

    Raises:
        InputError: neither a preset nor a readable file, or the file's form is wrong.
    """
    if name in PRESETS:
        text = (files("strategies") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).suffix in {".yaml", ".yml"}:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"preset: cannot read {name}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(f"preset: {name} is not UTF-8 text") from None
    else:
        raise InputError(f"preset: unknown preset '{name}'{nearest(name, PRESETS)} (or the path of a .yaml file)")
    try:
        return _parse(Path(name).stem, yaml.safe_load(text))
    except (KeyError, TypeError, ValidationError, yaml.YAMLError) as error:
        raise InputError(f"preset: {name}: {_first_line(error)}; start from strategies/presets/*.yaml") from None


def _parse(name: str, data: dict[str, Any]) -> Preset:
    preset = TypeAdapter(Preset).validate_python(
        {
            "name": name,
            "affix": data["affix"],
            "nparam_affix": data["nparam_affix"],
            "demonstrations": tuple(data["demonstrations"]),
            "elicitive_chosen": data["elicitive"]["chosen"],
            "elicitive_rejected": data["elicitive"]["rejected"],
            "refine": data["refine"],
            "criterion": data.get("criterion", "better"),
            **{section: data[section] for section in Preset.SECTIONS if data.get(section)},
        }
    )
    if len(preset.demonstrations) != 3:
        raise TypeError(f"{len(preset.demonstrations)} demonstrations; the method takes exactly 3")
    return preset


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return str(error).splitlines()[0]
