"""All strategies by name: the six of PopAlign, its baselines and neighbours, and plug-ins.

A plug-in is an entry point of another package in the group ``popalign.strategies``.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from strategies.context_distill import ContextDistill
from strategies.contrast import Strategy
from strategies.delta import Delta
from strategies.demon import Demon
from strategies.elicitive import Elicitive
from strategies.label import Label
from strategies.leaderboard import Leaderboard
from strategies.nparam import NParam
from strategies.prefix import Prefix
from strategies.refine import Refine
from strategies.revise import Revise
from strategies.rlaif import Rlaif
from strategies.rlcd import Rlcd
from strategies.system import System
from strategies.temperature import Temperature
from strategies.worsen import Worsen

# The paper's own.
SIX = ("prefix", "demon", "elicitive", "nparam", "leaderboard", "refine")
BUILT_IN: dict[str, type[Strategy]] = {
    "prefix": Prefix,
    "demon": Demon,
    "elicitive": Elicitive,
    "nparam": NParam,
    "leaderboard": Leaderboard,
    "refine": Refine,
    "rlaif": Rlaif,
    "label": Label,
    "rlcd": Rlcd,
    "system": System,
    "context-distill": ContextDistill,
    "temperature": Temperature,
    "delta": Delta,
    "revise": Revise,
    "worsen": Worsen,
}

GROUP = "popalign.strategies"


def catalogue() -> dict[str, type[Strategy]]:
    """The built-in strategies and the plug-ins; a plug-in cannot take the name of a built-in one.

    Raises:
        ValueError: a plug-in uses a built-in name, or is not a ``Strategy``.
    """
    found = dict(BUILT_IN)
    for point in entry_points(group=GROUP):
        if point.name in BUILT_IN:
            raise ValueError(f"plug-in {point.value} takes the name of the built-in strategy '{point.name}'")
        plugin = point.load()
        if not (isinstance(plugin, type) and issubclass(plugin, Strategy)):
            raise ValueError(f"plug-in {point.value} is not a subclass of strategies.contrast.Strategy")
        if plugin.name != point.name:  # the recipe and the books must use one word for it
            raise ValueError(f"plug-in {point.value} is registered as '{point.name}' but calls itself '{plugin.name}'")
        found[point.name] = plugin
    return found
