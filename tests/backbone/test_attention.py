from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from backbone.architectures import TINY
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.adapter import Adapter
from expunge.backbone.attention import AttentionMaps, combine
from expunge.change import LowRank

TEXT, PICTURE = 6, 16
"""Text tokens, and places of the 8x8 latents in patches of two by two."""
JOINT = ["sd3", "sd35", "flux_dev", "flux_schnell"]
LAYERS = {
    "sd": ["down_blocks.0", "up_blocks.1", "up_blocks.1", "mid_block"],
    "sdxl": ["down_blocks.1"] * 2 + ["up_blocks.0"] * 4 + ["mid_block"] * 2,
    "sd3": [f"transformer_blocks.{i}" for i in range(3)],
    "sd35": [f"transformer_blocks.{i}" for i in range(3)],
    "flux_dev": [f"{kind}transformer_blocks.{i}" for kind in ("", "single_") for i in range(2)],
}

Call = Callable[[], Tensor]


def _denoiser(name: str) -> nn.Module:
    """A tiny denoiser, with norms that do something."""
    pipe = TINY[name]()
    denoiser: nn.Module = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in denoiser.named_parameters():
            if "norm_q" in key or "norm_k" in key or "norm_added" in key:
                parameter.uniform_(0.5, 3, generator=generator)
            elif key.endswith(("to_q.weight", "to_k.weight", "add_k_proj.weight")):
                parameter.mul_(4)
    return denoiser


def _arguments(denoiser: Any, count: int = 2) -> dict[str, Any]:
    """Random arguments of the denoiser's own kind."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    config = denoiser.config
    width = config.get("cross_attention_dim") or config.joint_attention_dim
    given: dict[str, Any] = {
        "encoder_hidden_states": randn(TEXT, width),
        "timestep": torch.full((count,), 0.5),
    }
    if "cross_attention_dim" in config:
        given["sample"] = randn(4, 8, 8)
        if config.addition_embed_type == "text_time":
            given["added_cond_kwargs"] = {"text_embeds": randn(32), "time_ids": randn(6)}
        return given
    given["pooled_projections"] = randn(config.pooled_projection_dim)
    if "axes_dims_rope" not in config:
        return given | {"hidden_states": randn(16, 8, 8)}
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    given |= {"hidden_states": randn(PICTURE, 64), "img_ids": places}
    guidance = torch.full((count,), 3.5) if config.guidance_embeds else None
    return given | {"txt_ids": torch.zeros(TEXT, 3), "guidance": guidance}


def _call(denoiser: nn.Module) -> Call:
    given = _arguments(denoiser)
    return lambda: denoiser(**given, return_dict=False)[0]


def _hooks(denoiser: nn.Module) -> Iterator[Any]:
    for module in denoiser.modules():
        yield from module._forward_hooks.values()
        yield from module._forward_pre_hooks.values()


def _attended(monkeypatch: pytest.MonkeyPatch, denoiser: nn.Module) -> list[Tensor]:
    """Full softmax(q kᵀ / √d) of everything the real processors attend, in order."""
    found: list[Tensor] = []
    own = F.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        probabilities = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        output = own(query, key, value, **more)
        assert torch.allclose(probabilities @ value, output, atol=1e-5)
        found.append(probabilities)
        return output

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_read_text_are_recorded(name: str) -> None:
    denoiser = _denoiser(name)
    call = _call(denoiser)
    with torch.no_grad(), AttentionMaps(denoiser) as maps:
        call()
    kept = sorted(maps.layers)
    assert len(kept) == len(LAYERS[name])
    assert all(map(str.startswith, kept, sorted(LAYERS[name])))
    assert all(probabilities.shape[::3] == (2, TEXT) for probabilities in maps.layers.values())


@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl"])
def test_rows_of_a_unet_sum_to_one(name: str) -> None:
    denoiser = _denoiser(name)
    with torch.no_grad(), AttentionMaps(denoiser) as maps:
        _call(denoiser)()
    for probabilities in maps.layers.values():
        assert torch.allclose(probabilities.sum(-1), torch.ones(()), atol=1e-6)
        assert probabilities.std() > 1e-4


@pytest.mark.parametrize("name", ["sd", "sdxl", *JOINT])
def test_maps_are_what_the_processors_attend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = _denoiser(name)
    call = _call(denoiser)
    attended = _attended(monkeypatch, denoiser)
    with torch.no_grad(), AttentionMaps(denoiser) as maps:
        call()
    found = []
    for full in attended:
        rows, keys = full.shape[-2:]
        if keys == TEXT:  # cross-attention
            found.append(full)
        elif rows == keys == TEXT + PICTURE:
            text_first = name.startswith("flux")
            picture, text = slice(TEXT, None), slice(0, TEXT)
            if not text_first:
                picture, text = slice(0, PICTURE), slice(PICTURE, None)
            found.append(full[:, :, picture, text])
    recorded = list(maps.layers.values())
    assert len(recorded) == len(found) == len(LAYERS.get(name, LAYERS["flux_dev"]))
    for mine, theirs in zip(recorded, found, strict=True):
        assert mine.std() > 1e-3
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_the_denoiser_predicts_the_same_and_keeps_no_hook(name: str) -> None:
    denoiser: Any = _denoiser(name)
    call = _call(denoiser)
    processors = dict(denoiser.attn_processors)
    before = call()
    with AttentionMaps(denoiser):
        within = call()
    assert torch.equal(within, before) and torch.equal(call(), before)
    assert not list(_hooks(denoiser))
    assert denoiser.attn_processors == processors


def test_hooks_are_gone_after_an_exception() -> None:
    denoiser = _denoiser("flux_dev")
    given = _arguments(denoiser)
    given["hidden_states"] = given["hidden_states"][:, :-1]  # rotary embeddings no longer fit
    maps = AttentionMaps(denoiser)
    with pytest.raises(RuntimeError), maps:
        denoiser(**given)
    assert not list(_hooks(denoiser))
    assert not maps.layers


@pytest.mark.parametrize("name", ["sd", "sdxl", *JOINT])
def test_gradients_reach_the_layers_own_projections(name: str) -> None:
    denoiser = _denoiser(name)
    with AttentionMaps(denoiser) as maps:
        _call(denoiser)()
    for layer, probabilities in maps.layers.items():
        attention = denoiser.get_submodule(layer)
        parts = [getattr(attention, part, None) for part in ("to_q", "to_k", "add_k_proj")]
        weights = [part.weight for part in parts if part is not None]
        for grad in torch.autograd.grad(probabilities[..., 1].sum(), weights, retain_graph=True):
            assert grad.abs().max() > 1e-6


def test_no_graph_is_kept_under_no_grad() -> None:
    denoiser = _denoiser("flux_schnell")
    with torch.no_grad(), AttentionMaps(denoiser) as maps:
        _call(denoiser)()
    assert maps.layers
    for probabilities in maps.layers.values():
        assert not probabilities.requires_grad
        assert probabilities.untyped_storage().nbytes() == probabilities.numel() * 4


@pytest.mark.parametrize("name", ["sd", "sd35", "flux_dev"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    denoiser: Any = _denoiser(name).train()
    early = next(iter(denoiser.parameters()))

    def gradient() -> Tensor:
        denoiser.zero_grad()
        with AttentionMaps(denoiser) as maps:
            predicted = _call(denoiser)()
            recorded = dict(maps.layers)
            loss = sum(part[..., 1].square().sum() for part in recorded.values())
            (loss + predicted.square().sum()).backward()
            assert all(maps.layers[layer] is part for layer, part in recorded.items())
        grad = early.grad
        assert isinstance(grad, Tensor)
        return grad.clone()

    plain = gradient()
    denoiser.enable_gradient_checkpointing()
    assert torch.allclose(gradient(), plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("name", ["sd", "sd35", "flux_dev"])
def test_softmax_is_in_float32_under_autocast(name: str) -> None:
    denoiser = _denoiser(name)
    call = _call(denoiser)
    with torch.no_grad(), AttentionMaps(denoiser) as maps:
        call()
        exact = maps.layers
        with torch.autocast("cpu", torch.bfloat16):
            call()
    for layer, probabilities in maps.layers.items():
        assert probabilities.dtype == torch.float32
        assert (probabilities - exact[layer]).abs().mean() < 0.03
        assert not torch.equal(probabilities, probabilities.bfloat16().float())


def test_adapters_are_seen() -> None:
    denoiser = _denoiser("flux_dev")
    name = "transformer_blocks.0.attn.add_k_proj"
    change = LowRank(torch.ones(1, 32), torch.randn(32, 1))
    with torch.no_grad(), AttentionMaps(denoiser) as before:
        _call(denoiser)()
    networks = {"transformer": denoiser}
    adapter = Adapter(networks, {"cat": {f"transformer/{name}": change}})
    with torch.no_grad(), AttentionMaps(denoiser) as after:
        _call(denoiser)()
    adapter.remove(networks)
    layer = name.removesuffix(".add_k_proj")
    assert not torch.allclose(after.layers[layer], before.layers[layer], atol=1e-3)


def test_only_some_layers_and_only_the_latest_pass() -> None:
    denoiser = _denoiser("flux_schnell")
    last = "transformer_blocks.1.attn"
    with torch.no_grad(), AttentionMaps(denoiser, only=last.__eq__) as maps:
        assert len(list(_hooks(denoiser))) == 5
        denoiser(**_arguments(denoiser, count=3))
        assert maps.layers[last].shape == (3, 2, PICTURE, TEXT)
        denoiser(**_arguments(denoiser, count=1))
    assert {layer: part.shape[0] for layer, part in maps.layers.items()} == {last: 1}


def test_what_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no attention to text"):
        AttentionMaps(nn.Linear(2, 2))
    denoiser: Any = _denoiser("sd")
    with pytest.raises(ValueError, match="none that `only` keeps"):
        AttentionMaps(denoiser, only=lambda layer: layer.endswith("attn1"))
    given = _arguments(denoiser)
    mask = torch.tensor([[True] * (TEXT - 1) + [False]] * 2)
    with pytest.raises(ValueError, match="attention_mask must be None"), AttentionMaps(denoiser):
        denoiser(**given, encoder_attention_mask=mask)
    denoiser.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"), AttentionMaps(denoiser):
        denoiser(**given)
    denoiser.unfuse_qkv_projections()
    with AttentionMaps(denoiser) as maps:
        denoiser(**given)
    assert maps.layers


def test_combine_is_the_mean_over_heads_and_layers_of_the_chosen_tokens() -> None:
    coarse = torch.zeros(2, 2, 2, 3)  # 1x2 places
    coarse[0, :, 0, 0] = torch.tensor([0.2, 0.4])
    coarse[0, :, 0, 1] = 0.9  # not chosen
    coarse[0, :, 1, 2] = 0.5
    coarse[1, :, :, 1] = 0.6
    fine = torch.zeros(2, 4, 8, 3)  # 2x4 places
    fine[0, 0, 5, 2] = 0.8  # one head of four, second row, second column
    places = torch.tensor([[True, False, True], [False, True, False]])
    maps = combine({"coarse": coarse, "fine": fine}, places, 2, 4)
    wide = torch.tensor([0.3, 0.35, 0.45, 0.5]).expand(2, 4)  # bilinear from 0.3 and 0.5
    sharp = torch.zeros(2, 4)
    sharp[1, 1] = 0.2
    assert maps.shape == (2, 2, 4)
    assert torch.allclose(maps[0], (wide + sharp) / 2)
    assert torch.allclose(maps[1], torch.full((2, 4), 0.3))


def test_combine_follows_how_a_unet_halves_odd_sizes() -> None:
    pipe = TINY["sd"]()
    latents, states = torch.randn(1, 4, 9, 14), torch.randn(1, TEXT, 32)
    with torch.no_grad(), AttentionMaps(pipe.unet) as maps:
        pipe.unet(latents, 1, states)
    assert {part.shape[2] for part in maps.layers.values()} == {9 * 14, 5 * 7}
    everything = combine(maps.layers, torch.ones(1, TEXT, dtype=torch.bool), 9, 14)
    assert torch.allclose(everything, torch.ones(1, 9, 14), atol=1e-5)


def test_combine_refuses_what_does_not_fit() -> None:
    layers = {"layer": torch.rand(1, 2, 16, 3)}
    places = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="at least one map"):
        combine({}, places, 8, 8)
    with pytest.raises(ValueError, match=r"places must be \(1, 3\)"):
        combine(layers, places[:, :2], 8, 8)
    with pytest.raises(ValueError, match="16 places"):
        combine(layers, places, 8, 12)
