"""Extracts the option letter from a multiple-choice answer: lmms-eval's general rule and MMBench's rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

EDGES = ",.!?;:'\""  # taken off both ends of an answer, one mark after the other
PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is", "best answer is", "my answer is"),
    *("the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is", "my choice is"),
    *("i choose", "i select", "i pick", "答案是", "答案为", "选", "옵션", "정답은", "답은", "답:", "答えは"),
)
UNANSWERED = "Failed to obtain answer via API"  # written by toolkits for a failed API call; its letters are not an answer
NONE = "E"  # what stands for "none of the options" in MMBench
# How a letter may be decorated in MMBench's second step.
DECORATIONS = ("X.", "X,", "X:", "X)", "X).", "(X)", "(X).", ":X", ":X,", ":X.", ":X)", ":X).")


def extract_letter(text: str, letters: str = "ABCD") -> str | None:
    """lmms-eval 0.7.3's general extractor: the letter in the most specific form; the last occurrence wins.

    Forms, most specific first: at the start, at the end, after a phrase such as "the answer is", (X), X., X:, X), X and a space, anywhere.
    The first two need an isolated letter; the others also match inside a word. Only upper case counts.

    ``letters``: the options; empty means A to H, as in lmms-eval.
    """
    letters = letters or "ABCDEFGH"
    text = text.strip()
    for mark in EDGES:
        text = text.strip(mark)
    text = f" {text} "
    for find in FORMS:
        positions = {letter: find(text, letter) for letter in letters}
        best = max(positions, key=lambda letter: positions[letter])
        if positions[best] >= 0:
            return best
    return None


def _at_start(text: str, letter: str) -> int:
    text = text.strip()
    return 0 if text.startswith(letter) and not text[1:2].isalpha() else -1


def _at_end(text: str, letter: str) -> int:
    text = text.strip()
    return 0 if text.endswith(letter) and not text[-2:-1].isalpha() else -1


def _behind_phrase(text: str, letter: str) -> int:
    """Position of the first ``letter`` after the first match of each phrase; the largest of these."""
    lower = text.lower()
    starts = [(lower.find(phrase), len(phrase)) for phrase in PHRASES]
    return max((text.find(letter, at + length) for at, length in starts if at >= 0), default=-1)


def _as(form: str) -> Callable[[str, str], int]:
    return lambda text, letter: text.rfind(form.replace("X", letter))


FORMS = (_at_start, _at_end, _behind_phrase, *map(_as, ("(X)", "X.", "X:", "X)", "X ", "X")))


def infer_choice(text: str, options: Mapping[str, str]) -> str | None:
    """MMBench's rule, steps 1 to 3: the option named by an answer; E: none of them; None: undecided.

    1. One of A to E stands alone among the words (a lone A among more than three words may be an article and does not count).
    2. One of them does in some decoration, such as ``B.`` or ``(B)``, tried one after the other.
    3. The text of exactly one option occurs in the answer, upper or lower case.

    An answer that a toolkit could not obtain (``UNANSWERED``) has the third step only.

    Args:
        options: the text of each option by its letter.
    """
    words = [] if UNANSWERED in text else text.split()
    alone = [letter for letter in "ABCDE" if letter in words]
    if len(alone) == 1 and not (alone == ["A"] and len(words) > 3):
        return alone[0]
    for decoration in DECORATIONS:
        decorated = [letter for letter in "ABCDE" if decoration.replace("X", letter) in words]
        if len(decorated) == 1:
            return decorated[0]
    matching = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return matching[0] if len(matching) == 1 else None


def option_lines(options: Mapping[str, str]) -> str:
    """The options as in prompts, one per line: ``A. text``."""
    return "\n".join(f"{letter}. {option}" for letter, option in options.items())
