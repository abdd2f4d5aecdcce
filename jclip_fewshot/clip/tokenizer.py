"""Sentences to token ids, as OpenAI's CLIP does it (clip/simple_tokenizer.py); no Jittor here.

Cleaning: ftfy, HTML entities twice, runs of white space to one blank, lower case. Then byte-pair encoding: every word
is a row of bytes, of which the pair that stands first in OpenAI's list (merges.txt.gz, MIT licence, (c) 2021 OpenAI)
is joined, until no pair of it is in the list.
"""

import gzip
import html
import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from jclip_fewshot.errors import UserError

START, END = 49406, 49407
_SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
_SPECIAL_PATTERN = re.compile("(" + "|".join(map(re.escape, _SPECIAL)) + ")")
_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
_RUN = re.compile("L+|N|P+")  # of letters, one number, of anything else but blanks


@cache
def _merges() -> dict[tuple[str, ...], int]:
    """Each pair's place in OpenAI's list."""
    with gzip.open(Path(__file__).with_name("merges.txt.gz"), "rt", encoding="utf-8", newline="\n") as file:
        return {tuple(line.rstrip("\n").split(" ")): place for place, line in enumerate(file)}


@cache
def _bytes() -> dict[int, str]:
    """The letter by which the list writes each byte: itself where it is printable, the next free one otherwise."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


@cache
def _ids() -> dict[str, int]:
    """Bytes, bytes that end a word, and what the pairs join to, in this order."""
    letters = list(_bytes().values())
    return {token: number for number, token in
            enumerate([*letters, *(f"{letter}</w>" for letter in letters), *map("".join, _merges())])}


def _words(text: str) -> list[str]:
    kinds = "".join("S" if letter.isspace() else {"L": "L", "N": "N"}.get(unicodedata.category(letter)[0], "P")
                    for letter in text)
    words, place = [], 0
    while place < len(text):
        found = _CONTRACTION.match(text, place) or _RUN.match(kinds, place)
        if found:
            words.append(text[place:found.end()])
        place = found.end() if found else place + 1
    return words


@lru_cache(maxsize=1 << 16)
def _word_ids(word: str) -> tuple[int, ...]:
    parts = [_bytes()[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    merges, never = _merges(), 1 << 30
    while len(parts) > 1:
        first = min(zip(parts, parts[1:]), key=lambda pair: merges.get(pair, never))
        if first not in merges:
            break
        joined: list[str] = []
        for part in parts:
            if joined and (joined[-1], part) == first:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return tuple(_ids()[part] for part in parts)


def clean(text: str) -> str:
    """OpenAI's cleaning of one text; idempotent for ordinary sentences."""
    import ftfy
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", text).strip().lower()


def encode(text: str) -> list[int]:
    """The token ids of one text, without the start and end marks."""
    ids = []
    for part in _SPECIAL_PATTERN.split(clean(text)):
        ids += [_SPECIAL[part]] if part in _SPECIAL else [number for word in _words(part) for number in _word_ids(word)]
    return ids


def token_array(texts: str | Sequence[str], context_length: int = 77, truncate: bool = False) -> np.ndarray:
    """Return token ids (B, context_length) int32 of one text or B, start and end marks added, zeros behind.

    truncate: cut what is too long (the end mark stays) instead of refusing it.
    Raise UserError, which names a text with more tokens than fit.
    """
    if isinstance(texts, str):
        texts = [texts]
    result = np.zeros((len(texts), context_length), dtype=np.int32)
    for row, text in zip(result, texts):
        ids = [START] + encode(text) + [END]
        if len(ids) > context_length:
            if not truncate:
                shown = text if len(text) <= 80 else text[:79] + "…"
                raise UserError(f"text of {len(ids)} tokens, {context_length} fit: {shown!r}; shorten it or pass "
                                "truncate=True")
            ids = ids[:context_length - 1] + [END]
        row[:len(ids)] = ids
    return result
