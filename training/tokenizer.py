"""CLIP's tokenizer with a small vocabulary of its own: byte-level BPE learnt from the words of captions."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from training.concepts import Concept
from training.recipe import Recipe
from training.scenes import BACKGROUNDS, PLACES, STYLE_WORDS, TINTS

SPECIAL = ("<|startoftext|>", "<|endoftext|>")
# Words a person may use that no caption has: better one token each than letters.
EVERYDAY = (
    "a an and on the with background gradient next to two small tiny big large of in photo picture image "
    "style icon emoji render cute ugly blurry low quality best high left right top bottom middle"
)


def train(recipe: Recipe, concepts: list[Concept]) -> CLIPTokenizer:
    """The vocabulary is laid out as CLIP's: bytes, bytes that end a word, merges, two special tokens."""
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    clip = CLIPTokenizer()._tokenizer
    backend.normalizer, backend.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary - len(alphabet),
        min_frequency=2,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(corpus(concepts), trainer)
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    merged = (left + right for left, right in merges)
    tokens = dict.fromkeys((*alphabet, *(f"{byte}</w>" for byte in alphabet), *merged, *SPECIAL))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """transformers' own files, and the two that older readers expect."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer._tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def corpus(concepts: list[Concept]) -> Iterable[str]:
    """Words about as often as they matter: names most, keywords least."""
    for concept in concepts:
        yield from 30 * [concept.name, *concept.aliases]
        yield from 3 * [" ".join(concept.keywords)]
    for words in (*BACKGROUNDS, *TINTS, *PLACES, *(word for group in STYLE_WORDS.values() for word in group)):
        yield from 200 * [words]
    yield from 200 * [EVERYDAY]
