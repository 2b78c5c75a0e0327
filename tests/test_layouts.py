"""Other tools' names: what is written is what diffusers' own readers make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from expunge.change import LowRank
from expunge.layouts import kohya_flux, kohya_sd, kohya_sdxl, single_file_tensors

RANK = 2
Module = TypeVar("Module", bound=nn.Module)


def _random(module: Module) -> Module:
    """Every weight drawn anew: the zeros and ones of a fresh module would hide a swapped name."""
    for parameter in module.parameters():
        parameter.data.normal_()
    return module


def _unet(blocks: int, **options: Any) -> UNet2DConditionModel:
    """Attention everywhere but in the deepest block, as in Stable Diffusion."""
    settings: dict[str, Any] = {
        "block_out_channels": (32, 64, 96, 96)[:blocks],
        "down_block_types": ["CrossAttnDownBlock2D"] * (blocks - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (blocks - 1),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
        "sample_size": 8,
    }
    return _random(UNet2DConditionModel(**settings | options))


def _vae(**options: Any) -> AutoencoderKL:
    settings: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 8,
    }
    return _random(AutoencoderKL(**settings | options))


def _text(act: str, width: int = 32, layers: int = 2, kind: type = CLIPTextModel) -> Any:
    return _random(
        kind(
            CLIPTextConfig(
                hidden_act=act,
                hidden_size=width,
                intermediate_size=2 * width,
                num_attention_heads=4,
                num_hidden_layers=layers,
                projection_dim=48,
                vocab_size=1037,
            )
        )
    )


def _sd(tokenizer: Any, unet: Any, vae: Any, text: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd1(tokenizer: Any) -> StableDiffusionPipeline:
    return _sd(tokenizer, _unet(2), _vae(), _text("quick_gelu"))


def _sd1_whole(tokenizer: Any) -> StableDiffusionPipeline:
    """As many blocks and layers as Stable Diffusion 1.5 has."""
    vae = _vae(
        block_out_channels=(8, 16, 32, 32),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
    )
    return _sd(tokenizer, _unet(4, layers_per_block=2), vae, _text("quick_gelu", layers=12))


def _sd2(tokenizer: Any) -> StableDiffusionPipeline:
    unet = _unet(3, layers_per_block=2, use_linear_projection=True)
    vae = _vae(use_quant_conv=False, use_post_quant_conv=False)
    return _sd(tokenizer, unet, vae, _text("gelu"))


def _sdxl(tokenizer: Any, **options: Any) -> StableDiffusionXLPipeline:
    """Attention in the deeper blocks only, as in SDXL."""
    unet = _unet(
        3,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 48,
        cross_attention_dim=32 + 64,
        **options,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_text("quick_gelu"),
        text_encoder_2=_text("gelu", width=64, kind=CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
    )


def _sdxl_deep(tokenizer: Any) -> StableDiffusionXLPipeline:
    return _sdxl(tokenizer, layers_per_block=2)


def _networks(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def _read_again(pipe: Any, folder: Path) -> Any:
    """Written as one file, and read by plain diffusers from that file alone."""
    pipe.save_pretrained(folder / "config")
    for weights in (folder / "config").rglob("*.safetensors"):
        weights.unlink()
    path = folder / "model.safetensors"
    save_file(single_file_tensors(pipe), path)
    return type(pipe).from_single_file(
        str(path), config=str(folder / "config"), dtype=torch.float32, local_files_only=True
    )


def _assert_same_weights(first: Any, second: Any) -> None:
    assert _networks(first).keys() == _networks(second).keys()
    for name, network in _networks(first).items():
        here, there = network.state_dict(), _networks(second)[name].state_dict()
        assert here.keys() == there.keys(), name
        assert all(torch.equal(tensor, there[key]) for key, tensor in here.items()), name


# --- one file


@pytest.mark.parametrize("make", [_sd1, _sd1_whole, _sd2, _sdxl, _sdxl_deep])
def test_one_file_reads_back_bit_for_bit(
    make: Callable[[Any], Any], pipe: Any, tmp_path: Path
) -> None:
    made = make(pipe.tokenizer)
    _assert_same_weights(made, _read_again(made, tmp_path))


def test_the_bundled_model_reads_back_bit_for_bit(pipe: Any, tmp_path: Path) -> None:
    _assert_same_weights(pipe, _read_again(pipe, tmp_path))


def test_as_many_tensors_as_stable_diffusion_has(pipe: Any) -> None:
    """Counts of the published file, less its buffers; names that only its whole shape reaches."""
    names = single_file_tensors(_sd1_whole(pipe.tokenizer))
    prefixes = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.")
    assert [sum(name.startswith(p) for name in names) for p in prefixes] == [686, 248, 196]
    assert "model.diffusion_model.output_blocks.11.0.skip_connection.weight" in names
    assert "model.diffusion_model.output_blocks.2.1.conv.weight" in names
    assert "model.diffusion_model.output_blocks.5.2.conv.weight" in names
    assert names["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)


def test_the_layout_follows_from_the_pipeline(pipe: Any) -> None:
    """By the text encoders, whose names the front ends look for."""
    sd1, sd2, sdxl = (single_file_tensors(make(pipe.tokenizer)) for make in (_sd1, _sd2, _sdxl))
    clip = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
    fused = "model.transformer.resblocks.0.attn.in_proj_weight"
    assert clip in sd1
    assert sd2[f"cond_stage_model.{fused}"].shape == (3 * 32, 32)
    assert sdxl[f"conditioner.embedders.1.{fused}"].shape == (3 * 64, 64)
    assert sdxl["conditioner.embedders.1.model.text_projection"].shape == (64, 48)
    assert clip.replace("cond_stage_model", "conditioner.embedders.0") in sdxl
    assert "model.diffusion_model.label_emb.0.0.weight" in sdxl


def test_what_the_layout_cannot_say_is_refused(pipe: Any) -> None:
    attention = ["AttnDownBlock2D", "DownBlock2D"]
    for unet, reason in (
        (_unet(2, down_block_types=attention), "down_blocks.0.attentions.0.group_norm"),
        (_unet(2, layers_per_block=[1, 2]), r"layers_per_block .* \[1, 2\]"),
        (_unet(2, time_cond_proj_dim=8), "time_embedding.cond_proj"),
    ):
        with pytest.raises(ValueError, match=reason):
            single_file_tensors(_sd(pipe.tokenizer, unet, _vae(), _text("quick_gelu")))
    with pytest.raises(ValueError, match=r"at most 23 layers .* got 24"):
        single_file_tensors(_sd(pipe.tokenizer, _unet(2), _vae(), _text("gelu", layers=24)))
    with pytest.raises(ValueError, match="got FluxPipeline"):
        single_file_tensors(_flux())


def test_text_encoders_readers_would_confuse_are_refused(pipe: Any) -> None:
    made = _sdxl(pipe.tokenizer)
    made.text_encoder = _text("quick_gelu", width=64)
    with pytest.raises(ValueError, match="both are 64 wide"):
        single_file_tensors(made)
    made.text_encoder = None
    with pytest.raises(ValueError, match="got none"):
        single_file_tensors(made)


# --- kohya


def _random_change(shape: Iterable[int]) -> LowRank:
    rows, *inner = shape
    return LowRank(torch.randn(RANK, *inner), torch.randn(rows, RANK))


def _changes(
    network: nn.Module,
    names: Iterable[str] | None = None,
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
) -> dict[str, LowRank]:
    """A random change of every linear layer, or of those named."""
    found = {n: m for n, m in network.named_modules() if isinstance(m, kinds)}
    return {
        name: _random_change(module.weight.shape)
        for name, module in found.items()
        if names is None or name in names
    }


def _file(changes: Mapping[str, LowRank]) -> dict[str, Tensor]:
    tensors = {}
    for name, change in changes.items():
        up = change.up.detach()
        tensors[f"{name}.lora_down.weight"] = change.down.detach()
        tensors[f"{name}.lora_up.weight"] = up if change.down.ndim == 2 else up[:, :, None, None]
        tensors[f"{name}.alpha"] = torch.tensor(float(change.rank))
    return tensors


def _load(pipe: Any, changes: Mapping[str, LowRank], folder: Path) -> None:
    save_file(_file(changes), folder / "lora.safetensors")
    pipe.load_lora_weights(folder, weight_name="lora.safetensors", local_files_only=True)


def _deltas(network: nn.Module) -> dict[str, Tensor]:
    """What diffusers and peft add to each layer's weight."""
    return {
        name: sum(module.get_delta_weight(adapter).detach() for adapter in module.active_adapters)
        for name, module in network.named_modules()
        if isinstance(module, LoraLayer)
    }


def _assert_read(network: nn.Module, changes: Mapping[str, LowRank]) -> None:
    deltas = _deltas(network)
    assert deltas.keys() == changes.keys()
    for name, change in changes.items():
        assert torch.allclose(deltas[name].double(), change.delta, atol=1e-5), name


@pytest.mark.parametrize("make", [_sd1, _sd2])
def test_kohya_names_of_stable_diffusion(
    make: Callable[[Any], Any], pipe: Any, tmp_path: Path
) -> None:
    """Every linear layer and every convolution."""
    made = make(pipe.tokenizer)
    changes = _changes(made.unet, kinds=(nn.Linear, nn.Conv2d))
    _load(made, kohya_sd(changes), tmp_path)
    _assert_read(made.unet, changes)


@pytest.mark.parametrize("make", [_sdxl, _sdxl_deep])
def test_kohya_names_of_sdxl(make: Callable[[Any], Any], pipe: Any, tmp_path: Path) -> None:
    made = make(pipe.tokenizer)
    changes = _changes(made.unet, kinds=(nn.Linear, nn.Conv2d))
    _load(made, kohya_sdxl(changes, made.unet.config), tmp_path)
    _assert_read(made.unet, changes)


def test_kohya_names_of_the_real_sdxl() -> None:
    """Names as kohya's trainers write them for three blocks of two layers."""
    config = {"layers_per_block": 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"]}
    names = {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
        ),
        "down_blocks.2.attentions.1.proj_in": "lora_unet_input_blocks_8_1_proj_in",
        "mid_block.attentions.0.proj_out": "lora_unet_middle_block_1_proj_out",
        "up_blocks.0.attentions.2.transformer_blocks.9.ff.net.0.proj": (
            "lora_unet_output_blocks_2_1_transformer_blocks_9_ff_net_0_proj"
        ),
        "up_blocks.1.resnets.1.time_emb_proj": "lora_unet_output_blocks_4_0_emb_layers_1",
        "add_embedding.linear_1": "lora_unet_label_emb_0_0",
    }
    change = LowRank(torch.ones(1, 1), torch.ones(1, 1))
    assert list(kohya_sdxl(dict.fromkeys(names, change), config)) == list(names.values())


def _flux() -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=_random(transformer),
    )


def _in_double_blocks(changes: Mapping[str, LowRank]) -> dict[str, LowRank]:
    return {name: c for name, c in changes.items() if name.startswith("transformer_blocks.")}


def test_kohya_names_of_flux(tmp_path: Path) -> None:
    """All of the double blocks, and of the single ones what is not fused."""
    pipe = _flux()
    changes = _changes(pipe.transformer)
    plain = ("proj_out", "norm.linear")
    chosen = _in_double_blocks(changes) | {
        name: change
        for name, change in changes.items()
        if name.startswith("single_") and name.split(".", 2)[2] in plain
    }
    _load(pipe, kohya_flux(chosen), tmp_path)
    _assert_read(pipe.transformer, chosen)


def test_fused_layers_of_flux_with_missing_members_read_back(tmp_path: Path) -> None:
    """Members without a change are read as changes of zero, and all are scaled by 1."""
    pipe = _flux()
    names = ["transformer_blocks.0.attn.to_v", "transformer_blocks.1.attn.add_k_proj"]
    names += ["transformer_blocks.1.attn.to_out.0"]
    changes = _changes(pipe.transformer, names)
    _load(pipe, kohya_flux(changes), tmp_path)
    deltas = _deltas(pipe.transformer)
    assert len(deltas) == 3 + 3 + 1
    for name, delta in deltas.items():
        wanted = changes[name].delta if name in changes else torch.zeros_like(delta).double()
        assert torch.allclose(delta.double(), wanted, atol=1e-6), name


def test_the_fused_layer_of_single_blocks_reads_back_at_full_width() -> None:
    """Diffusers' reader knows it at FLUX's own width only."""
    block, width = "single_transformer_blocks.37", 3072
    outputs = {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1, "proj_mlp": 4}
    changes = {
        f"{block}.{name}": LowRank(torch.randn(RANK, width), torch.randn(times * width, RANK))
        for name, times in outputs.items()
    }
    del changes[f"{block}.attn.to_k"]
    state = FluxPipeline.lora_state_dict(_file(kohya_flux(changes)))
    for name in outputs:
        change = changes.get(f"{block}.{name}")
        down, up = (state[f"transformer.{block}.{name}.lora_{m}.weight"] for m in "AB")
        assert down.shape[0] == RANK
        assert not down.any() if change is None else torch.equal(down, change.down)
        assert not up.any() if change is None else torch.equal(up, change.up)


def test_the_fused_layer_is_the_members_one_under_another() -> None:
    transformer = _flux().transformer
    members = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    names = [f"single_transformer_blocks.1.{name}" for name in members]
    changes = _changes(transformer, names)
    [(name, fused)] = kohya_flux(changes).items()
    assert name == "lora_unet_single_blocks_1_linear1"
    stacked = torch.cat([changes[name].delta for name in names])
    assert torch.allclose(fused.delta, stacked, atol=1e-6)
    only = kohya_flux({names[3]: changes[names[3]]})[name]
    assert only.delta.shape == stacked.shape
    assert torch.allclose(only.delta[3 * 32 :], changes[names[3]].delta, atol=1e-6)
    assert not only.delta[: 3 * 32].any()


def test_flux_layers_outside_the_blocks() -> None:
    """Diffusers' reader converts them, with or without the prefix that it then asks for."""
    changes = _changes(_flux().transformer)
    embedders = {n: c for n, c in changes.items() if "embed" in n}
    names = kohya_flux(embedders)
    assert "lora_unet_txt_in" in names
    assert "lora_unet_vector_in_in_layer" in names
    state = FluxPipeline.lora_state_dict(_file(names))
    found = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    assert len(found) == 2 * len(embedders) == 2 * 8
    for name, change in embedders.items():
        assert torch.equal(found[f"{name}.lora_A.weight"], change.down)
        assert torch.equal(found[f"{name}.lora_B.weight"], change.up)


def test_flux_refuses_unknown_layers_and_pads_uneven_ranks() -> None:
    transformer = _flux().transformer
    changes = _changes(transformer, ["context_embedder", "norm_out.linear"])
    with pytest.raises(ValueError, match=r"norm_out\.linear"):
        kohya_flux(changes)
    names = [f"transformer_blocks.0.attn.{part}" for part in ("to_q", "to_k")]
    changes = _changes(transformer, names)
    changes[names[0]] = changes[names[0]].padded(RANK + 1)
    (fused,) = kohya_flux(changes).values()
    assert fused.rank == 3 * (RANK + 1)
