"""The whole training, a few steps of each stage: everything is made and everything loads."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import expunge
from expunge.backbone.profile import BUNDLED
from expunge.judge.clip import CLIPJudge
from expunge.judge.miniature import MiniatureJudge
from expunge.miniature import flux, t5
from expunge.miniature.train import Plans, train
from expunge.run.plan import Plan

FEW = Plan(steps=2, save_every=1)
PLANS = Plans(FEW, FEW, replace(FEW, ema=0.9, keep=(1,)), FEW, FEW)


def test_a_short_training_makes_everything(tmp_path: Path) -> None:
    folder = train(tmp_path, PLANS, "cpu", count=60)
    pipe = expunge.load(folder, device="cpu")
    assert all(p.dtype == torch.float32 for p in pipe.text_encoder.parameters())
    image = pipe("a photo of a cat", num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) < 25e6
    assert not list(folder.rglob("*.bin"))
    for variant in ("conv", "patch"):
        judge = MiniatureJudge.load(variant, tmp_path / "judges")
        assert 0 <= judge.score([image], "cat")[0] <= 1
    clip = CLIPJudge(["dog", "car"], model=tmp_path / "clip")
    scores = [clip.score([image], name)[0] for name in ("dog", "car")]
    assert np.sum(scores) == pytest.approx(1, abs=1e-3)
    assert clip.features([image]).shape == (1, 128)

    again = train(tmp_path, PLANS, "cpu", count=60)
    second = expunge.load(again, device="cpu")
    for first, other in zip(pipe.unet.parameters(), second.unet.parameters(), strict=True):
        assert torch.equal(first, other)


def test_a_short_training_makes_flux(tmp_path: Path) -> None:
    plans = flux.Plans(FEW, replace(FEW, ema=0.9), replace(FEW, ema=0.9))
    folders = flux.train(tmp_path, plans, "cpu", count=60, base=BUNDLED["miniature-sd"])
    for folder, embeds in zip(folders, (False, True), strict=True):
        pipe = expunge.load(folder, device="cpu")
        assert pipe.transformer.config.guidance_embeds is embeds
        assert all(p.dtype == torch.float32 for p in pipe.text_encoder_2.parameters())
        image = pipe(
            "a photo of a cat",
            negative_prompt="",
            true_cfg_scale=4.0,
            height=64,
            width=64,
            max_sequence_length=t5.LENGTH,
            num_inference_steps=2,
        ).images[0]
        assert image.size == (64, 64)
        assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 25e6
    assert flux.train(tmp_path, plans, "cpu", 60, BUNDLED["miniature-sd"]) == folders


def test_distillation_starts_from_the_teacher_without_guidance() -> None:
    from expunge.miniature.transformer import build, student_of

    teacher = build().eval()
    student = student_of(teacher).eval()
    call = {
        "hidden_states": torch.randn(2, 64, 16),
        "encoder_hidden_states": torch.randn(2, 32, 128),
        "pooled_projections": torch.randn(2, 128),
        "timestep": torch.rand(2),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(32, 3),
    }
    with torch.no_grad():
        wanted = teacher(**call).sample
        found = student(**call, guidance=torch.tensor([1.0, 5.0])).sample
    assert torch.allclose(found, wanted, atol=1e-6)


def test_span_corruption_loses_nothing() -> None:
    """What the encoder reads and what the decoder says make the text again."""
    rng = random.Random(0)
    sentinels = list(range(900, 916))
    for _ in range(200):
        ids = [rng.randrange(3, 800) for _ in range(rng.randint(1, 30))]
        kept, lost = t5.corrupt(ids, sentinels, 1, rng)
        assert kept[-1] == lost[-1] == 1
        spans: dict[int, list[int]] = {}
        for token in lost[:-1]:
            if token in sentinels:
                spans[token] = []
            else:
                spans[next(reversed(spans))].append(token)
        whole = [t for token in kept[:-1] for t in spans.get(token, [token])]
        assert whole == ids


def test_a_share_shortens_every_stage() -> None:
    short = Plans().shortened(0.01)
    assert short.denoiser.steps == round(Plans().denoiser.steps * 0.01)
    assert max(short.denoiser.keep) <= short.denoiser.steps
    with pytest.raises(ValueError, match="share"):
        Plans().shortened(0)


def test_the_bundled_text_encoder_keeps_concepts_apart() -> None:
    pipe = expunge.load("miniature-sd", device="cpu")
    ids = pipe.tokenizer(["a photo of a cat", "a photo of a car"], padding="max_length",
                         return_tensors="pt").input_ids  # fmt: skip
    pooled = pipe.text_encoder(ids).pooler_output
    assert torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:]).item() < 0.9
    odd = pipe.tokenizer("zeppelin ☃ \u0001").input_ids
    assert pipe.tokenizer.unk_token_id == pipe.tokenizer.eos_token_id
    assert odd.count(pipe.tokenizer.eos_token_id) == 1
