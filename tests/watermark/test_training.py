"""The learned scheme is trained by its command, from nothing, and goes on after a stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.backbone.base import Backbone
from expunge.watermark.learned import training
from expunge.watermark.learned.network import Decoder, Encoder, add_mark, seen, unit_energy
from expunge.watermark.learned.textures import dead_leaves
from expunge.watermark.scheme.learned import Learned


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "BATCH", 8)


def test_a_few_steps_learn_a_few_loud_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = torch.nn.ModuleDict({"encoder": Encoder(4), "decoder": Decoder(4)})
    plan = training.Plan(steps=120, warmup=20, ema=0.9)
    stage = training.Stage("x", plan, 1.5e-3, (22.0, 24.0))
    pixels = training.training_pixels(64)
    nets = training.train(nets, pixels, stage, folder=tmp_path)
    training.save(nets, tmp_path / "x.safetensors", {"bits": "4", "variant": "learned"})
    scheme = Learned(weights=str(tmp_path / "x.safetensors"), psnr=24.0)
    payloads = scheme.payloads(list(range(64)))
    assert (scheme.extract(scheme.embed(pixels, payloads)).bits == payloads).mean() > 0.8


def test_the_command_makes_a_scheme(tmp_path: Path) -> None:
    path = training.make(tmp_path, "learned", bits=4, share=0.0005, count=16)
    assert {each.name for each in tmp_path.iterdir()} == {"learned.safetensors", "checkpoints"}
    scheme = Learned(weights=str(path))
    scheme.prepare()
    assert scheme.raw_bits == 4
    with pytest.raises(ValueError, match="bits 4 there, 5 here"):
        training.make(tmp_path, "learned", bits=5, share=0.0005, count=16)


def test_the_second_variant_shares_the_first_stage(tmp_path: Path, backbone: Backbone) -> None:
    vae = backbone.pipe.vae
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    flags = [weight.requires_grad for weight in vae.parameters()]
    first = training.make(tmp_path, "learned", bits=4, share=0.0006, count=8)
    base = (tmp_path / "checkpoints/base.safetensors").read_bytes()
    second = training.make(tmp_path, "learned-vae", bits=4, vae=vae, share=0.0006, count=8)
    assert (tmp_path / "checkpoints/base.safetensors").read_bytes() == base
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert [weight.requires_grad for weight in vae.parameters()] == flags
    assert first.read_bytes() != second.read_bytes()


def test_a_stopped_training_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded, made = training.rounded, [0]

    def stop_once(pixels: torch.Tensor) -> torch.Tensor:
        made[0] += 1
        if made[0] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return rounded(pixels)

    monkeypatch.setattr(training, "rounded", stop_once)

    def run(folder: Path) -> Any:
        torch.manual_seed(0)
        nets = torch.nn.ModuleDict({"encoder": Encoder(4), "decoder": Decoder(4)})
        plan = training.Plan(steps=5, ema=0.9)
        stage = training.Stage("x", plan, 1e-3, (24.0, 30.0))
        return training.train(nets, training.training_pixels(16), stage, folder=folder)

    with pytest.raises(KeyboardInterrupt, match="step 3; the same command goes on from step 3"):
        run(tmp_path / "a")
    resumed, whole = run(tmp_path / "a"), run(tmp_path / "b")
    assert made == [3 + 2 + 5]
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_change_has_the_energy_it_is_given() -> None:
    pixels = torch.full((2, 3, 100, 140), 0.5)
    change = Encoder(8)(seen(pixels), torch.ones(2, 8)).detach()
    assert change.square().mean(dim=(1, 2, 3)) == pytest.approx([1, 1], abs=1e-3)
    marked = add_mark(pixels, change, 36.0)
    error = (marked - pixels).square().mean(dim=(1, 2, 3))
    assert (-10 * error.log10()).tolist() == pytest.approx([36, 36], abs=0.01)
    assert unit_energy(torch.zeros(1, 3, 4, 4)).abs().sum() == 0


def test_made_up_photographs_have_a_photographs_spectrum() -> None:
    """Power falls with about the square of the frequency, and no two pictures are alike."""
    grey = np.stack([np.asarray(dead_leaves(seed).convert("L"), float) for seed in range(40)])
    power = (np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True))) ** 2).mean(0)
    y, x = np.meshgrid(*(np.fft.fftfreq(64),) * 2, indexing="ij")
    radius = np.hypot(y, x)
    inside = (radius > 0.04) & (radius < 0.35)
    slope = np.polyfit(np.log(radius[inside]), np.log(power[inside]), 1)[0]
    assert -3 < slope < -1
    assert np.array_equal(np.asarray(dead_leaves(3)), np.asarray(dead_leaves(3)))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"bits": 0}, "bits must lie"),
        ({"share": 0}, "share must be above 0"),
        ({}, "with an autoencoder in the loop"),
    ],
)
def test_bad_settings_are_refused_before_rendering(
    tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        training.make(tmp_path / "out", "learned-vae", **more)
    assert not (tmp_path / "out").exists()
