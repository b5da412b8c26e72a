"""Captions of Fashion-MNIST, and a byte-pair vocabulary in which each of their words is a token."""

from __future__ import annotations

import itertools
import re
from typing import Any

import torch
from torch import Tensor

GARMENTS = (
    "a t-shirt",
    "trousers",
    "a pullover",
    "a dress",
    "a coat",
    "a sandal",
    "a shirt",
    "a sneaker",
    "a bag",
    "an ankle boot",
)
TEMPLATES = (
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a grayscale photo of {}",
    "a product photo of {} on black",
    "{}",
)
START, END = "<|startoftext|>", "<|endoftext|>"
LONGEST = 16  # tokens of a prompt, the two special ones included


def caption(label: int, template: int = 0) -> str:
    """The caption of a class, by the position of its template."""
    return TEMPLATES[template].format(GARMENTS[label])


def words() -> list[str]:
    """The words of all captions, as CLIP's tokenizer splits them."""
    text = " ".join((*TEMPLATES, *GARMENTS)).replace("{}", " ")
    return sorted(set(re.findall(r"[a-z]+|[^\sa-z]+", text)))


def tokenizer() -> Any:
    """A `CLIPTokenizer` that knows every byte, and every word of the captions as one token."""
    from transformers import CLIPTokenizer

    merges = byte_pairs(words())
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *(a + b for a, b in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs: Any = merges  # which transformers declares as text
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=LONGEST)


def byte_alphabet() -> list[str]:
    """A printable character for each byte, as in GPT-2 (Radford et al., 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def byte_pairs(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Merges of byte-pair encoding (Sennrich et al., 2016), until each word is one symbol.

    Args:
        vocabulary: Words of ASCII characters, each of the same weight.
    """
    spelt = [(*word[:-1], word[-1] + "</w>") for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while pairs := [pair for word in spelt for pair in itertools.pairwise(word)]:
        merges.append(max(sorted(set(pairs)), key=pairs.count))
        spelt = [_merge(word, merges[-1]) for word in spelt]
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out, i = [], 0
    while i < len(word):
        step = 2 if word[i : i + 2] == pair else 1
        out.append("".join(word[i : i + step]))
        i += step
    return tuple(out)


def prompt_table(tokens: Any) -> Tensor:
    """Token ids of all captions, and of the empty prompt last: (10 * templates + 1, LONGEST)."""
    prompts = [caption(label, t) for label in range(len(GARMENTS)) for t in range(len(TEMPLATES))]
    ids = tokens([*prompts, ""], padding="max_length", truncation=True).input_ids
    return torch.tensor(ids)


def draw_captions(labels: Tensor, dropped: float, generator: torch.Generator) -> Tensor:
    """Rows of `prompt_table` for labels (B,): a random template each, some dropped."""
    template = torch.randint(len(TEMPLATES), labels.shape, generator=generator)
    empty = torch.rand(labels.shape, generator=generator) < dropped
    rows = labels * len(TEMPLATES) + template
    return torch.where(empty, len(GARMENTS) * len(TEMPLATES), rows)
