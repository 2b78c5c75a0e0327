"""The closed form beside the textbook loop: time, memory and disk.

    python benchmarks/closed_form.py [--models sd15 sdxl flux] [--json]

At the published models' shapes, with random weights and a text encoder of two layers, UCE's solve
is held against one dense inverse a layer in float32 and sums in a Python loop over concepts, as
published code does. Both encode their texts; what is drawn afterwards (the fingerprint) is left
out. Each measurement runs in a process of its own; ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from expunge import UCE
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import BUNDLED
from expunge.closed_form import Ridge, Rows, on_layers
from expunge.concept import Concept
from expunge.erasure import Erasure

SIZES = ((1, 1), (10, 1), (100, 1), (1, 24), (10, 24), (100, 24))
"""Concepts, and embeddings a concept."""
REPEATS = 3
WIDE = {"sdxl": (2048, [640] * 20 + [1280] * 120), "flux": (4096, [3072])}
"""Width of text states and of the layers that read them, where a pipeline is too large."""
WORDS = "abcdefghijklmnopqrstuvwxyz"


def sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5's UNet at full size, random where it reads text and empty elsewhere."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=8,
            cross_attention_dim=768,
        )
    unet.to_empty(device="cpu")
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            nn.init.normal_(module.weight, std=0.03)
    clip = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=12
    )
    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(clip),
        tokenizer=CLIPTokenizer.from_pretrained(BUNDLED["miniature-sd"] / "tokenizer"),
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def names(count: int) -> list[str]:
    return [f"{WORDS[i % 26]}{WORDS[i // 26]} thing" for i in range(count)]


def texts(name: str, embeddings: int) -> list[str]:
    return (
        [name] if embeddings == 1 else [f"a photo of {WORDS[i]} {name}" for i in range(embeddings)]
    )


def _ids(pipe: StableDiffusionPipeline, prompts: list[str]) -> Any:
    return pipe.tokenizer(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )


def textbook(pipe: StableDiffusionPipeline, count: int, embeddings: int, out: Path) -> None:
    """One dense inverse a layer, in float32; what changed is saved whole."""
    layers = [
        (name, module)
        for name, module in pipe.unet.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v"))
    ]
    sources, guides = [], []
    with torch.no_grad():
        empty = pipe.text_encoder(_ids(pipe, [""]).input_ids)[0][0, 0]
        for name in names(count):
            prompts = texts(name, embeddings)
            ids = _ids(pipe, prompts)
            states = pipe.text_encoder(ids.input_ids)[0]
            last = ids.attention_mask.sum(1) - 2
            sources.append(states[torch.arange(len(prompts)), last].T)
            guides.append(empty[:, None].expand(-1, len(prompts)))
        changed = {}
        for name, layer in layers:
            weight = layer.weight
            first, second = 0.5 * weight, 0.5 * torch.eye(weight.shape[1])
            for source, guide in zip(sources, guides, strict=True):
                first = first + (weight @ guide) @ source.T
                second = second + source @ source.T
            changed[name] = first @ torch.inverse(second)
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, out)


def ours(pipe: StableDiffusionPipeline, count: int, embeddings: int, out: Path) -> None:
    """UCE, and its factors saved, shared ones once."""
    template = ("a photo of [" + "|".join(WORDS[:embeddings]) + "] {}",)
    eraser = UCE()
    concepts = [Concept(name) for name in names(count)]
    if embeddings > 1:
        eraser = UCE(prompts=24)
        concepts = [Concept(name, templates=template) for name in names(count)]
    result = eraser._run(as_backbone(pipe), concepts, None)
    erasure = Erasure(result.parts, {}, result.requests)
    stored: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for index, part in enumerate(erasure.parts):
        for place, change in part.closed.items():
            for name, tensor in change.state_dict(keep_vars=True).items():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    stored[f"{index}/{place}/{name}"] = tensor.detach().contiguous()
    save_file(stored, out)


def _measure(job: tuple[str, int, int]) -> dict[str, float]:
    """Seconds (the least of several), bytes on disk, and bytes of memory that one takes."""
    side, count, embeddings = job
    pipe = sd15()
    work = {"textbook": textbook, "ours": ours}[side]
    with torch.no_grad():  # what torch itself allocates at first use is neither side's
        pipe.text_encoder(_ids(pipe, ["a cat"]).input_ids)
        torch.linalg.inv(torch.eye(8))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "changed.safetensors"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work(pipe, count, embeddings, out)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            work(pipe, count, embeddings, out)
            seconds.append(time.perf_counter() - start)
        disk = out.stat().st_size
    return {"seconds": min(seconds), "memory": 1024 * (peak - before), "disk": disk}


def whole() -> Iterator[dict[str, Any]]:
    """Both at SD 1.5's shapes, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    for count, embeddings in SIZES:
        sides = {}
        for side in ("textbook", "ours"):
            with context.Pool(1) as pool:
                sides[side] = pool.apply(_measure, ((side, count, embeddings),))
        yield {
            "model": "sd15",
            "concepts": count,
            "embeddings": embeddings,
            **sides,
            "times_faster": sides["textbook"]["seconds"] / sides["ours"]["seconds"],
        }


def _wide(model: str, count: int, embeddings: int) -> dict[str, Any]:
    """The solve alone at another model's widths: no text is encoded."""
    width, outputs = WIDE[model]
    torch.manual_seed(0)
    layers = {str(i): nn.Linear(width, out, bias=False) for i, out in enumerate(outputs)}
    rows = {
        name: Rows(torch.randn(embeddings, width), torch.randn(embeddings, width))
        for name in names(count)
    }

    def textbook_solve() -> None:
        for layer in layers.values():
            weight = layer.weight.detach()
            first, second = 0.5 * weight, 0.5 * torch.eye(width)
            for each in rows.values():
                first = first + (weight @ each.guides.T) @ each.sources
                second = second + each.sources.T @ each.sources
            _ = first @ torch.inverse(second)

    def own_solve() -> None:
        on_layers(Ridge(0.5).solve(rows, None), layers)

    def timed(work: Any) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    # The loop over all layers is timed on a tenth of them where there are many.
    if len(layers) > 20:
        some = dict(list(layers.items())[:: len(layers) // 10])
        every, layers = layers, some
        slow = timed(textbook_solve) * len(every) / len(some)
        layers = every
    else:
        slow = timed(textbook_solve)
    fast = statistics.median(timed(own_solve) for _ in range(REPEATS))
    sides = {"textbook": {"seconds": slow}, "ours": {"seconds": fast}}
    head = {"model": f"{model} (solve alone)", "concepts": count, "embeddings": embeddings}
    return {**head, **sides, "times_faster": slow / fast}


def show(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        sides = ", ".join(
            f"{side} {row[side]['seconds']:.2f} s"
            + (
                f" {row[side]['memory'] / 1e6:.0f} MB memory {row[side]['disk'] / 1e6:.1f} MB disk"
                if "disk" in row[side]
                else ""
            )
            for side in ("textbook", "ours")
        )
        print(
            f"{row['model']}, {row['concepts']} concepts of {row['embeddings']}: {sides}; "
            f"{row['times_faster']:.1f} times faster",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["sd15", *WIDE])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = []
    for model in given.models:
        rows = whole() if model == "sd15" else (_wide(model, *size) for size in SIZES)
        for row in rows:
            found.append(row)
            if not given.json:
                show([row])
    if given.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
