"""Zero-shot judging with any CLIP: which of several captions fits a picture best."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from expunge.judge.base import Judge, weights_hash

BATCH = 32


class CLIPJudge(Judge):
    """A concept is shown where its caption beats all others (softmax over captions).

    A zero-shot classifier is only as good as its list: name what else the pictures may show. CLIP
    has no notion of a broken picture, so `broken` looks for flat ones only: a standard deviation
    below 4 of 255 counts as 1.

    Args:
        model: hub id or folder of a CLIP with tokenizer and image processor.
        labels: concepts that compete; a concept that is asked for joins them.
        template: caption with a slot `{}`.
        device: where to run.
    """

    version = "1"
    threshold = 0.5

    def __init__(
        self,
        labels: Sequence[str],
        model: str | Path = "openai/clip-vit-large-patch14",
        template: str = "a photo of a {}",
        device: str = "cpu",
    ) -> None:
        if not labels:
            raise ValueError("labels must name at least one other concept, got none")
        if "{}" not in template:
            raise ValueError(f"template needs a slot {{}} for the concept, got {template!r}")
        self.name = f"clip:{Path(str(model)).name}"
        self._labels, self._template, self._device = tuple(labels), template, device
        self._clip: Any = CLIPModel.from_pretrained(model).to(device).eval()
        self._tokenizer = CLIPTokenizer.from_pretrained(model)
        self._processor = CLIPImageProcessor.from_pretrained(model)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights, the labels and the template."""
        return f"{weights_hash(self._clip)}:{'|'.join((self._template, *self._labels))}"

    def knows(self, concept_name: str) -> bool:
        """Any words can be asked for."""
        return bool(concept_name.strip())

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Projected image features of length 1, float32, (n, d)."""
        found = []
        for start in range(0, len(images), BATCH):
            batch = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = self._processor(images=batch, return_tensors="pt")["pixel_values"]
            states = self._clip.get_image_features(pixel_values=pixels.to(self._device))
            found.append(torch.nn.functional.normalize(states.pooler_output, dim=-1).cpu())
        return np.asarray(torch.cat(found).float().numpy())

    @torch.inference_mode()
    def score(self, images: Sequence[Image.Image], concept_name: str) -> np.ndarray:
        """Softmax share of the concept's caption among all captions, (n,)."""
        others = [label for label in self._labels if label.casefold() != concept_name.casefold()]
        captions = [self._template.format(name) for name in (concept_name, *others)]
        tokens = self._tokenizer(captions, padding=True, return_tensors="pt").to(self._device)
        text = self._clip.get_text_features(**tokens).pooler_output
        text = torch.nn.functional.normalize(text, dim=-1).cpu().float()
        scale = float(self._clip.logit_scale.exp())
        logits = scale * torch.from_numpy(self.features(images)) @ text.T
        return np.asarray(logits.softmax(dim=1)[:, 0].numpy())

    def broken(self, images: Sequence[Image.Image]) -> np.ndarray:
        """1 for a flat picture, else 0, (n,)."""
        deviations = [np.asarray(image.convert("RGB"), float).std() for image in images]
        return np.array([float(deviation < 4) for deviation in deviations])
