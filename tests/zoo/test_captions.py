"""Captions and the byte-pair vocabulary of the text-conditional prior."""

import pytest
import torch

from outsourced.data import FASHION_CLASSES
from outsourced.zoo.captions import (
    GARMENTS,
    LONGEST,
    TEMPLATES,
    byte_pairs,
    caption,
    draw_captions,
    prompt_table,
    tokenizer,
    words,
)


@pytest.fixture(scope="module")
def tokens():
    return tokenizer()


def test_every_word_of_a_caption_is_one_token(tokens):
    """Mutant: merges learned word by word, of which an earlier one breaks a later word apart."""
    for word in words():
        assert tokens.tokenize(word) == [word + "</w>"], word


def test_any_text_has_tokens_and_comes_back(tokens):
    """Mutant: an alphabet without some bytes, whose characters become the end of the text."""
    text = "zürich, 42 boots & a ☂"
    ids = tokens(text, add_special_tokens=False).input_ids
    assert tokens.eos_token_id not in ids
    assert tokens.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_merges_are_those_of_byte_pair_encoding():
    """Most frequent pair first, counted over words. Mutant: pairs across the end of a word."""
    assert byte_pairs(["ab", "cab", "x"]) == [("a", "b</w>"), ("c", "ab</w>")]


def test_the_table_holds_each_caption_and_the_empty_prompt(tokens):
    """Mutant: rows in another order than `draw_captions` counts them; truncated captions."""
    table = prompt_table(tokens)
    assert table.shape == (len(GARMENTS) * len(TEMPLATES) + 1, LONGEST)
    assert len(set(map(tuple, table.tolist()))) == len(table)
    assert (table == tokens.eos_token_id).any(1).all()  # nothing is cut off
    labels = torch.arange(10).repeat(300)
    rows = draw_captions(labels, 0.0, torch.Generator().manual_seed(0))
    for label, row in zip(labels[:50].tolist(), rows[:50].tolist(), strict=True):
        expected = [tokens(caption(label, t), padding="max_length").input_ids for t in range(6)]
        assert table[row].tolist() in expected
    assert len(rows.unique()) == len(table) - 1


def test_a_share_of_the_captions_is_dropped():
    """Mutant: the share that is kept, or whole batches dropped."""
    rows = draw_captions(torch.zeros(20_000).long(), 0.1, torch.Generator().manual_seed(0))
    empty = (rows == len(GARMENTS) * len(TEMPLATES)).double().mean()
    assert empty == pytest.approx(0.1, abs=0.01)


def test_garments_are_in_the_order_of_the_labels():
    """Mutant: captions of another class."""
    for garment, name in zip(GARMENTS, FASHION_CLASSES, strict=True):
        assert garment.split()[-1].rstrip("s") in name.lower()
