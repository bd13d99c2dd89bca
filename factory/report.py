"""``report.html``: one file that shows a run and lets its pairs be read, offline, however hostile their text.

The texts are model output. They stand in a block of JSON with every character escaped that could end it, and the page's
script sets them as text only. The page's policy (CSP) allows its own script and style, by hash, and nothing else: no
request, no inline handler, no HTML made from strings.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from factory import plot
from factory.account import Json, account
from factory.place import Place
from factory.run import Run, now
from factory.survey import MAX_SAMPLE, SCORES, Stratum, sample, survey
from factory.terminal import duration

NAME = "report.html"
# Of the pairs in the page, so that the whole stays below 5 MB.
MAX_BYTES = 4_000_000
# Characters of one text; some 5,000 tokens. Longer ones are cut, and say so.
MAX_TEXT = 20_000
# Characters that could end a script block or, in old parsers, a line of script.
ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
FIELDS = (
    *("pair_id", "strategy", "level", "split", "status", "reason", "sample"),
    *("chosen_variant", "rejected_variant", "chosen_tokens", "rejected_tokens", *SCORES, "judge_reason"),
)


def write_report(run: Run, progress: Callable[[int], None] = lambda done: None) -> Place:
    """Make the report of a run that has pairs, and say where it is.

    Raises:
        InputError: the run has no pairs, or they are of an older recipe.
    """
    pairs = run.current("pairs", f"pairs {run.path}")
    found = survey(pairs, progress)
    figures = account(run, found)
    texts, shown = fitting(sample(pairs, found, MAX_SAMPLE))
    figures["sample"] = {"shown": shown, "of": found.num_pairs, "scores": sorted(found.columns)}
    figures["differences"] = found.differences
    target = run.path / NAME
    target.write(render(figures, texts, losses(run)).encode())
    return target


def fitting(rows: dict[Stratum, list[Json]]) -> tuple[str, int]:
    """A sample as JSON below ``MAX_BYTES``, and how many pairs it holds; of each stratum the first ones."""
    texts = {stratum: [script_json(_pair(row)) for row in mine] for stratum, mine in rows.items()}
    room = MAX_SAMPLE
    while True:
        chosen = [(i, stratum, text) for stratum, mine in texts.items() for i, text in enumerate(mine[:room])]
        size = sum(len(text.encode()) + 2 for _, _, text in chosen)
        if size <= MAX_BYTES:
            break
        room = min(room - 1, max(1, int(room * MAX_BYTES / size)), max(map(len, texts.values())) - 1)
    # The first of each stratum, then the second of each: what is rare comes early.
    chosen.sort(key=lambda item: item[:2])
    return "[" + ",\n".join(text for _, _, text in chosen) + "]", len(chosen)


def _pair(row: Json) -> Json:
    """A row of the page: turns with their texts cut, and what there is of the other columns."""
    out = {name: row[name] for name in FIELDS if row.get(name) is not None}
    for side in ("prompt", "chosen", "rejected"):
        out[side] = [_turn(turn["role"], turn["content"] or "") for turn in row[side] or []]
    return out


def _turn(role: str, text: str) -> Json:
    cut = {"cut": len(text)} if len(text) > MAX_TEXT else {}
    return {"role": role, "content": text[:MAX_TEXT], **cut}


def script_json(value: Any) -> str:
    """JSON that is safe inside a script block: nothing in it can end the block."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(ESCAPES)


def losses(run: Run) -> list[Json]:
    """The steps of the training that logged a loss, where the log is on this machine and of the run's model."""
    path = run.logs / "train.jsonl"
    if "model" not in run.manifest or not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return [row for row in rows if "loss" in row]


def render(figures: Json, pairs: str, steps: list[Json]) -> str:
    """The page, from the figures, the sample as JSON and the logged steps of the training."""
    folder = files("factory") / "templates"
    style, script = ((folder / name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, number=number, signed=signed, duration=duration)
    environment.globals.update(plot=plot)
    differences = figures.pop("differences")
    return environment.from_string((folder / "report.html").read_text("utf-8")).render(
        **figures,
        differences=differences,
        reach=reach(differences),
        steps=steps,
        now=now(),
        style=Markup(style),
        script=Markup(script),
        style_hash=digest(style),
        script_hash=digest(script),
        pairs_json=Markup(pairs),
        figures_json=Markup(script_json(figures)),
    )


def reach(differences: dict[str, dict[int, int]]) -> int:
    """How far the plots of length differences go: 98 % of all pairs lie within, and a bar is a whole number of tokens.

    An odd number, so that as many bars stand on either side of the one around zero.
    """
    sizes: dict[int, int] = {}
    for counts in differences.values():
        for difference, n in counts.items():
            sizes[abs(difference)] = sizes.get(abs(difference), 0) + n
    total, inside = sum(sizes.values()), 0
    for size in sorted(sizes):
        inside += sizes[size]
        if inside >= 0.98 * total:
            step = -(-(2 * size + 1) // plot.HISTOGRAM_BARS)
            return (plot.HISTOGRAM_BARS * (step + 1 - step % 2) - 1) // 2
    return plot.HISTOGRAM_BARS // 2


def digest(text: str) -> str:
    """The source expression of a content-security policy for an inline block."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def percent(value: float | None) -> str:
    """``81 %``, with a digit more below ten and above ninety, where it matters; an en dash of nothing."""
    if value is None:
        return "–"
    digits = 1 if 0 < value < 0.0995 or 0.9005 < value < 1 else 0
    return f"{100 * value:.{digits}f} %"


def number(value: float) -> str:
    """``1,234``, ``12.3``; with a minus sign, not a hyphen."""
    text = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.1f}"
    return text.replace("-", "−")


def signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")
