"""One bundled pipeline and one quick erasure, shared by the tests that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

import expunge
from expunge import UCE
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.concept import Concept
from expunge.erasure import Erasure

settings.register_profile("calm", deadline=None)
settings.load_profile("calm")


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


@pytest.fixture(scope="session")
def pipe() -> Any:
    return expunge.load("miniature-sd", device="cpu")


@pytest.fixture(scope="session")
def backbone(pipe: Any) -> Backbone:
    return as_backbone(pipe)


@pytest.fixture(scope="session")
def cat(backbone: Backbone) -> Concept:
    return backbone.profile.vocabulary.resolve("cat")


@pytest.fixture
def erasure(backbone: Backbone, cat: Concept) -> Erasure:
    return UCE(prompts=5, preserved=10, tokens="suffix", to_anchor=True, ridge=0.1).erase(
        backbone, [cat]
    )


@pytest.fixture
def run(erasure: Erasure, tmp_path: Path) -> Path:
    """A folder as `expunge erase` writes it."""
    return erasure.save(tmp_path / "run")


@pytest.fixture
def untouched(pipe: Any) -> Any:
    """Fails the test if it leaves another weight, hook or gradient flag on the shared pipeline."""
    unet = pipe.unet
    weights = {name: value.clone() for name, value in unet.state_dict().items()}
    flags = {name: p.requires_grad for name, p in unet.named_parameters()}
    yield
    after = unet.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    assert not any(module._forward_hooks for module in unet.modules())
    assert {name: p.requires_grad for name, p in unet.named_parameters()} == flags
