"""Captions of the demo's pictures, and the tokenizer that is trained on them.

A caption names the subject and, unless the background is white, its colour; so the text decides
the whole picture, and an unnamed background means white.
"""

import random
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from training.data.colors import BACKGROUNDS
from training.data.emoji import Subject
from training.files import written_whole

TEMPLATES = (
    "{subject} on a {color} background",
    "{article} {subject} on a {color} background",
    "{subject}, {color} background",
)
PLAIN_TEMPLATES = ("{subject}", "{article} {subject}", "{subject} on a white background")


def article(noun: str) -> str:
    """The indefinite article, by the noun's first letter."""
    return "an" if noun[:1] in "aeiou" else "a"


def canonical(subject: Subject, color: str) -> str:
    """The caption that evaluations use: "a red apple on a blue background"."""
    return f"{article(subject.label)} {subject.label} on a {known_color(color)} background"


def known_color(color: str) -> str:
    """The colour's name, checked: a misspelt one would silently mean an unseen word."""
    if color not in BACKGROUNDS:
        raise ValueError(f"unknown background {color!r}; known: {', '.join(BACKGROUNDS)}")
    return color


def caption(subject: Subject, color: str, choice: random.Random) -> str:
    """One of the ways to describe `subject` on `color`, sometimes with a few of its tags."""
    templates = TEMPLATES + PLAIN_TEMPLATES if color == "white" else TEMPLATES
    words = subject.label
    if subject.tags and choice.random() < 0.25:
        tags = choice.sample(subject.tags, min(len(subject.tags), choice.randint(1, 3)))
        words = f"{subject.label}, {', '.join(tags)}"
    return choice.choice(templates).format(subject=words, article=article(words), color=known_color(color))


def train_tokenizer(subjects: Iterable[Subject], vocabulary: int) -> Tokenizer:
    """A byte-pair tokenizer with T5's special ids (padding 0, end 1, unknown 2) over labels, tags and colours.

    T5's own algorithm is Unigram; on so few words it cuts most of them into letters, while byte-pair
    merging keeps a label's words whole, which is what a text encoder of three layers needs.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    lines = []
    for subject in subjects:
        lines += [canonical(subject, color) for color in BACKGROUNDS]
        lines += [", ".join((subject.label, *subject.tags))] * 2
    tokenizer.train_from_iterator(lines, trainer)
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[end])
    return tokenizer


def load_tokenizer(path: Path, subjects: Iterable[Subject], vocabulary: int) -> Tokenizer:
    """Read the tokenizer at `path`, training and writing it first if there is none."""
    if not path.exists():
        with written_whole(path) as scratch:
            train_tokenizer(subjects, vocabulary).save(str(scratch))
    return Tokenizer.from_file(str(path))
