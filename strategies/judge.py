"""Asking a language model which of two answers is the better one, in both orders.

A judge prefers what stands first, and what is longer (12.9 % of verdicts flip when the answers change places; FastChat,
issue 3911). Hence two verdicts a pair: where they disagree, the pair is a tie.
"""

from __future__ import annotations

import re
from typing import Literal

from strategies.contrast import Generation, Message, Reply, Sampling

Verdict = Literal["chosen", "rejected", "tie"]

VERDICT = re.compile(r"\bverdict\b[\s*_:\"']*(?:answer\s+|response\s+)?[\[(\"'*]*(A|B|tie)\b", re.IGNORECASE)
INSTRUCTION = (
    "Two assistants answered the request below. Decide which answer is {criterion} for the person who asked. Judge "
    "what the answers say, not their length and not the order in which they stand; where neither is better, say tie. "
    "First give your reason in one or two sentences. Then end with a line that reads exactly 'Verdict: A', "
    "'Verdict: B' or 'Verdict: tie'.\n\n"
)
VERDICT_TOKENS = 256


def verdicts(
    judge: str, criterion: str, prompt: tuple[Message, ...], chosen: Generation, rejected: Generation
) -> tuple[Generation, Generation]:
    """What a judge is asked about two answers: the chosen one first, then the rejected one first. Greedy."""
    return (_asked(judge, criterion, prompt, chosen, rejected), _asked(judge, criterion, prompt, rejected, chosen))


def _asked(
    judge: str, criterion: str, prompt: tuple[Message, ...], first: Generation, second: Generation
) -> Generation:
    request = "\n\n".join(f"[{message.role}]\n{message.content}" for message in prompt)
    content = (
        INSTRUCTION.replace("{criterion}", criterion),
        f"<request>\n{request}\n</request>\n\n",
        Reply(first, before="<answer A>\n", after="\n</answer A>\n\n"),
        Reply(second, before="<answer B>\n", after="\n</answer B>"),
    )
    sampling = Sampling(temperature=0.0, max_tokens=VERDICT_TOKENS)
    return Generation(judge, (Message("user", content),), sampling=sampling)


def reading(chosen_first: str | None, rejected_first: str | None) -> Verdict | None:
    """The verdict of both orders together; ``None`` where either cannot be read."""
    votes = []
    for text, letter in ((chosen_first, "A"), (rejected_first, "B")):
        found = VERDICT.findall(text or "")
        if not found:
            return None
        last = found[-1].upper()
        votes.append("tie" if last == "TIE" else "chosen" if last == letter else "rejected")
    if votes[0] != votes[1]:
        return "tie"
    return votes[0]  # type: ignore[return-value]  # one of the three


def reason(text: str) -> str:
    """What a judge said before its verdict."""
    found = [*VERDICT.finditer(text)]
    return text[: found[-1].start()].strip() if found else text.strip()
