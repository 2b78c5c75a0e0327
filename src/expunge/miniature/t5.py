"""The miniature's T5: its tokenizer and its encoder, trained to fill in what captions lost."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer

from expunge.run.checkpoint import Workspace
from expunge.run.fit import fit
from expunge.run.objective import Minimise, Player, Step
from expunge.run.plan import Plan

PLAN = Plan(steps=1200, decay_from=0.5)
LR, WEIGHT_DECAY = 1e-3, 0.01
BATCH = 128
WIDTH = 128
LENGTH = 32
"""Tokens of a prompt, in training and when drawing; the longest caption has 26."""
WORDS = 800
SENTINELS = 16
LOST_SHARE = 0.25
"""Of a caption's tokens; T5 loses 15 % of far longer texts."""
PADDING, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def train_tokenizer(captions: list[str], folder: Path) -> T5Tokenizer:
    """Build a unigram vocabulary as T5's, with printable ASCII, from byte-pair merges.

    A unigram trainer wants far more text than the captions' few hundred words; merges find the
    words whole. The more frequent of them come first and get the better score.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    trained.train_from_iterator(sorted(set(varied(captions))), trainer)
    merged = json.loads(trained.to_str())["model"]["merges"]
    letters = sorted(word for word in trained.get_vocab() if len(word) == 1)
    words = list(dict.fromkeys(["".join(pair) for pair in merged] + letters))
    vocabulary = [(token, 0.0) for token in (PADDING, END, UNKNOWN)]
    vocabulary += [(word, -math.log(2 + rank)) for rank, word in enumerate(words)]
    vocabulary += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(SENTINELS))]
    T5Tokenizer(vocab=vocabulary, extra_ids=SENTINELS, model_max_length=LENGTH).save_pretrained(
        folder
    )
    return T5Tokenizer.from_pretrained(folder)


def varied(captions: list[str]) -> list[str]:
    """The captions, every third one with a capital letter first: T5 tells the two apart."""
    return [text[:1].upper() + text[1:] if i % 3 == 0 else text for i, text in enumerate(captions)]


def build(tokenizer: T5Tokenizer) -> T5ForConditionalGeneration:
    """An untrained T5 of version 1.1's shape, with one decoder layer."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=32,
            d_ff=2 * WIDTH,
            num_heads=4,
            num_layers=4,
            num_decoder_layers=1,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


def tokens(tokenizer: T5Tokenizer, captions: list[str]) -> Tensor:
    """Token ids, padded and cut to `LENGTH`, (n, 32)."""
    batch = tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    ids: Tensor = batch.input_ids
    return ids


def corrupt(
    ids: list[int], sentinels: list[int], end: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Replace spans of one to three tokens by sentinels (Raffel et al. 2020, section 3.1.4).

    Args:
        ids: a text's tokens, without its end.
        sentinels: ids that stand for the first, second, … span.
        end: id of the end of a text.
        rng: where the spans come from.

    Returns:
        What the encoder reads and what the decoder is to say.
    """
    kept: list[int] = []
    lost: list[int] = []
    at, spans = 0, 0
    while at < len(ids):
        if spans < len(sentinels) and rng.random() < LOST_SHARE / 2:
            length = rng.randint(1, 3)
            kept.append(sentinels[spans])
            lost += [sentinels[spans], *ids[at : at + length]]
            spans += 1
            at += length
        else:
            kept.append(ids[at])
            at += 1
    return [*kept, end], [*lost, end]


def _padded(rows: list[list[int]], length: int, padding: int) -> Tensor:
    return torch.tensor([row[:length] + [padding] * (length - len(row)) for row in rows])


def train(
    captions: list[str],
    tokenizer: T5Tokenizer,
    folder: Path,
    plan: Plan = PLAN,
    device: str = "cpu",
) -> T5EncoderModel:
    """Train on span corruption and keep the encoder.

    Padding is read like any token, because FLUX gives its T5 no attention mask.
    """
    model = build(tokenizer).to(device)
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    names = [f"<extra_id_{index}>" for index in range(SENTINELS)]
    sentinels = [int(i) for i in tokenizer.convert_tokens_to_ids(names)]
    texts = [
        [token for token in row if token not in (end, padding)]
        for row in tokens(tokenizer, captions).tolist()
    ]
    everything = torch.ones(BATCH, LENGTH, dtype=torch.long, device=device)

    def loss(step: Step) -> Tensor:
        index = torch.randint(len(texts), (BATCH,), generator=step.generator).tolist()
        rng = random.Random(f"{index}")
        pairs = [corrupt(texts[i], sentinels, end, rng) for i in index]
        read = _padded([kept for kept, _ in pairs], LENGTH, padding).to(device)
        said = _padded([lost for _, lost in pairs], LENGTH, -100).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            found: Tensor = model(input_ids=read, attention_mask=everything, labels=said).loss
        return found.float()

    player = {"t5": Player(model, LR, weight_decay=WEIGHT_DECAY)}
    workspace = Workspace(folder, {"captions": len(captions), "words": len(tokenizer)})
    fit("t5", player, Minimise(loss), plan, workspace, seed=4)
    encoder = T5EncoderModel(model.config)
    encoder.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k.startswith(("shared.", "encoder."))},
        strict=False,  # the embedding appears under one of its two names
    )
    return encoder.to(device).eval().requires_grad_(False)


@torch.no_grad()
def encode(
    encoder: T5EncoderModel, tokenizer: T5Tokenizer, captions: list[str], batch: int = 256
) -> Tensor:
    """Token states of every caption, float16, (n, 32, width)."""
    ids = tokens(tokenizer, captions)
    device = next(encoder.parameters()).device
    parts = (encoder(part.to(device)).last_hidden_state for part in torch.split(ids, batch))
    return torch.cat([states.half().cpu() for states in parts])
