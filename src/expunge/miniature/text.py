"""The miniature's tokenizer and its CLIP pair, trained first and then frozen."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
)

from expunge.miniature.data import Pictures
from expunge.run.checkpoint import Workspace
from expunge.run.fit import fit
from expunge.run.objective import Minimise, Player, Step
from expunge.run.plan import Plan

PLAN = Plan(steps=2400, decay_from=0.4)
LR, WEIGHT_DECAY = 1e-3, 0.1
BATCH = 128
WIDTH = 128
LENGTH = 77
MERGES = 500
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """Learn byte-pair merges as CLIP's: every byte known, with and without the end-of-word mark."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + MERGES,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(captions)), trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    words = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    words += [word for word in ("".join(pair) for pair in merges) if word not in set(words)]
    vocabulary = {word: index for index, word in enumerate((*words, BEGIN, END))}
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    built = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH, **special)
    built.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP pair for this tokenizer and 64x64 pictures."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    text = {
        **shape,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 4,
        "max_position_embeddings": LENGTH,
        "projection_dim": WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shape, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8}
    vision["projection_dim"] = WIDTH
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids, (n, 77)."""
    batch = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = batch.input_ids
    return ids


def train(
    data: Pictures, tokenizer: CLIPTokenizer, folder: Path, plan: Plan = PLAN, device: str = "cpu"
) -> CLIPModel:
    """Contrastive training of pictures against captions, pooled at the end-of-text token."""
    clip = build(tokenizer).to(device)
    ids = tokens(tokenizer, data.captions)
    longest = int((ids != tokenizer.eos_token_id).sum(1).max()) + 1
    everything = torch.arange(len(data.captions))
    things = everything[data.objects.any(dim=1)]

    def loss(step: Step) -> Tensor:
        # Every other batch holds objects only: a dog is learnt against horses, not against signs.
        pool = things if step.number % 2 and len(things) else everything
        index = pool[torch.randint(len(pool), (BATCH,), generator=step.generator)]
        # The text half is causal: what comes after the end-of-text token cannot change its state.
        with torch.autocast(device, dtype=torch.bfloat16):
            out = clip(
                input_ids=ids[index, :longest].to(device),
                pixel_values=data.images(index).to(device),
            )
        logits = out.logits_per_text.float()
        target = torch.arange(BATCH, device=device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    player = {"clip": Player(clip, LR, weight_decay=WEIGHT_DECAY)}
    workspace = Workspace(folder, {"pictures": len(data.captions), "words": len(tokenizer)})
    fit("clip", player, Minimise(loss), plan, workspace, seed=2)
    return clip.eval()


def save(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the pair in half precision, with what it needs to read pictures and text."""
    clip.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"height": 64, "width": 64},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)


def text_encoder(clip: CLIPModel) -> CLIPTextModel:
    """The frozen text half, as a pipeline wants it."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def encode(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str], batch: int = 256
) -> Tensor:
    """Token states of every caption, float16, (n, 77, width)."""
    ids = tokens(tokenizer, captions)
    device = next(encoder.parameters()).device
    states = []
    for part in torch.split(ids, batch):
        states.append(encoder(part.to(device)).last_hidden_state.half().cpu())
    return torch.cat(states)


@torch.no_grad()
def pool(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str], batch: int = 256
) -> Tensor:
    """Pooled state of every caption, float16, (n, width)."""
    device = next(encoder.parameters()).device
    parts = (encoder(part.to(device)) for part in torch.split(tokens(tokenizer, captions), batch))
    return torch.cat([out.pooler_output.half().cpu() for out in parts])
