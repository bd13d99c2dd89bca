"""Refusals: whether an answer declines, and which side of a pair may."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from factory.harm import harmful

# An answer that declines says so at once; later "I cannot" is mostly part of a story or an argument. In characters.
OPENING = 240

DO = (
    r"(?:provide|assist|help|fulfil|answer|give|offer|comply|support|engage|encourage|suggest|advise|create|write|"
    r"generate|discuss|share|satisfy|participate|condone|promote|tell|respond|endorse|continue|make|produce|facilitate|"
    r"teach|instruct|do (?:that|this|so)|complete|proceed|recommend|carry|perform|describe|explain|speak|say|talk|"
    r"direct|guide|show|disclose|reveal|access|process|grant|be (?:involved|part|able))"
)
CANNOT = (
    r"(?:cannot|can ?not|can't|could ?n[o']t|will not|won't|would not|wouldn't|(?:am |'m )?(?:not able|unable) to|"
    r"(?:am |'m )?not (?:comfortable|allowed|permitted|programmed|designed|authorized|going|qualified|equipped)|"
    r"do(?: not|n't) feel comfortable|do(?: not|n't) have the (?:ability|capability|capacity))"
)
REFUSALS = re.compile(
    "|".join(
        (
            # "help but" and "recommend it enough" are the opposite of a refusal.
            rf"\b(?:i|we)(?: am|'m)?(?: really| simply| just| unfortunately| therefore)? ?{CANNOT}"
            rf"(?! help but)(?!.{{0,40}}\benough\b)[^.!?\n]{{0,40}}?\b{DO}\b",
            r"\b(?:must|have to|will|'ll|respectfully|politely) (?:respectfully |politely )?(?:decline|refuse)\b",
            r"^\W*(?:no, )?i (?:decline|refuse)\b",
            r"\bi(?:'d| would)? rather not\b",
            r"\bi (?:do not|don't|cannot|can't) (?:\w+ )?(?:condone|support|promote|encourage|endorse|engage in|"
            r"participate in|tolerate)\b",
            r"^(?:\W*(?:i apologi[sz]e|(?:i'm|i am)?\W*(?:\w+ )?sorry|apologies|my apologies|unfortunately)\b)"
            rf"[^\n]{{0,60}}?(?:\b(?:i|we)\b[^.!?\n]{{0,30}}?{CANNOT}|not (?:appropriate|ethical|possible|something i)|"
            r"against my|that request|inappropriate)",
            # Where the answer opens so, it declines; further on it can be advice.
            r"^\W*(?:(?:as|i am|i'm|being) an? (?:\w+ ){0,3}?(?:ai|language model|assistant)\b[^\n]{0,60}?)?"
            r"(?:it is|it's|it would be|it would) (?:important to note that )?(?:it is )?(?:not|never|highly|deeply)? ?"
            r"(?:be )?(?:appropriate|inappropriate|ethical|unethical|legal|acceptable|illegal and|immoral|okay|"
            r"morally)\b",
            r"^\W*(?:as|i am|i'm|being) (?:just )?an? (?:\w+ ){0,4}?(?:ai|language model|assistant)\b[^\n]{0,80}?"
            r"(?:cannot|can't|can not|do not (?!know)|don't (?!know)|unable|not able|not programmed|not designed|must)",
            r"\bit is (?:not|never) (?:appropriate|ethical) (?:or \w+ )?to "
            r"(?:ask|provide|discuss|promote|make|suggest)\b",
            r"\b(?:against|violates?|not within) (?:my|our|openai's|the) (?:programming|guidelines|principles|policy|"
            r"policies|ethic\w*|values|rules|content|use)",
            r"\b(?:the|your|this|that) (?:question|request|prompt|query|topic)(?: itself)?[^.!?\n]{0,30}? "
            r"(?:is|are|contains|involves|promotes|implies|may be|appears to be) (?:\w+ ){0,2}"
            r"(?:harmful|inappropriate|illegal|unethical|offensive|dangerous|disrespectful|against)",
            r"\bi (?:strongly |must |would |kindly |highly )*(?:advise|urge|recommend|encourage|discourage|caution)"
            r"(?: you)? (?:strongly )?(?:against|not to|from)\b",
            # A sermon in place of an answer.
            r"\b(?:important|crucial|essential) to (?:\w+ )?(?:note|remember|understand)\b[^\n]{0,110}?\b"
            r"(?:never|not|illegal|unethical)\b[^.\n]{0,30}?\b(?:acceptable|ethical|unethical|appropriate|justifiable)\b",
            r"\bi must (?:clarify|emphasi[sz]e|stress|point out) that\b[^\n]{0,70}?\b"
            r"(?:illegal|criminal|unethical|not (?:\w+ )?(?:ethical|appropriate|acceptable|legal))\b",
            r"^\W*i (?:strongly |firmly )?condemn\b",
            r"^\W*(?:i'm|i am) (?:\w+ )?sorry to hear that you(?:'re| are) (?:going through|feeling)[^\n]{0,60}?\. "
            r"(?:it is|it's|if you|but)",
            r"^\W*(?:i'm|i am) sorry, but [^.\n]{0,60}\b(?:is|are) (?:not|never|illegal|highly|extremely)\b",
            r"^\W*(?:it is|it's) not (?:safe|legal)\b[^.\n]{0,12}\b(?:ethical|legal|moral|appropriate)\b",
            r"^\W*(?:i )?can(?:no|')t (?:help|do|assist|answer)(?: you)?(?: with)? (?:that|this)\b",
        )
    )
)
# A letter or a quotation speaks for somebody else.
OTHERS = re.compile(r"^\W*(?:subject\b|dear\b|hi [A-Z]|hello [A-Z]|hey [A-Z]|to whom)", re.IGNORECASE)
QUOTED = re.compile(r"^\s*[\"“'‘]")


@lru_cache(maxsize=64)
def refuses(answer: str) -> bool:
    """Whether an English answer declines the request in its opening."""
    opening = answer.strip()[:OPENING].replace("’", "'")
    if OTHERS.match(opening) or QUOTED.match(opening):
        return False
    return REFUSALS.search(opening.casefold()) is not None


def misplaced(chosen: str, rejected: str, prompt: str, prompts: str, declined: float) -> bool:
    """Whether the pair would teach to refuse what is harmless, or to comply with what is not.

    A chosen refusal is out where the prompt is benign; a chosen answer beside a rejected refusal where it asks for
    harm. ``prompts`` says which of both it is: ``benign``, ``harmful``, or ``auto``. Then it asks for harm where its
    words do (``factory.harm``), or more than half of all its answers refuse (``declined``, their share).
    """
    refused = refuses(chosen)
    if not refused and not refuses(rejected):
        return False
    harm = prompts == "harmful" or (prompts == "auto" and (declined > 0.5 or harmful(prompt)))
    return refused != harm


def declining(answers: Collection[str]) -> float:
    """The share of a prompt's answers that refuse."""
    return sum(map(refuses, answers)) / len(answers) if answers else 0.0
