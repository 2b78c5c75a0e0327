"""How other programs find the layer that a LoRA's key means: their rules, written anew.

None of these programs runs here; their loaders were read. Each function takes a key without its
last part (`.lora_down.weight`, `.diff`) and says which layer of the model its loader would change:
a place, or None where the loader would leave the key out. Layers are named as diffusers names them.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Model:
    """A model as original code and diffusers name its layers.

    Attributes:
        family: `sd`, `sdxl` or `flux`.
        denoiser: diffusers name -> original name. Several may share one.
        texts: for each text encoder, how many layers.
        open_clip: text encoders that original code builds as OpenCLIP.
    """

    family: str
    denoiser: dict[str, str]
    texts: dict[str, int]
    open_clip: tuple[str, ...] = ()
    component: str = field(default="unet")

    @cached_property
    def originals(self) -> dict[str, str]:
        """Original names, flat -> place of one layer that lies there."""
        return {_flat(o): f"{self.component}/{n}" for n, o in self.denoiser.items()}

    @cached_property
    def diffusers(self) -> dict[str, str]:
        """Diffusers names, flat -> place."""
        return {_flat(name): f"{self.component}/{name}" for name in self.denoiser}

    def text(self, encoder: str, layer: str) -> str | None:
        """The place of a text encoder's layer by its flat name, if there is one."""
        match = re.fullmatch(r"text_model_encoder_layers_(\d+)_(self_attn|mlp)_(\w+)", layer)
        known = {"self_attn": ("q_proj", "k_proj", "v_proj", "out_proj"), "mlp": ("fc1", "fc2")}
        if match is None or match[3] not in known[match[2]]:
            return None
        if int(match[1]) >= self.texts.get(encoder, 0):
            return None
        return f"{encoder}/text_model.encoder.layers.{match[1]}.{match[2]}.{match[3]}"


def _flat(name: str) -> str:
    return name.replace(".", "_")


# --- layers of the original code, counted along its blocks

_RESNET = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3",
           "conv_shortcut": "skip_connection"}  # fmt: skip


def _transformer(depth: int) -> Iterator[str]:
    yield from ("proj_in", "proj_out")
    for block in range(depth):
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                yield f"transformer_blocks.{block}.{attention}.{part}"
        yield f"transformer_blocks.{block}.ff.net.0.proj"
        yield f"transformer_blocks.{block}.ff.net.2"


def _block(ours: str, index: int, theirs: str, depth: int) -> dict[str, str]:
    """A residual block and, where there is one, the attention behind it."""
    found = {f"{ours}.resnets.{index}.{a}": f"{theirs}.0.{b}" for a, b in _RESNET.items()}
    attention = f"{ours}.attentions.{index}"
    return found | {f"{attention}.{n}": f"{theirs}.1.{n}" for n in _transformer(depth) if depth}


def unet(depths: tuple[int, ...], middle: int) -> dict[str, str]:
    """A UNet of two blocks a level; `depths` are its transformers' along the way down."""
    found = {"conv_in": "input_blocks.0.0", "conv_out": "out.2"}
    for number, place in ((1, "0"), (2, "2")):
        found[f"time_embedding.linear_{number}"] = f"time_embed.{place}"
        found[f"add_embedding.linear_{number}"] = f"label_emb.0.{place}"
    place, last = 1, len(depths) - 1
    for level, depth in enumerate(depths):
        for index in range(2):
            found |= _block(f"down_blocks.{level}", index, f"input_blocks.{place}", depth)
            place += 1
        if level < last:
            found[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
            place += 1
    for index, slot in ((0, 0), (1, 2)):
        for ours, theirs in _RESNET.items():
            found[f"mid_block.resnets.{index}.{ours}"] = f"middle_block.{slot}.{theirs}"
    for name in _transformer(middle):
        found[f"mid_block.attentions.0.{name}"] = f"middle_block.1.{name}"
    place = 0
    for level, depth in enumerate(reversed(depths)):
        for index in range(3):
            found |= _block(f"up_blocks.{level}", index, f"output_blocks.{place}", depth)
            place += 1
        if level < last:
            slot = 1 + bool(depth)
            found[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{place - 1}.{slot}.conv"
    return found


_DOUBLE = {
    "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
} | {f"attn.to_{x}": "img_attn.qkv" for x in "qkv"} | {
    f"attn.add_{x}_proj": "txt_attn.qkv" for x in "qkv"}  # fmt: skip
_SINGLE = {"norm.linear": "modulation.lin", "proj_mlp": "linear1", "proj_out": "linear2"} | {
    f"attn.to_{x}": "linear1" for x in "qkv"}  # fmt: skip


def flux() -> dict[str, str]:
    """FLUX.1-dev: 19 double and 38 single blocks."""
    found = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
             "norm_out.linear": "final_layer.adaLN_modulation.1"}  # fmt: skip
    for ours, theirs in (("timestep", "time"), ("guidance", "guidance"), ("text", "vector")):
        for number, side in ((1, "in"), (2, "out")):
            found[f"time_text_embed.{ours}_embedder.linear_{number}"] = f"{theirs}_in.{side}_layer"
    for index in range(19):
        for ours, theirs in _DOUBLE.items():
            found[f"transformer_blocks.{index}.{ours}"] = f"double_blocks.{index}.{theirs}"
    for index in range(38):
        for ours, theirs in _SINGLE.items():
            found[f"single_transformer_blocks.{index}.{ours}"] = f"single_blocks.{index}.{theirs}"
    return found


# --- the programs' rules


def comfyui(stem: str, model: Model) -> str | None:
    """ComfyUI (comfy/lora.py), and Forge, which carries a copy of it: one table of known keys."""
    if stem.startswith("transformer.") and model.family == "flux":
        name = stem.removeprefix("transformer.")
        return f"transformer/{name}" if name in model.denoiser else None
    if stem.startswith("text_encoder."):
        return model.text("text_encoder", _flat(stem.removeprefix("text_encoder.")))
    if stem.startswith("lora_unet_"):
        name = stem.removeprefix("lora_unet_")
        both = model.originals if model.family == "flux" else model.diffusers | model.originals
        return both.get(name)
    for prefix, encoder in (("lora_te_", "text_encoder"), ("lora_te1_", "text_encoder"),
                            ("lora_te2_", "text_encoder_2")):  # fmt: skip
        if stem.startswith(prefix):
            return model.text(encoder, stem.removeprefix(prefix))
    return None


_A1111: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"conv_in", lambda m: "input_blocks_0_0"),
    (r"conv_out", lambda m: "out_2"),
    (r"time_embedding_linear_(\d+)", lambda m: f"time_embed_{2 * int(m[1]) - 2}"),
    (r"down_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)",
     lambda m: f"input_blocks_{1 + 3 * int(m[1]) + int(m[3])}_{_kind(m[2])}_{_inner(m[2], m[4])}"),
    (r"mid_block_(attentions|resnets)_(\d+)_(.+)",
     lambda m: f"middle_block_{_kind(m[1]) or 2 * int(m[2])}_{_inner(m[1], m[3])}"),
    (r"up_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)",
     lambda m: f"output_blocks_{3 * int(m[1]) + int(m[3])}_{_kind(m[2])}_{_inner(m[2], m[4])}"),
    (r"down_blocks_(\d+)_downsamplers_0_conv", lambda m: f"input_blocks_{3 + 3 * int(m[1])}_0_op"),
    (r"up_blocks_(\d+)_upsamplers_0_conv",
     lambda m: f"output_blocks_{2 + 3 * int(m[1])}_{2 if int(m[1]) else 1}_conv"),
)  # fmt: skip


def _kind(kind: str) -> int:
    return int(kind == "attentions")


def _inner(kind: str, name: str) -> str:
    return _flat(_RESNET.get(name, name)) if kind == "resnets" else name


def a1111(stem: str, model: Model) -> str | None:
    """A1111's Lora extension (networks.py): by patterns to the original code's modules."""
    if stem.startswith("lora_unet_"):
        name = stem.removeprefix("lora_unet_")
        for pattern, to in _A1111:
            match = re.fullmatch(pattern, name)
            if match:
                return model.originals.get(to(match))
        return model.originals.get(name)
    for prefix, encoder in (("lora_te_", "text_encoder"), ("lora_te1_", "text_encoder"),
                            ("lora_te2_", "text_encoder_2")):  # fmt: skip
        if stem.startswith(prefix) and (prefix == "lora_te_") == (model.family == "sd"):
            return model.text(encoder, stem.removeprefix(prefix))
    return None


def invokeai(stem: str, model: Model) -> str | None:
    """InvokeAI: on SD diffusers' names, on SDXL the longest known prefix, on FLUX the blocks."""
    if model.family == "flux":
        blocks = r"double_blocks_\d+_(img|txt)_(attn|mlp|mod)|single_blocks_\d+_(linear|modul)"
        if re.match(f"lora_unet_({blocks})", stem):
            return model.originals.get(stem.removeprefix("lora_unet_"))
        if stem.startswith("lora_te1_"):
            return model.text("text_encoder", stem.removeprefix("lora_te1_"))
        return None
    if stem.startswith("lora_unet_"):
        name = stem.removeprefix("lora_unet_")
        return _invoke_sdxl(name, model) if model.family == "sdxl" else model.diffusers.get(name)
    prefixes = {"lora_te_": "text_encoder"} if model.family == "sd" else {
        "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}  # fmt: skip
    for prefix, encoder in prefixes.items():
        if stem.startswith(prefix):
            return model.text(encoder, stem.removeprefix(prefix))
    return None


def _invoke_sdxl(name: str, model: Model) -> str | None:
    """It keeps a list of prefixes: attentions whole, residual blocks by layer."""
    prefixes: dict[str, str] = {}
    for ours, theirs in model.denoiser.items():
        match = re.match(r"(.*attentions\.\d+)\.(.*)", ours)
        if match:
            prefixes[_flat(theirs.removesuffix(f".{match[2]}"))] = _flat(match[1])
        else:
            prefixes[_flat(theirs)] = _flat(ours)
    known = sorted(prefixes)
    nearest = known[bisect.bisect_right(known, name) - 1]
    if not name.startswith(nearest):
        return None
    return model.diffusers.get(prefixes[nearest] + name.removeprefix(nearest))


def sd_scripts(stem: str, model: Model) -> str | None:
    """kohya's sd-scripts: what lies in blocks of certain classes, by its own networks' names."""
    if model.family == "flux":
        inside = re.match(r"lora_unet_(double_blocks|single_blocks|\w+_in(_|$))", stem)
        if inside and not stem.startswith("lora_unet_final"):
            return model.originals.get(stem.removeprefix("lora_unet_"))
        if stem.startswith("lora_te1_"):
            return model.text("text_encoder", stem.removeprefix("lora_te1_"))
        return None
    if stem.startswith("lora_unet_"):
        name = stem.removeprefix("lora_unet_")
        if not re.match(r"(down|up|mid|input|output|middle)_blocks?_\w+_\w+", name):
            return None
        if name == "input_blocks_0_0":
            return None
        return (model.originals if model.family == "sdxl" else model.diffusers).get(name)
    return invokeai(stem, model)


_KEPT = [
    "self_attn", "out_proj", "q_proj", "k_proj", "v_proj", "to_k", "to_q", "to_v", "to_out",
    "text_model", "down_blocks", "mid_block", "up_block", "proj_in", "proj_out",
    "transformer_blocks", "single_transformer_blocks", "single_blocks", "conv_in", "conv_out",
    "time_emb_proj", "conv_shortcut", "time_embedding", "conv_norm_out", "double_blocks",
    "txt_attn", "img_attn", "input_blocks", "output_blocks", "middle_block", "skip_connection",
    "emb_layers", "in_layers", "out_layers", "txt_mod", "img_mod", "txt_mlp", "img_mlp",
    "proj_mlp",
]  # fmt: skip


def stable_diffusion_cpp(stem: str, model: Model) -> str | None:
    """stable-diffusion.cpp: underscores become dots, but for those in words that it knows."""
    if not stem.startswith("lora_"):  # names with dots stay as they are
        name = stem.removeprefix("transformer.")
        return f"transformer/{name}" if name in model.denoiser else None
    flat = stem.removeprefix("lora_")
    kept = {m.start() + i for word in _KEPT for m in re.finditer(f"(?={word})", flat)
            for i, letter in enumerate(word) if letter == "_"}  # fmt: skip
    dotted = "".join("." if c == "_" and i not in kept else c for i, c in enumerate(flat))
    part, _, name = dotted.partition(".")
    if part == "unet":
        named = {n: f"{model.component}/{n}" for n in model.denoiser}
        named |= {o: f"{model.component}/{n}" for n, o in model.denoiser.items()}
        return named.get(name)
    encoder = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}.get(part)
    return model.text(encoder, _flat(name)) if encoder else None


READERS: dict[str, Callable[[str, Model], str | None]] = {
    "ComfyUI": comfyui,
    "Forge": comfyui,
    "A1111": a1111,
    "InvokeAI": invokeai,
    "sd-scripts": sd_scripts,
    "stable-diffusion.cpp": stable_diffusion_cpp,
}
"""Every program by its name in the documentation."""
