"""Memory that erasing takes: computed for the published models, measured on small ones like them.

    python benchmarks/memory.py plan [--json]
    python benchmarks/memory.py measure [--models flux …] [--second-copy] [--json]

`plan` builds the published architectures without weights, runs them without computing, and counts.
`measure` trains adapters on random models of the same classes, real in depth and narrow in width,
and fails where the peak is more than 1.15 of weights, adapters, optimiser, data and one batch's
activations: where a second copy of the weights is kept. `--second-copy` keeps one on purpose, so
that the check can be seen to fail.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import string
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from expunge import ESD
from expunge.adapter import Adapter
from expunge.backbone.base import Backbone
from expunge.backbone.conditioning import Conditioning
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import BUNDLED
from expunge.change import LowRank
from expunge.concept import Concept
from expunge.eraser.matching import Lesson, Matching
from expunge.eraser.points import Points
from expunge.run.objective import Step

RANK = 4
ALLOWED = 1.15
GB = 1e9

# --- the architectures: `rest` divides the widths of text encoders and autoencoder


def clip(width: int, layers: int, heads: int, rest: int, projected: bool) -> nn.Module:
    config = transformers.CLIPTextConfig(
        hidden_size=width // rest,
        intermediate_size=4 * width // rest,
        projection_dim=width // rest,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    made: nn.Module = kind(config)
    return made


def clip_l(rest: int, projected: bool = False) -> nn.Module:
    return clip(768, 12, 12, rest, projected)


def open_clip_bigg(rest: int) -> nn.Module:
    return clip(1280, 32, 20, rest, True)


def t5_xxl(rest: int) -> nn.Module:
    config = transformers.T5Config(
        d_model=4096 // rest,
        d_kv=64 // rest,
        d_ff=10240 // rest,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    made: nn.Module = transformers.T5EncoderModel(config)
    return made


def autoencoder(rest: int, channels: int) -> nn.Module:
    made: nn.Module = diffusers.AutoencoderKL(
        block_out_channels=tuple(width // rest for width in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=min(32, 128 // rest),
        latent_channels=channels,
        use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4,
    )
    return made


def sd15(width: int, rest: int, side: int) -> dict[str, Any]:
    unet = diffusers.UNet2DConditionModel(
        sample_size=side,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        attention_head_dim=8,
        cross_attention_dim=768 // rest,
    )
    return {"unet": unet, "vae": autoencoder(rest, 4), "text_encoder": clip_l(rest)}


def sdxl(width: int, rest: int, side: int) -> dict[str, Any]:
    channels = (width, 2 * width, 4 * width)
    unet = diffusers.UNet2DConditionModel(
        sample_size=side,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[max(1, count // 64) for count in channels],
        cross_attention_dim=2048 // rest,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256 // rest,
        projection_class_embeddings_input_dim=2816 // rest,
    )
    texts = {"text_encoder": clip_l(rest), "text_encoder_2": open_clip_bigg(rest)}
    return {"unet": unet, "vae": autoencoder(rest, 4), **texts}


def sd3(width: int, rest: int, side: int) -> dict[str, Any]:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=side,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=width // 64,
        joint_attention_dim=4096 // rest,
        caption_projection_dim=width,
        pooled_projection_dim=2048 // rest,
        pos_embed_max_size=192,
    )
    texts = {
        "text_encoder": clip_l(rest, projected=True),
        "text_encoder_2": open_clip_bigg(rest),
        "text_encoder_3": t5_xxl(rest),
    }
    return {"transformer": transformer, "vae": autoencoder(rest, 16), **texts}


def flux(width: int, rest: int, side: int) -> dict[str, Any]:
    head = 128 if rest == 1 else 64
    transformer = diffusers.FluxTransformer2DModel(
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=head,
        num_attention_heads=width // head,
        joint_attention_dim=4096 // rest,
        pooled_projection_dim=768 // rest,
        guidance_embeds=True,
        axes_dims_rope=(head // 8, 7 * head // 16, 7 * head // 16),
    )
    texts = {"text_encoder": clip_l(rest), "text_encoder_2": t5_xxl(rest)}
    return {"transformer": transformer, "vae": autoencoder(rest, 16), **texts}


Build = Callable[[int, int, int], dict[str, Any]]
MODELS: dict[str, tuple[Build, str, int, int]] = {
    "sd15": (sd15, "StableDiffusionPipeline", 320, 64),
    "sdxl": (sdxl, "StableDiffusionXLPipeline", 320, 32),
    "sd3": (sd3, "StableDiffusion3Pipeline", 1536, 192),
    "flux": (flux, "FluxPipeline", 3072, 192),
}
"""Builder, pipeline, the published width and the width that is measured."""

SIZES = {"sd15": (64, 77), "sdxl": (128, 77), "sd3": (128, 77 + 256), "flux": (128, 512)}
"""Latents along a side of a picture, tokens of a prompt."""


def pipeline(name: str, *, full: bool) -> Any:
    """The published model without weights, or the narrow one at random."""
    diffusers.logging.set_verbosity_error()
    build, kind, width, narrow = MODELS[name]
    torch.manual_seed(0)
    with torch.device("meta" if full else "cpu"):
        parts = build(width, 1, SIZES[name][0]) if full else build(narrow, 16, 16)
    for part in [part for part in parts if part.startswith("text_encoder")]:
        t5 = isinstance(parts[part], transformers.T5EncoderModel)
        made = None if full else t5_tokenizer() if t5 else clip_tokenizer()
        parts[part.replace("text_encoder", "tokenizer")] = made
    if "transformer" in parts:
        parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler()
    else:
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        offset = {"clip_sample": False, "steps_offset": 1}
        parts["scheduler"] = diffusers.DDIMScheduler(**betas, **offset)
    if name == "sd15":
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts["requires_safety_checker"] = False
    pipe = getattr(diffusers, kind)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip_tokenizer() -> Any:
    return transformers.CLIPTokenizer.from_pretrained(BUNDLED["miniature-sd"] / "tokenizer")


def t5_tokenizer() -> Any:
    """One that spells."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    pieces += [(letter, -2.0) for letter in string.printable[:94]]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


# --- counting


class Live(TorchDispatchMode):
    """Bytes of all tensors alive that an operation ever read or made, and the most there were.

    What kernels allocate inside themselves is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: Any = WeakIdKeyDictionary(ref_type=weakref.ref)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.see(tree_leaves((args, kwargs, made)))
        return made

    def see(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage not in self._known:
                    self._known[storage] = None
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage.nbytes())
        self.most = max(self.most, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size


@contextlib.contextmanager
def peak(backbone: Backbone) -> Iterator[Callable[[], int]]:
    """Yields a question: the most bytes that tensors took so far, the weights among them."""
    if backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield torch.cuda.max_memory_allocated
        return
    with Live() as live:
        live.see(tensor for part in networks(backbone.pipe).values() for tensor in tensors(part))
        yield lambda: live.most


def networks(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def size(values: Iterable[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)


def weights(backbone: Backbone) -> int:
    return sum(size(tensors(part)) for part in networks(backbone.pipe).values())


def fresh(backbone: Backbone) -> dict[str, LowRank]:
    generator, found = torch.Generator().manual_seed(0), {}
    for name, layer in backbone.select("attention").items():
        change = LowRank.fresh(layer, RANK, generator).to(backbone.device).requires_grad_()
        found[f"{backbone.denoiser_name}/{name}"] = change
    return found


def one_batch(backbone: Backbone) -> dict[str, int]:
    """Bytes of adapters, and of all that a step adds to them: one point erased, one kept."""
    noise = backbone.initial_noise([0, 1], backbone.profile.sampling)
    level = torch.tensor([0.5], dtype=torch.float64)
    erased, kept = (Points(part, level, ["a cat"], part) for part in noise.split(1))
    backbone.denoiser.requires_grad_(False)
    changes = fresh(backbone)
    adapter = Adapter(backbone.networks, {"cat": changes})
    adapters = size(p for change in changes.values() for p in change.parameters())
    objective = Matching(ESD(preserve=1.0), backbone, {"cat": Lesson(erased, kept)})
    with peak(backbone) as most:
        terms = objective.loss(Step(0, torch.Generator().manual_seed(0)), "cat")
        assert isinstance(terms, dict)
        torch.autograd.backward(sum(terms.values()))
    adapter.remove(backbone.networks)
    backbone.denoiser.requires_grad_(True)
    return {"adapters": adapters, "activations": most() - weights(backbone) - adapters}


# --- plan


def counted(module: nn.Module) -> dict[str, float]:
    """Parameters, and gigabytes in four precisions.

    `int8` holds the weights of linear layers in 8 bits with a scale a row, `nf4` in 4 bits with an
    fp32 scale for every 64 of them; both hold all the rest in bf16.
    """
    everything = sum(tensor.numel() for tensor in tensors(module))
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    linear = sum(layer.weight.numel() for layer in layers)
    rows = sum(layer.out_features for layer in layers)
    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "fp32": 4 * everything / GB,
        "bf16": 2 * everything / GB,
        "int8": (linear + 2 * rows + 2 * (everything - linear)) / GB,
        "nf4": ((0.5 + 4 / 64) * linear + 2 * (everything - linear)) / GB,
    }


class Fused(torch.autograd.Function):
    """Attention that keeps for backward what a fused kernel keeps: what went in and came out."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        made = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, made)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return tuple(torch.empty_like(kept) for kept in ctx.saved_tensors[:3])


@contextlib.contextmanager
def uncomputed(backbone: Backbone, name: str, side: int) -> Iterator[None]:
    """Within this context a model without weights predicts pictures of `side` pixels."""
    config, tokens = backbone.denoiser_config, SIZES[name][1]
    width = config.get("joint_attention_dim") or config["cross_attention_dim"]
    pooled = {"sdxl": 1280, "sd3": 2048, "flux": 768}.get(name)
    like = {"device": "meta", "dtype": torch.bfloat16}
    told = Conditioning(
        torch.empty(1, tokens, width, **like), torch.empty(1, pooled, **like) if pooled else None
    )
    sampling = replace(backbone.profile.sampling, height=side, width=side)
    backbone.profile = replace(backbone.profile, sampling=sampling)

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return Fused.apply(query, key, value)  # type: ignore[no-any-return, no-untyped-call]

    with (
        patch("torch.nn.functional.scaled_dot_product_attention", attend),
        patch("torch.autocast", lambda *_, **__: contextlib.nullcontext()),
        patch.object(backbone, "encode_prompts", lambda texts: told.repeat(len(texts))),
    ):
        yield


def activations(name: str, side: int) -> dict[str, float]:
    """Gigabytes in bf16: of a training step of two points, and of one batch of predictions."""
    backbone = as_backbone(pipeline(name, full=True).to(torch.bfloat16))
    with uncomputed(backbone, name, side):
        plain = one_batch(backbone)["activations"]
        count = 2 * backbone.profile.sampling.batch_size
        noise = backbone.initial_noise(range(count), backbone.profile.sampling)
        with torch.no_grad(), peak(backbone) as most:
            backbone.predict(noise, 0.5, backbone.encode_prompts([""] * count))
        backbone.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        less = one_batch(backbone)["activations"]
    drawing = most() - weights(backbone)
    found = {"training": plain, "with checkpointing": less, "predicting": drawing}
    return {kind: value / GB for kind, value in found.items()}


def planned(name: str) -> dict[str, Any]:
    """What one published model takes."""
    pipe = pipeline(name, full=True)
    backbone = as_backbone(pipe)
    layers = backbone.select("attention").values()
    adapters = sum(RANK * (layer.in_features + layer.out_features) for layer in layers)
    side, tokens = SIZES[name]
    config = backbone.denoiser_config
    width = config.get("joint_attention_dim") or config["cross_attention_dim"]
    latent = pipe.vae.config.latent_channels * side**2
    steps, runs = backbone.profile.sampling.num_inference_steps, ESD().trajectories
    points = 2 * runs * steps * 2 * latent  # erased and kept; where, and what to predict there
    return {
        "model": name,
        "parts": {part: counted(module) for part, module in networks(pipe).items()},
        "adapter parameters": adapters,
        "adapters, gradients, AdamW, fp32": 4 * 4 * adapters / GB,
        "training points and their text, bf16": 2 * (points + 2 * runs * tokens * width) / GB,
        "activations": {side: activations(name, side) for side in sorted({512, 8 * side})},
    }


def show_plan(rows: list[dict[str, Any]]) -> None:
    kinds = ["fp32", "bf16", "int8", "nf4"]
    print(f"| model | part | parameters, M | {', GB | '.join(kinds)}, GB |")
    print("| --- | --- | --- |" + " --- |" * len(kinds))
    for row in rows:
        for part, size in row["parts"].items():
            cells = [f"{size['parameters'] / 1e6:,.0f}", *(f"{size[kind]:.2f}" for kind in kinds)]
            print(f"| {row['model']} | {part} | {' | '.join(cells)} |")
    kinds = ["adapters, gradients, AdamW, fp32", "training points and their text, bf16"]
    print(f"\n| model | adapter parameters, M | {', GB | '.join(kinds)}, GB |")
    print("| --- | --- | --- | --- |")
    for row in rows:
        cells = [f"{row['adapter parameters'] / 1e6:.2f}", *(f"{row[kind]:.3f}" for kind in kinds)]
        print(f"| {row['model']} | {' | '.join(cells)} |")
    kinds = ["training", "with checkpointing", "predicting"]
    print(f"\n| model | pixels | {', GB | '.join(kinds)}, GB |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        for side, found in row["activations"].items():
            cells = [f"{found[kind]:.2f}" for kind in kinds]
            print(f"| {row['model']} | {side} | {' | '.join(cells)} |")


# --- measure


def measured(name: str, second_copy: bool) -> dict[str, Any]:
    """Peak bytes of a real erasure, beside what they should be made of."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = as_backbone(pipeline(name, full=False).to(device))
    backbone.precision = "own"  # a cast of all the weights would pass for activations
    few = replace(backbone.profile.sampling, num_inference_steps=4, height=128, width=128)
    backbone.profile = replace(backbone.profile, sampling=few, max_sequence_length=64)
    eraser = ESD(steps=3, trajectories=4, preserve=1.0, attention="attention", rank=RANK)
    concept = Concept("cat", anchor="dog", templates=("a [photo|picture|drawing|view] of a {}",))
    found = {"weights": weights(backbone), **one_batch(backbone)}
    found["optimiser"] = 2 * found["adapters"]  # AdamW's moments; gradients are in the batch
    with peak(backbone) as most:
        copied = copy.deepcopy(backbone.denoiser) if second_copy else None
        eraser.erase(backbone, [concept])
        del copied
    latent = backbone.initial_noise([0], few)
    text = backbone.encode_prompts([text for _, text in backbone._cache]).prompt_embeds
    found["data"] = 4 * eraser.trajectories * 4 * size([latent]) + size([text])
    expected = sum(found.values())
    sizes = {"denoiser": size(tensors(backbone.denoiser)), **found, "expected": expected}
    return {"model": name, "device": device, **sizes, "peak": most(), "ratio": most() / expected}


def show_measured(rows: list[dict[str, Any]]) -> None:
    kinds = [kind for kind in rows[0] if kind not in ("model", "device", "ratio")]
    print(f"| model | {', MB | '.join(kinds)}, MB | peak / expected |")
    print("| --- |" + " --- |" * (len(kinds) + 1))
    for row in rows:
        cells = [f"{row[kind] / 1e6:.1f}" for kind in kinds]
        print(f"| {row['model']} | {' | '.join(cells)} | {row['ratio']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("plan", "measure"))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--second-copy", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.part == "plan":
        rows, show = [planned(name) for name in asked.models], show_plan
    else:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            jobs = [(name, asked.second_copy) for name in asked.models]
            rows, show = pool.starmap(measured, jobs, chunksize=1), show_measured
    if asked.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows)
    over = [row["model"] for row in rows if row.get("ratio", 0) > ALLOWED]
    if over:
        sys.exit(f"more than {ALLOWED} of what is expected: {', '.join(over)}")


if __name__ == "__main__":
    main()
