"""Sentences to token ids, as OpenAI's CLIP does it; no Jittor here.

The byte-pair encoding is `instant-clip-tokenizer`'s; the cleaning before it is OpenAI's
(clip/simple_tokenizer.py): ftfy, HTML entities twice, runs of white space to one blank, lower case.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from jclip_fewshot.errors import UserError

START, END = 49406, 49407
_SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
_SPECIAL_PATTERN = re.compile("(" + "|".join(map(re.escape, _SPECIAL)) + ")")


@lru_cache(maxsize=1)
def _encoder():
    from instant_clip_tokenizer import Tokenizer
    return Tokenizer()


def clean(text: str) -> str:
    """OpenAI's cleaning of one text; idempotent for ordinary sentences."""
    import ftfy
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", text).strip().lower()


def encode(text: str) -> list[int]:
    """The token ids of one text, without the start and end marks."""
    ids = []
    for part in _SPECIAL_PATTERN.split(clean(text)):
        ids.extend([_SPECIAL[part]] if part in _SPECIAL else _encoder().encode(part))
    return ids


def token_array(texts: str | Sequence[str], context_length: int = 77,
                truncate: bool = False) -> np.ndarray:
    """Token ids of texts, start and end marks added, zeros behind.

    texts: one text or a sequence of B texts; context_length: columns of the result.
    truncate: cut what is too long (the end mark stays) instead of refusing it.

    Returns:
        (B, context_length) int32.
    Raises:
        UserError: a text with more tokens than fit; the message names it.
    """
    if isinstance(texts, str):
        texts = [texts]
    result = np.zeros((len(texts), context_length), dtype=np.int32)
    for row, text in zip(result, texts):
        ids = [START] + encode(text) + [END]
        if len(ids) > context_length:
            if not truncate:
                raise UserError(f"text of {len(ids)} tokens, {context_length} fit: {_shorten(text)!r}; "
                                "shorten it or pass truncate=True")
            ids = ids[:context_length - 1] + [END]
        row[:len(ids)] = ids
    return result


def _shorten(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[:length - 1] + "…"
