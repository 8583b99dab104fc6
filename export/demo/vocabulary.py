"""The pieces of text that the demo's tokenizer makes, which are learnt from sampled steps.

A BPE of few texts learns pieces of invented ones that are so rare that training hardly ever has them copied. Without
the merges that make them, every text to type is of common tokens. No entry of the vocabulary goes, so that a
checkpoint's weights need not change: ``python -m edgeglm.export.demo.vocabulary CHECKPOINT --out DIR``
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from shutil import copytree

import click
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from edgeglm.export.demo import words
from edgeglm.export.demo.client import first_text, later_text
from edgeglm.export.demo.goals import play
from edgeglm.export.demo.prompts import LANGUAGES, sample_prompt
from edgeglm.export.demo.screens import sample_scene
from edgeglm.export.demo.tasks import sample_step
from edgeglm.export.demo.wishes import sample_goal

# GLM-4's split, which keeps digits single; but a quotation mark never joins the word behind it, so that a text in
# quotation marks is the same tokens in an instruction as in an action, whatever stands before it.
SPLIT = r"[^\r\n\p{L}\p{N}\"]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LONGEST_TOKEN = 12  # in bytes: four Chinese characters, so that words are learnt and not whole sentences
TEXTS = 10  # of each sample
RARE = 0.0015  # share of the texts that have a token which is rare
COMMON = 0.0025  # uses outside of texts for each sample, by which a token is known all the same
QUOTED = re.compile(r'"[^"]*"')


def train_bpe(size: int, samples: int) -> Tokenizer:
    """Return a byte-level BPE of `size` entries, trained on so many sampled steps."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        max_token_length=LONGEST_TOKEN,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=2,
    )
    bpe.train_from_iterator(_corpus(samples), trainer)
    return bpe


def _corpus(samples: int) -> list[str]:
    """Return the texts whose pieces become words: common ones, system prompts, and steps as the client sends them."""
    texts: list[str] = [*words.ENGLISH, *words.CHINESE, *words.COMMON_CHINESE] * 20
    for language in LANGUAGES:
        texts += [sample_prompt(Random(f"tokenizer/{language}/{index}"), language) for index in range(samples // 40)]
    for index in range(samples):
        random = Random(f"tokenizer/{index}")
        scene = sample_scene(random)
        step = sample_step(scene, random)
        texts += [step.prompt, step.thought, step.action, first_text("", scene.app), later_text(scene.app)]
    return texts


def drop_merges(bpe: Tokenizer, samples: int = 8000) -> Tokenizer:
    """Return a byte-level BPE without the merges that make rare pieces of texts, but for those that others need.

    Args:
        bpe: Has words of the demo's texts.
        samples: Steps by which pieces are judged.
    """
    rare = _rare_in_texts(bpe, samples)
    written = json.loads(bpe.to_str())
    merges: list[list[str]] = written["model"]["merges"]  # in their order: what a token is made of comes before it
    needed = set[str]()
    for pair in reversed(merges):
        if "".join(pair) not in rare or "".join(pair) in needed:
            needed.update(pair)
    dropped = rare - needed
    written["model"]["merges"] = [pair for pair in merges if "".join(pair) not in dropped]
    return Tokenizer.from_str(json.dumps(written))


def _sentences(samples: int) -> Iterator[str]:
    """Yield what is said in prompts, goals and single steps; of a text to type only that there is one."""
    for language in LANGUAGES:
        for index in range(samples // 40):
            yield sample_prompt(Random(f"vocabulary/{language}/{index}"), language)
        for index in range(samples // 20):
            goal, phone = sample_goal(Random(f"vocabulary/{language}/{index}"), language)
            steps = [step for _, step in play(goal, phone)]
            yield from (_hide(text) for text in (goal.wish, *(step.thought for step in steps)))
    for index in range(samples):
        random = Random(f"vocabulary/{index}")
        step = sample_step(sample_scene(random), random)
        yield from (_hide(step.instruction), _hide(step.thought))


def _hide(text: str) -> str:
    return QUOTED.sub('"7"', text)


def _rare_in_texts(bpe: Tokenizer, samples: int) -> set[str]:
    """Return tokens of several characters that few texts have and hardly anything else."""
    random = Random("vocabulary/texts")
    texts = [f'"{words.sample_text(random)}"' for _ in range(TEXTS * samples)]
    typed, said = _count(bpe, texts), _count(bpe, [*_sentences(samples)])
    return {
        token
        for token, uses in typed.items()
        if uses <= RARE * len(texts) and said[token] < COMMON * samples and len(bpe.decoder.decode([token])) > 1
    }


def _count(bpe: Tokenizer, texts: list[str]) -> Counter[str]:
    return Counter(token for encoding in bpe.encode_batch(texts, add_special_tokens=False) for token in encoding.tokens)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write.")
def main(checkpoint: Path, out: Path) -> None:
    """Write CHECKPOINT again with a tokenizer that does not make those tokens."""
    file = "tokenizer.json"
    bpe = drop_merges(Tokenizer.from_file(str(checkpoint / file)))
    copytree(checkpoint, out, dirs_exist_ok=True)
    bpe.save(str(out / file))


if __name__ == "__main__":
    main()
