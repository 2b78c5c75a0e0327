"""Text with a gradient, words that are learned, a cache that knows what it stands on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbone.architectures import TINY
from torch import Tensor, nn

from expunge import hooks
from expunge.backbone.attention import token_places
from expunge.backbone.base import Backbone
from expunge.backbone.conditioning import Conditioning
from expunge.backbone.learned import Learned
from expunge.backbone.load import as_backbone

PROMPTS = ["a photo of a cat", "", "a dog in the tree"]


@pytest.fixture(scope="module", params=list(TINY))
def tiny(request: pytest.FixtureRequest) -> Backbone:
    return as_backbone(TINY[request.param]())


@pytest.fixture
def sd() -> Backbone:
    return as_backbone(TINY["sd"]())


def encoded_by_pipe(backbone: Backbone, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
    """What plain `pipe.encode_prompt` says."""
    pipe: Any = backbone.pipe
    with torch.no_grad():
        if backbone.architecture == "flux":
            length = backbone.max_sequence_length  # type: ignore[attr-defined]
            states, pooled, _ = pipe.encode_prompt(prompts, max_sequence_length=length)
            return states, pooled
        if backbone.architecture == "sd3":
            states, _, pooled, _ = pipe.encode_prompt(
                prompts, None, None, do_classifier_free_guidance=False
            )
            return states, pooled
        found = pipe.encode_prompt(
            prompts,
            device=backbone.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return found[0], found[2] if len(found) == 4 else None


def vectors(backbone: Backbone, count: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = {
        name: encoder.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        for name, encoder in backbone.text_encoders.items()
    }
    return {
        name: torch.randn(count, width, generator=generator).requires_grad_()
        for name, width in widths.items()
    }


def total(states: Conditioning) -> Tensor:
    pooled = 0 if states.pooled is None else states.pooled.square().sum()
    return states.prompt_embeds.square().sum() + pooled


def hooks_on(encoder: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in encoder.modules())


@pytest.mark.parametrize("grad", [False, True])
def test_ordinary_prompts_are_read_as_the_pipeline_reads_them(tiny: Backbone, grad: bool) -> None:
    states, pooled = encoded_by_pipe(tiny, PROMPTS)
    ours = tiny.encode(PROMPTS, grad=grad)
    assert torch.equal(ours.prompt_embeds, states)
    assert ours.texts == tuple(PROMPTS)
    assert (ours.pooled is None) == (pooled is None)
    assert pooled is None or torch.equal(ours.pooled, pooled)  # type: ignore[arg-type]


def test_a_word_of_a_models_own_vectors_reads_as_that_word(tiny: Backbone) -> None:
    """To the bit, pooled states too; so nothing of it hangs on which token stands in."""
    own: dict[str, Tensor | str] = {}
    for name, encoder in tiny.text_encoders.items():
        tokenizer = getattr(tiny.pipe, name.replace("text_encoder", "tokenizer"))
        ids = tokenizer("cat", add_special_tokens=False).input_ids
        own[name] = encoder.get_input_embeddings().weight[ids].detach()  # type: ignore[operator]
    plain = tiny.encode(["a photo of a cat", "the cat in a tree"])
    learned = tiny.encode(["a photo of a <x>", "the <x> in a tree"], {"<x>": own})
    assert torch.equal(learned.prompt_embeds, plain.prompt_embeds)
    assert plain.pooled is None or torch.equal(learned.pooled, plain.pooled)  # type: ignore[arg-type]


def test_gradients_reach_every_vector_of_every_encoder(tiny: Backbone) -> None:
    own = vectors(tiny)
    vocabulary = {n: len(t) for n, t in tiny.pipe.components.items() if "tokenizer" in n}
    tiny.encode(["a cat"])  # transformers hangs hooks of its own on some encoders
    hung = {name: hooks_on(encoder) for name, encoder in tiny.text_encoders.items()}
    states = tiny.encode(["a photo of <x>", "a cat"], {"<x>": own}, grad=True)
    slopes = torch.autograd.grad(total(states), list(own.values()))
    for name, slope in zip(own, slopes, strict=True):
        assert (slope.abs().amax(1) > 0).all(), name
    assert not tiny.encode(["<x>"], {"<x>": own}).prompt_embeds.requires_grad
    for name, encoder in tiny.text_encoders.items():
        assert all(p.grad is None and p.requires_grad for p in encoder.parameters())
        assert hooks_on(encoder) == hung[name]
    after = {n: len(t) for n, t in tiny.pipe.components.items() if "tokenizer" in n}
    assert after == vocabulary


def test_each_encoder_reads_what_it_is_told() -> None:
    backbone = as_backbone(TINY["flux_dev"]())
    own = vectors(backbone)
    only: Learned = {"<x>": {"text_encoder_2": own["text_encoder_2"]}}
    nothing, cat = backbone.encode(["a "]), backbone.encode(["a cat"])
    assert nothing.pooled is not None and cat.pooled is not None
    learned = backbone.encode(["a <x>"], only)
    assert torch.equal(learned.pooled, nothing.pooled)  # type: ignore[arg-type]
    assert not torch.equal(learned.prompt_embeds, nothing.prompt_embeds)
    named = backbone.encode(["a <x>"], {"<x>": {**only["<x>"], "text_encoder": "cat"}})
    assert torch.equal(named.pooled, cat.pooled)  # type: ignore[arg-type]
    assert torch.equal(named.prompt_embeds, learned.prompt_embeds)


def test_two_words_and_many_vectors(sd: Backbone) -> None:
    one = {"text_encoder": vectors(sd, 1)["text_encoder"]}
    many = {"text_encoder": vectors(sd, 5)["text_encoder"] + 1}
    both = sd.encode(["a <x> and <y>", "<y>"], {"<x>": one, "<y>": many})
    alone = sd.encode(["<y>"], {"<y>": many})
    assert torch.allclose(both.prompt_embeds[1], alone.prompt_embeds[0], atol=1e-6)
    assert not torch.allclose(both.prompt_embeds[0], both.prompt_embeds[1], atol=1e-2)


def test_words_that_cannot_be_put_in_are_refused(sd: Backbone) -> None:
    own = vectors(sd)
    with pytest.raises(ValueError, match="no prompt holds the learned word '<y>'"):
        sd.encode(["a cat"], {"<y>": own})
    with pytest.raises(ValueError, match=r"text encoders are text_encoder$"):
        sd.encode(["<x>"], {"<x>": {"text_encoder_2": own["text_encoder"]}})
    with pytest.raises(ValueError, match=r"must be \(k, 32\), got \(2, 8\)"):
        sd.encode(["<x>"], {"<x>": {"text_encoder": own["text_encoder"][:, :8]}})
    with pytest.raises(hooks.NotFeltError, match="read 0 of 2 learned vectors"):
        sd.encode(["a cat " * 60 + "<x>"], {"<x>": own})


# --- the cache


def test_the_cache_knows_the_text_encoder(sd: Backbone) -> None:
    before = sd.encode_prompts(["a cat"])
    assert sd.encode_prompts(["a cat"]).prompt_embeds.data_ptr() != 0
    assert len(sd._cache) == 1
    with torch.no_grad():
        sd.pipe.text_encoder.get_input_embeddings().weight.mul_(1.5)
    changed = sd.encode_prompts(["a cat"])
    assert not torch.equal(changed.prompt_embeds, before.prompt_embeds)
    assert torch.equal(changed.prompt_embeds, sd.encode(["a cat"]).prompt_embeds)
    sd.pipe.text_encoder = TINY["sd2"]().text_encoder
    assert torch.equal(
        sd.encode_prompts(["a cat"]).prompt_embeds, sd.encode(["a cat"]).prompt_embeds
    )


def test_the_cache_knows_what_hangs_on_the_text_encoder(sd: Backbone) -> None:
    class Hung:
        strength = 0.0

        def state(self) -> float:
            return self.strength

        def begin(self) -> None: ...

        def check_ran(self) -> None: ...

    encoder, hung = sd.pipe.text_encoder, Hung()
    handle = encoder.get_input_embeddings().register_forward_hook(
        lambda _, __, output: output * (1 if hooks.silent() else 1 + hung.strength)
    )
    hooks.attached(encoder)["hung"] = hung
    before = sd.encode_prompts(["a cat"]).prompt_embeds
    hung.strength = 0.5
    assert not torch.equal(sd.encode_prompts(["a cat"]).prompt_embeds, before)
    with hooks.original():
        assert torch.equal(sd.encode_prompts(["a cat"]).prompt_embeds, before)
    handle.remove()


def test_a_change_of_the_text_encoder_that_does_not_run_is_an_error(sd: Backbone) -> None:
    class Idle:
        def state(self) -> None: ...

        def begin(self) -> None: ...

        def check_ran(self) -> None:
            raise hooks.NotFeltError("did not run")

    hooks.attached(sd.pipe.text_encoder)["idle"] = Idle()
    with pytest.raises(hooks.NotFeltError):
        sd.encode_prompts(["a cat"])
    with hooks.original():
        sd.encode_prompts(["a cat"])


def test_the_cache_knows_a_lora_on_the_text_encoder(sd: Backbone) -> None:
    peft = pytest.importorskip("peft")
    before = sd.encode_prompts(["a cat"]).prompt_embeds
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, sd.pipe.text_encoder, "users")
    loaded = sd.encode_prompts(["a cat"]).prompt_embeds
    assert not torch.equal(loaded, before)
    layers = [m for m in sd.pipe.text_encoder.modules() if hasattr(m, "merged_adapters")]
    for layer in layers:
        layer.set_scale("users", 0.0)
    assert torch.allclose(sd.encode_prompts(["a cat"]).prompt_embeds, before, atol=1e-6)


def test_the_cache_holds_no_graph(sd: Backbone) -> None:
    assert not sd.encode_prompts(["a cat"]).prompt_embeds.requires_grad
    assert all(not states.prompt_embeds.requires_grad for states in sd._cache.values())


# --- tokens


def test_all_tokens_of_a_loaded_word_are_its_own(sd: Backbone) -> None:
    sd.pipe.load_textual_inversion({"<my-cat>": torch.randn(3, 32)}, token="<my-cat>")
    (run,) = sd.tokens(["a photo of <my-cat>", "a <my-cat> in a tree"])
    own = sd.pipe.tokenizer.convert_tokens_to_ids(["<my-cat>", "<my-cat>_1", "<my-cat>_2"])
    assert all(set(own) <= set(row.tolist()) for row in run.ids)
    places = token_places(sd, ["a photo of <my-cat>", "a <my-cat> in a tree"], "<my-cat>")
    assert [run.ids[row][places[row]].tolist() for row in range(2)] == [own, own]
    states = sd.encode(["a <x>"], {"<x>": vectors(sd)})
    assert states.prompt_embeds.shape == (1, 77, 32)
    with pytest.raises(ValueError, match="is a token of this model's own"):
        sd.encode(["<my-cat>"], {"<my-cat>": vectors(sd)})


def test_names_are_found_in_capitals_and_in_the_plural(tiny: Backbone) -> None:
    prompts = ["a photo of a Cat", "two cats in the tree", "a category", "A CAT"]
    places = token_places(tiny, [prompts[0], prompts[1], prompts[3]], "cat")
    for row, text in enumerate([prompts[0], prompts[1], prompts[3]]):
        start = 0
        for run in tiny.tokens([text]):
            stop = start + run.ids.shape[1]
            spans = map(tuple, run.spans[0][places[row, start:stop]].tolist())
            covered = "".join(text[first:last] for first, last in dict.fromkeys(spans))
            assert covered in {"Cat", "cats", "CAT"}
            start = stop
    with pytest.raises(ValueError, match="'a category' does not hold 'cat'"):
        token_places(tiny, ["a category"], "cat")


def test_names_that_no_tokenizer_reads_are_known() -> None:
    flux, sd3 = (as_backbone(TINY[name]()) for name in ("flux_dev", "sd3"))
    assert flux.unreadable("猫") and flux.unreadable("a 猫")
    assert not flux.unreadable("cat")
    assert not sd3.unreadable("猫"), "its CLIP reads every byte"
