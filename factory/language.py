"""The language of a text by its script and, in Latin script, by its small words; and answers in another than asked for.

No library: py3langid needs 0.6 ms for a text and 3 s to start in every worker, lingua 96 MB. What is asked here is less
than they can: two texts, and only whether they surely differ.
"""

from __future__ import annotations

import re
from collections import Counter

# Enough to tell, and a bound for the cost of long answers. In characters.
LOOKED_AT = 1500
# Of the letters; below it a text is a mixture and has no language.
MAIN_SCRIPT = 0.6
MIN_LETTERS = 6
# Small words that must be there: so many different ones ("a" and "to" are words of half of these languages), as a share
# of all words, and times the next best language's.
MIN_WORDS = 3
MIN_SHARE = 0.18
LEAD = 1.6

CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
LATIN = "latin"
SCRIPTS = {
    "han": r"[\u3400-\u9fff]+",
    "ja": r"[\u3040-\u30ff]+",
    "ko": r"[\u1100-\u11ff\uac00-\ud7af]+",
    "cyrillic": r"[\u0400-\u052f]+",
    "greek": r"[\u0370-\u03ff]+",
    "arabic": r"[\u0600-\u06ff\u0750-\u077f]+",
    "hebrew": r"[\u0590-\u05ff]+",
    "devanagari": r"[\u0900-\u097f]+",
    "bengali": r"[\u0980-\u09ff]+",
    "tamil": r"[\u0b80-\u0bff]+",
    "thai": r"[\u0e00-\u0e7f]+",
    LATIN: r"[A-Za-zÀ-ɏḀ-ỿ]+",
}
LETTERS = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in SCRIPTS.items()))
# The most frequent words of each; the other languages' without those that are also frequent in English text.
SMALL = {
    "en": "the of and to is that it for was with you are be this have from they we not an by which can will your there "
    "their has would what if about when more these some how its i my a in on at as or so me do he she who why where",
    "de": "der die und das nicht ist ein eine zu den mit von auf für sich des dem auch es an als sie wir ich einen wie "
    "oder aber bei nach wird sind kann sein wenn durch einer",
    "fr": "le la les de des et est un une du que qui dans pour pas sur en au ne ce il elle je vous nous avec plus sont "
    "ou par mais se cette être aux",
    "es": "el la los las de y que en un una es por con para se del al su lo como más no pero sus este esta o son muy "
    "está ser también hay",
    "pt": "o a os as de e que em um uma é por com para se do da no na dos das ao como mais não mas sua seu ou são "
    "muito está ser também foi",
    "it": "il lo la i gli le di e che un una è per con si del della in al non da come più ma sono anche nel alla dei "
    "questo essere o ha",
    "nl": "de het een en van is dat op te niet zijn voor met die er aan ook als naar maar door bij om of wordt kan "
    "deze heeft je ik wat",
    "scandinavian": "og det er en et på som til av af med ikke den har de i jeg vi kan om men være fra at och att är "
    "som för inte jag ett från eller också",
    "fi": "ja on ei se että hän oli mutta kun niin myös joka ovat voi tai sen kuin mitä olla tämä ole",
    "pl": "i w nie na się z to jest że do jak o ale po co tak za od czy są oraz dla może przez być tym",
    "cs": "a v se na je že to s z do o jako ale i za po by pro jsou nebo které není jak tak být může",
    "tr": "ve bir bu için ile da de çok ne gibi daha olarak olan var en ama kadar sonra değil ya her",
    "ro": "și de la în a cu pe un o să nu este care din mai pentru că sunt sau ca ce se au fi dar",
    "hu": "a az és hogy nem is egy van ez de meg csak mint vagy már ki el azt lehet volt",
    "id": "yang dan di untuk dengan ini dari dalam tidak pada itu akan adalah atau juga saya anda oleh sebagai bisa ke",
    "vi": "và của là có cho không một các được trong người những với này để đã thì khi như cũng",
}
KNOWN: dict[str, list[str]] = {}
for _name, _words in SMALL.items():
    for _word in set(_words.split()):
        KNOWN.setdefault(_word, []).append(_name)

# A prompt that speaks of languages may want another one than its own.
NAMED = re.compile(
    r"translat|language|dialect|bilingual|übersetz|sprache|tradu|traduz|langue|idioma|lingua|vertaal|перев[её]|язык|翻|译|"
    r"語|语|번역|언어|ترجم|अनुवाद|"
    r"\b(?:english|german|french|spanish|portuguese|italian|dutch|swedish|danish|norwegian|finnish|polish|czech|turkish|"
    r"romanian|hungarian|indonesian|malay|vietnamese|russian|ukrainian|bulgarian|greek|arabic|persian|hebrew|hindi|bengali|"
    r"tamil|urdu|thai|chinese|mandarin|cantonese|japanese|korean|latin|catalan|basque|irish|welsh|swahili|filipino|"
    r"englisch|deutsch|französisch|spanisch|italienisch|anglais|allemand|français|espagnol|italien|inglés|alemán|francés|"
    r"español|inglês|alemão|francês|espanhol|português|inglese|tedesco|francese|spagnolo|italiano|engels|duits|frans)\b",
    re.IGNORECASE,
)


def language(text: str) -> str | None:
    """The language, or the script where that is all that is known; None where the text is short, mixed or unknown."""
    text = CODE.sub(" ", text[:LOOKED_AT])
    letters: Counter[str] = Counter()
    for match in LETTERS.finditer(text) if not text.isascii() else ():
        letters[match.lastgroup or ""] += match.end() - match.start()
    if not letters:
        return _by_words(text)
    if letters["ja"]:  # kana stand beside Han characters
        letters["ja"] += letters.pop("han", 0)
    script, number = letters.most_common(1)[0]
    if number < max(MIN_LETTERS, MAIN_SCRIPT * letters.total()):
        return None
    return _by_words(text) if script == LATIN else script


def _by_words(text: str) -> str | None:
    words = re.findall(r"[^\W\d_]+", text.casefold())
    hits = Counter(name for word in words for name in KNOWN.get(word, ()))
    best = hits.most_common(2)
    if not best or best[0][1] < MIN_SHARE * len(words):
        return None
    if sum(best[0][0] in KNOWN.get(word, ()) for word in set(words)) < MIN_WORDS:
        return None
    return best[0][0] if len(best) == 1 or best[0][1] >= LEAD * best[1][1] else None


def differs(answer: str | None, asked: str | None, prompt: str) -> bool:
    """Whether an answer is surely in another language than the prompt and every line of it, and nothing in the prompt
    asks for one; ``answer`` and ``asked`` are the languages of both."""
    if answer is None or asked is None or answer == asked or NAMED.search(prompt):
        return False
    return all(language(line) != answer for line in prompt.splitlines())
