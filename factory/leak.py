"""Leaks: what steered a generation, or belongs to the form of a chat, is still in the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from factory.text import WORD, Text, normal
from strategies.preset import Preset
from strategies.reading import MARKER

# A short affix such as "(bad response)" is matched as it stands; of long texts a run of this many words is enough, and
# of demonstrations one of fewer, if one of its words is no small one: "keep a sourdough starter alive" and its like
# stand in no answer to other questions (0 of 1,872).
LEAK_WORDS = 8
DEMONSTRATION_WORDS = 5
LONG_WORD = 5
# A thought that is repeated is known by its opening; shorter ones are everyday phrases.
THOUGHT_WORDS = 5

# Chat templates and tokenizers: ChatML, Llama 2 to 4, Gemma, Phi, Vicuna, DeepSeek (full-width bars), Mistral, T5, GLM.
TOKEN = re.compile(
    r"<\|[A-Za-z0-9_ /:.-]{1,40}\|>"
    r"|<｜[^｜<>\n]{1,40}｜>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK|sop|PAD|UNK|BOS|EOS)\]"
    r"|<</?SYS>>"
    r"|</?(?:start_of_turn|end_of_turn|tool_call|tool_response|bos|eos|pad|unk)>"
    r"|<(?:unused|extra_id_|reserved_|special_)\w*>|<0x[0-9A-F]{2}>"
)
# HTML's strike-through is written in the same way, mostly as code.
SENTENCE = re.compile(r"</?s>")
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)

# "User:" as a speaker, "### Instruction" as Alpaca has it, and what is left of ChatML where its tokens were dropped.
# "Instructions:" is a heading of every second recipe, "Input:" of every second program; neither is looked for.
SPEAKER = re.compile(
    r"(?<![\w/.@-])\**(?:(User|USER|Human|HUMAN|Assistant|ASSISTANT|AI Assistant|Instruction|INSTRUCTION)\**[ ]?:"
    r"|(System|SYSTEM)\**[ ]?: ?(?=You are))(?!:)"
)
# The system message that a template writes where there is none, given back as an answer: 38 of 711 kept pairs.
SYSTEM = re.compile(
    r"\b[Yy]ou are (?:an?|the) (?:\w+ )?(?:helpful|AI) (?:\w+ )?(?:assistant|tool|model|system|chatbot)\b"
)
HEADING = re.compile(
    r"^[ ]{0,3}#{2,}[ ]*(?:(?:Instruction|Response|Human|User|Assistant|System)\b[ ]*:?|Input[ ]*:)", re.MULTILINE
)
BARE = re.compile(r"^(?:assistant|user|system|model)[ ]*$", re.MULTILINE)
# "Write a dialogue between a user and an assistant" asks for speakers.
DIALOGUE = re.compile(r"\b(?:dialog|conversation|chat|transcript|script|interview|role.?play|exchange)", re.IGNORECASE)
ROLES = re.compile(r"\b(?:user|human|assistant|ai|chat ?bot|robot)s?\b", re.IGNORECASE)

# "Here's a better response:" is said by an answer to an instruction that asked for one. Of some 2,400 answers of the
# embedded model 343 say so or alike, and none of 1,872 that were written for bare prompts.
META = re.compile(
    r"\b(?:better|best|improved|revised|good|great|bad|worse|(?:un)?helpful|harm(?:ful|less)) "
    r"(?:response|answer|reply)\b"
    r"|\b(?:original|initial|previous|provided|given|above) response\b|\byour response\b"
    r"|\bthis response (?:is|was|does|has|isn't|doesn't|contains|uses|provides|follows)\b"
    # "Tell me more, so that I can give a more accurate response" is not said of the answer itself.
    r"|\b(?:here(?:'s| is)|this is) (?:a|the) (?:\w+ )?more \w+ (?:response|answer|reply)\b"
    r"|\b(?:response|answer) (?:is|that is|would be) (?:(?:not|very|so|too) )?(?:better|good|bad)\b",
    re.IGNORECASE,
)
# "How do I respond to ...?" asks about responses; "Answer in two sentences." does not.
ASKS = re.compile(r"\b(?:respon[ds]|repl[iy]|answer(?:s|ed|ing)|an answer|interview|feedback)", re.IGNORECASE)

END = re.compile(r"(?<=[.!?])\s+")
THINKING = re.compile(r"</?(?:think|thinking|thought|reasoning|scratchpad|reflection)>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Leaks:
    """The detectors of one preset, by kind; none of them counts what stands in the prompt itself."""

    phrases: Mapping[str, Sequence[str]]
    """By the longest word of each: an answer has the word of a few of 500 phrases, and only those are looked for."""
    kinds: frozenset[str]

    @classmethod
    def of(cls, preset: Preset, kinds: Collection[str]) -> Leaks:
        phrases: dict[str, list[str]] = {}
        shown = {text for each in preset.demonstrations for text in (each.question, each.good, each.bad)}
        runs = [(text, DEMONSTRATION_WORDS if text in shown else LEAK_WORDS) for text in preset.phrases]
        for phrase in dict.fromkeys([part for text, run in runs for part in _parts(text, run)] + _sentences(preset)):
            phrases.setdefault(max(WORD.findall(phrase), key=len, default=""), []).append(phrase)
        return cls(phrases, frozenset(kinds))

    def kind(self, answer: Text, asked: Text, thought: str | None = None) -> str | None:
        """The first kind of leak that the answer holds: `form`, `steering`, `meta`, `token`, `role` or `thought`."""
        tests: dict[str, Callable[[], bool]] = {
            "form": lambda: MARKER.search(answer.raw) is not None,
            "steering": lambda: self._steers(answer, asked),
            "meta": lambda: META.search(answer.raw) is not None and not ASKS.search(asked.raw),
            "token": lambda: _token(answer.raw, asked.raw),
            "role": lambda: _role(answer.raw, asked.raw),
            "thought": lambda: _thinks(answer, asked, thought),
        }
        return next((kind for kind, holds in tests.items() if kind in self.kinds and holds()), None)

    def _steers(self, answer: Text, asked: Text) -> bool:
        text, prompt = answer.normal, asked.normal
        candidates = (phrase for word in ("", *answer.vocabulary) for phrase in self.phrases.get(word, ()))
        return any(phrase in text and phrase not in prompt and _stands_in(phrase, text) for phrase in candidates)


def _token(answer: str, asked: str) -> bool:
    if "<" not in answer and "[" not in answer:
        return False
    if any(match[0] not in asked for match in TOKEN.finditer(answer)):
        return True
    return "s>" in answer and "<s>" not in asked and SENTENCE.search(CODE.sub(" ", answer)) is not None


def _role(answer: str, asked: str) -> bool:
    if any(normal(match[0]) not in normal(asked) for match in HEADING.finditer(answer)):
        return True
    if any(match[0] not in asked.split("\n") for match in BARE.finditer(answer)):
        return True
    if SYSTEM.search(answer) and not SYSTEM.search(asked):
        return True
    if not (speakers := {(match[1] or match[2]).casefold() for match in SPEAKER.finditer(answer)}):
        return False
    given = {(match[1] or match[2]).casefold() for match in SPEAKER.finditer(asked)}
    return not speakers <= given and not (DIALOGUE.search(asked) and ROLES.search(asked))


def _thinks(answer: Text, asked: Text, thought: str | None) -> bool:
    """A reasoning model's tags, or the opening of the thought that came before this very answer."""
    if any(match[0] not in asked.raw for match in THINKING.finditer(answer.raw)):
        return True
    opening = normal(thought or "").split()[:LEAK_WORDS]
    if len(opening) < THOUGHT_WORDS:
        return False
    phrase = " ".join(opening)
    return phrase in answer.normal and phrase not in asked.normal


def _stands_in(phrase: str, text: str) -> bool:
    """Whether whole words of the text are the phrase: "use exactly this form" is not in "use exactly this formula"."""
    end = r"(?!\w)" if phrase[-1].isalnum() else ""
    return re.search(rf"(?<!\w){re.escape(phrase)}{end}", text) is not None


def _parts(phrase: str, run: int) -> list[str]:
    """A short phrase whole; a long one as its runs of that many words, less those of small words only."""
    words = normal(phrase).split()
    if len(words) <= LEAK_WORDS:
        # Single demonstration sentences can be everyday questions; the affix with its brackets never is.
        return [" ".join(words)]
    runs = [words[i : i + run] for i in range(len(words) - run + 1)]
    return [" ".join(found).rstrip(",;:") for found in runs if max(map(len, found)) >= LONG_WORD]


def _sentences(preset: Preset) -> list[str]:
    """The sentences of instructions and demonstrated answers, of four words at least: a weak model repeats "Use exactly
    this form" or "Just throw it out" alone."""
    texts = [template.instruction for template in preset.templates]
    texts += [text for each in preset.demonstrations for text in (each.good, each.bad)]
    sentences = [normal(sentence).rstrip(":") for text in texts for sentence in END.split(text)]
    return [sentence for sentence in sentences if len(sentence.split()) >= 4]
