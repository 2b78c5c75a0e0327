"""Verification: what an export does, seen by plain diffusers, and nothing passes unseen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import TINY
from formats.made import erasure, loaded, low_rank, places
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import expunge
from expunge.change import LowRank
from expunge.concept import Concept
from expunge.erasure import Erasure, Part
from expunge.formats import export
from expunge.formats.naming import HEADER
from expunge.record import RECORD
from expunge.verification import NotReadError, recorded, verify

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loaded(TINY["sd"], tmp_path_factory.mktemp("base"))


@pytest.fixture
def made(base: Any) -> Erasure:
    return erasure(base, places(base, ("unet", "text_encoder"), ("attn2.to_k", "conv1", "q_proj")))


def _rewritten(
    path: Path,
    change: Callable[[Tensors], None] = lambda tensors: None,
    header: Callable[[dict[str, str]], None] = lambda meta: None,
) -> Path:
    """A file with other tensors or another header."""
    with safe_open(path, "pt") as file:
        meta = dict(file.metadata())
    tensors = load_file(path)
    change(tensors)
    header(meta)
    save_file(tensors, path, metadata=meta)
    return path


def _first(tensors: Tensors, end: str) -> str:
    """The first of such a name that is not all zeros."""
    return next(key for key, tensor in tensors.items() if key.endswith(end) and tensor.any())


@pytest.mark.parametrize(
    "format_", ["lora", "diffusers", "kohya", "merged", "components", "single"]
)
def test_every_export_agrees(format_: Any, base: Any, made: Erasure, tmp_path: Path) -> None:
    report = verify(export(made, tmp_path, format_, base), base)
    assert report["agree"]
    assert report["reader"] == "diffusers"
    assert report["predictions"]["worst"] < 1e-5


def test_an_erasures_own_folder_is_checked_by_its_lora(
    base: Any, made: Erasure, tmp_path: Path
) -> None:
    report = verify(made.save(tmp_path), base)
    assert report["agree"]
    assert report["path"].endswith("pytorch_lora_weights.safetensors")


def test_erasures_put_together_are_checked_too(base: Any, made: Erasure, tmp_path: Path) -> None:
    [part] = made.parts
    layers = places(base, ("unet",), ("attn2.to_v",))
    other = erasure(base, layers)
    dog = Erasure([Part(Concept("dog", anchor="cat"), {}, other.parts[0].tuned)], other.record)
    whole = Erasure.merge([Erasure([part], made.record), dog], base)
    assert verify(whole.save(tmp_path), base)["agree"]


def test_a_smaller_rank_is_held_against_what_it_says(base: Any, tmp_path: Path) -> None:
    layers = places(base, ("unet",), ("attn2.to_k", "conv1"))
    made = erasure(base, layers, lambda m, g: low_rank(m, g, 4))
    path = export(made, tmp_path, "lora", rank=2)
    report = verify(path, base)
    assert report["agree"] and report["predictions"] is None
    _rewritten(path, lambda t: t[_first(t, "lora_up.weight")].neg_())
    assert not verify(path, base)["agree"]


# --- what must not pass


@pytest.mark.parametrize("end", ["lora_up.weight", "lora_down.weight", "alpha"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_file_with_nan_is_refused(
    end: str, value: float, base: Any, made: Erasure, tmp_path: Path
) -> None:
    path = export(made, tmp_path)
    _rewritten(path, lambda t: t[_first(t, end)].view(-1)[:1].fill_(value))
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        verify(path, base)


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_a_folder_with_nan_is_refused(
    component: str, base: Any, made: Erasure, tmp_path: Path
) -> None:
    path = export(made, tmp_path, "merged", base)
    file = path / component / "diffusion_pytorch_model.safetensors"
    _rewritten(file, lambda t: t[_first(t, "conv_in.weight")].view(-1)[3:4].fill_(math.nan))
    with pytest.raises(ValueError, match=f"NaN or infinity in {component}/"):
        verify(path, base)


def test_a_turned_change_of_the_same_size_is_found(
    base: Any, made: Erasure, tmp_path: Path
) -> None:
    """Its norm is as recorded."""
    path = export(made, tmp_path)
    _rewritten(path, lambda t: t[_first(t, "lora_up.weight")].neg_())
    report = verify(path, base)
    assert not report["weights"]["agree"] and not report["agree"]


def test_a_change_of_the_text_encoder_is_found(base: Any, made: Erasure, tmp_path: Path) -> None:
    path = export(made, tmp_path, "components", base)
    file = path / "text_encoder" / "model.safetensors"
    _rewritten(file, lambda t: t[_first(t, "layers.1.self_attn.q_proj.weight")].mul_(1.5))
    report = verify(path, base)
    assert not report["weights"]["agree"] and not report["agree"]
    path = export(made, tmp_path, "components", base)
    _rewritten(file, lambda t: t[_first(t, "token_embedding.weight")].mul_(3))
    report = verify(path, base)
    assert not report["others"]["agree"] and not report["predictions"]["agree"]


def test_a_change_where_none_is_recorded_is_found(base: Any, made: Erasure, tmp_path: Path) -> None:
    path = export(made, tmp_path / "merged", "merged", base)
    file = path / "vae" / "diffusion_pytorch_model.safetensors"
    _rewritten(file, lambda t: t[_first(t, "conv_out.weight")].mul_(1.1))
    report = verify(path, base)
    assert not report["others"]["agree"] and not report["agree"]
    lora = export(made, tmp_path / "lora")

    def more(tensors: Tensors) -> None:
        key = "lora_unet_conv_in"
        tensors[f"{key}.lora_down.weight"] = torch.ones(1, 4, 3, 3)
        tensors[f"{key}.lora_up.weight"] = torch.ones(8, 1, 1, 1)
        tensors[f"{key}.alpha"] = torch.tensor(1.0)

    assert not verify(_rewritten(lora, more), base)["others"]["agree"]


def test_a_missing_layer_is_found(base: Any, made: Erasure, tmp_path: Path) -> None:
    def less(tensors: Tensors) -> None:
        stem = _first(tensors, "attn2_to_k.alpha").removesuffix("alpha")
        for key in [key for key in tensors if key.startswith(stem)]:
            del tensors[key]

    path = _rewritten(export(made, tmp_path, "lora"), less)
    report = verify(path, base)
    assert not report["weights"]["agree"] and not report["agree"]


def test_pickles_are_not_read(base: Any, made: Erasure, tmp_path: Path) -> None:
    path = export(made, tmp_path, "components", base)
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(ValueError, match="does not load as safetensors"):
        verify(path, base)


@pytest.mark.parametrize(
    "text",
    ["[]", "7", "{}", "null", "{", '"x"', '{"fingerprint": 3}', '{"fingerprint": {"layers": [1]}}'],
)
def test_headers_of_a_wrong_shape_get_one_sentence(
    text: str, base: Any, made: Erasure, tmp_path: Path
) -> None:
    path = _rewritten(export(made, tmp_path), header=lambda meta: meta.update({HEADER: text}))
    with pytest.raises(ValueError, match=r"record in (the header of )?.*is damaged"):
        verify(path, base)
    folder = export(made, tmp_path / "parts", "components", base)
    (folder / RECORD).write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        verify(folder, base)


def test_what_carries_no_record_is_refused(base: Any, made: Erasure, tmp_path: Path) -> None:
    path = _rewritten(export(made, tmp_path), header=lambda meta: meta.pop(HEADER))
    with pytest.raises(ValueError, match="carries no record"):
        verify(path, base)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"{RECORD} is missing"):
        verify(tmp_path / "empty", base)


def test_an_applied_erasure_is_no_base_model(base: Any, made: Erasure, tmp_path: Path) -> None:
    path = export(made, tmp_path)
    with made.applied(base), pytest.raises(ValueError, match="remove it before you verify"):
        verify(path, base)


def test_the_base_model_is_left_as_it_was(base: Any, made: Erasure, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in base.unet.state_dict().items()}
    verify(export(made, tmp_path), base)
    after = base.unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_blurs_and_hides_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    """A change of a hundredth of the weights, rounded; then one layer without it."""
    TINY["sd"]().save_pretrained(tmp_path / "base")
    pipe = expunge.load(tmp_path / "base", device="cpu", dtype=dtype)
    layers = places(pipe, ("unet",), ("attn2.to_k", "conv1"))

    def small(module: nn.Module, generator: torch.Generator) -> LowRank:
        change = low_rank(module, generator)
        return LowRank(change.down, 0.05 * change.up)

    made = erasure(pipe, layers, small)
    for format_ in ("lora", "merged"):
        report = verify(export(made, tmp_path / format_, format_, pipe), pipe)  # type: ignore[arg-type]
        assert report["agree"], report
    file = tmp_path / "merged" / "unet" / "diffusion_pytorch_model.safetensors"
    key = next(iter(layers)).removeprefix("unet/") + ".weight"
    _rewritten(file, lambda t: t[key].copy_(pipe.unet.state_dict()[key]))
    assert not verify(tmp_path / "merged", pipe)["weights"]["agree"]


# --- what diffusers does not read


@pytest.mark.parametrize(
    "ends", [("context_embedder",), ("context_embedder", "blocks.1.attn.add_k_proj")]
)
def test_a_kohya_file_of_flux_is_not_called_verified(ends: tuple[str, ...], tmp_path: Path) -> None:
    """Diffusers 0.42 loses the prefix of what lies outside the blocks, and with it the layers."""
    pipe = TINY["flux_dev"]()
    made = erasure(pipe, places(pipe, ("transformer",), ends))
    with pytest.raises(NotReadError, match="ComfyUI, Forge and sd-scripts read it"):
        verify(export(made, tmp_path, "kohya"), pipe)
    assert verify(export(made, tmp_path, "lora"), pipe)["agree"]


def test_a_kohya_file_of_flux_that_diffusers_reads_whole_is_verified(tmp_path: Path) -> None:
    pipe = TINY["flux_dev"]()
    made = erasure(pipe, places(pipe, ("transformer",), ("attn.add_k_proj", "ff.net.2")))
    assert verify(export(made, tmp_path, "kohya"), pipe)["agree"]


def test_whole_differences_are_not_called_verified(
    base: Any, made: Erasure, tmp_path: Path
) -> None:
    with pytest.raises(NotReadError, match="ComfyUI, Forge and A1111 will"):
        verify(export(made, tmp_path, "full"), base)


def test_a_record_names_its_base_only_where_it_lies(
    base: Any, made: Erasure, tmp_path: Path
) -> None:
    """A file that is passed on names no folder; in its erasure's folder, the base is known."""
    run = made.save(tmp_path / "run")
    assert recorded(export(made, run, "kohya"))["model"] == made.record["model"]
    away = export(made, tmp_path / "away", "kohya")
    assert recorded(away)["model"] == Path(made.record["model"]).name
    assert json.loads((run / RECORD).read_text())["model"] == made.record["model"]
