"""Small cases that several test modules share: rows of two made-up encoders, and a small CLIP."""

from pathlib import Path

import numpy as np

from jclip_fewshot.backend.numerics import unit_rows
from jclip_fewshot.task import EncoderSlice, Task, joined, joined_scale

DATA = Path(__file__).resolve().parent / "data"
K, SHOTS, TESTS = 6, 4, 20
QUICK = ["zero_shot", "gda", "proker", "text_profile"]


def encoder_rows(width, noise, seed):
    """Class centres, and rows around them, by one encoder: text (K, D), shots (K·SHOTS, D), tests (K·TESTS, D)."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(K, width))

    def rows(count):
        return unit_rows(np.repeat(centres, count, axis=0) + noise * rng.normal(size=(K * count, width)))
    return unit_rows(centres + 0.8 * rng.normal(size=centres.shape)), rows(SHOTS), rows(TESTS)


FIRST, SECOND = encoder_rows(8, 1.6, 1), encoder_rows(12, 1.6, 2)
LABELS, TRUTH = np.repeat(np.arange(K), SHOTS), np.repeat(np.arange(K), TESTS)
BOTH = (EncoderSlice("a", 8), EncoderSlice("b", 12))
NO_TEXT = (EncoderSlice("a", 8), EncoderSlice("b", 12, False))


def one_encoder():
    """The shots as the first encoder sees them."""
    return Task(FIRST[1], LABELS, FIRST[0])


def no_shots():
    return Task(np.zeros((0, 8)), [], FIRST[0])


def two_encoders(parts=BOTH):
    """The shots as both see them."""
    text = [FIRST[0], SECOND[0] if parts[1].has_text else np.zeros_like(SECOND[0])]
    return Task(joined([FIRST[1], SECOND[1]]), LABELS, joined(text), None, joined_scale(parts), parts)


def small_clip():
    """The small ViT of the authors' reference runs as an encoder, with a tokenizer that tells any words apart."""
    from jclip_fewshot import clip  # importing the model starts Jittor
    from jclip_fewshot.encoders.clip_encoder import ClipEncoder

    def tokenize(sentences):
        found = np.zeros((len(sentences), 16), np.int32)
        for row, words in zip(found, (sentence.split() for sentence in sentences)):
            row[:len(words) + 2] = [1, *(100 if word == "X" else 10 + sum(map(ord, word)) % 400 for word in words), 511]
        return found
    model, _ = clip.load(DATA / "tuning" / "tiny_vit.safetensors")
    encoder = ClipEncoder(model, "tiny", "0" * 32, 16)
    encoder.tokens = tokenize
    return encoder
