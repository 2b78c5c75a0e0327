"""CLIP as a zero-shot judge of any concept, for models that the miniature's judges do not know."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from expunge.judge.base import Features, Images, Judge, weights_hash

BATCH = 32
MODEL = "openai/clip-vit-large-patch14"
TEMPLATE = "a photo of a {}"
"""Fits any thing, so with it any name can be asked for."""


class CLIPJudge(Judge, Features):
    """A concept is shown where its caption beats all others (softmax over captions).

    What is asked for is a name. Its caption is the template filled with it if the name is one of
    `labels`, or else the caption that holds the name, such as "a photo of a chair" for "chair". Any
    other name is known only while the template is the usual one, and joins the labels: a template
    of your own fits its labels alone ("a painting by chair" is no caption). So name the erased
    concept among the labels where you give a template.

    A zero-shot classifier is only as good as its list: name what else the pictures may show. CLIP
    has no notion of a broken picture, so `broken` looks for flat ones only: a standard deviation
    below 4 of 255 counts as 1.

    Args:
        labels: names that compete, each put into the template.
        captions: whole captions that compete, taken as they are.
        model: hub id or folder of a CLIP with tokenizer and image processor, in safetensors.
        template: caption with a slot `{}`; an "a" before the slot becomes "an" where it has to.
        device: where to run.

    Raises:
        ValueError: nothing competes, the template has no slot, or the model cannot be loaded from
            safetensors.
    """

    version = "2"
    threshold = 0.5

    def __init__(
        self,
        labels: Sequence[str] = (),
        captions: Sequence[str] = (),
        model: str | Path = MODEL,
        template: str = TEMPLATE,
        device: str = "cpu",
    ) -> None:
        for title, given in (("labels", labels), ("captions", captions)):
            if isinstance(given, str):
                raise ValueError(f"{title} must be a list of texts, got the one text {given!r}")
        if not (*labels, *captions):
            raise ValueError("labels or captions must name something that competes, got neither")
        if template.count("{}") != 1:
            raise ValueError(f"template needs one slot {{}} for a name, got {template!r}")
        self.name = f"clip:{Path(str(model)).name}"
        self._labels, self._captions = tuple(labels), tuple(captions)
        self._model, self._template, self._device = str(model), template, device
        self._clip = _loaded(model).to(device).eval()
        self._tokenizer = CLIPTokenizer.from_pretrained(model)
        self._processor = CLIPImageProcessor.from_pretrained(model)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Model, labels, captions and template."""
        return {
            "model": self._model,
            "labels": list(self._labels),
            "captions": list(self._captions),
            "template": self._template,
        }

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights, the labels, the captions and the template."""
        asked = json.dumps([self._labels, self._captions, self._template])
        return hashlib.sha256(f"{weights_hash(self._clip)} {asked}".encode()).hexdigest()

    def knows(self, concept_name: str) -> bool:
        """Labels, names that a caption holds, and with the usual template any name."""
        if not concept_name.strip():
            return False
        return self._template == TEMPLATE or self._own_caption(concept_name) is not None

    def _own_caption(self, name: str) -> str | None:
        if name.casefold() in {label.casefold() for label in self._labels}:
            return filled(self._template, name)
        word = re.compile(rf"\b{re.escape(name.strip())}\b", re.IGNORECASE)
        return next((caption for caption in self._captions if word.search(caption)), None)

    def competing(self, concept_name: str) -> list[str]:
        """All captions that compete for the concept, its own first, none twice.

        Raises:
            ValueError: the judge does not know the concept.
        """
        if not self.knows(concept_name):
            raise ValueError(
                f"the judge {self.name} does not know {concept_name!r}, since its template "
                f"{self._template!r} is for its labels alone; add the name to labels, or a whole "
                "caption with it to captions"
            )
        own = self._own_caption(concept_name) or filled(self._template, concept_name)
        others = [filled(self._template, label) for label in self._labels]
        known: dict[str, str] = {}
        for caption in (own, *others, *self._captions):
            known.setdefault(caption.casefold(), caption)
        return list(known.values())

    @torch.inference_mode()
    def features(self, images: Images) -> np.ndarray:
        """Projected image features of length 1, float32, (n, d)."""
        found = []
        for start in range(0, len(images), BATCH):
            batch = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = self._processor(images=batch, return_tensors="pt")["pixel_values"]
            states = self._clip.get_image_features(pixel_values=pixels.to(self._device))
            found.append(torch.nn.functional.normalize(states.pooler_output, dim=-1).cpu())
        return np.asarray(torch.cat(found).float().numpy())

    @torch.inference_mode()
    def score(self, images: Images, concept_name: str) -> np.ndarray:
        """Softmax share of the concept's caption among all captions, (n,)."""
        captions = self.competing(concept_name)
        tokens = self._tokenizer(captions, padding=True, return_tensors="pt").to(self._device)
        text = self._clip.get_text_features(**tokens).pooler_output
        text = torch.nn.functional.normalize(text, dim=-1).cpu().float()
        scale = float(self._clip.logit_scale.exp())
        logits = scale * torch.from_numpy(self.features(images)) @ text.T
        return np.asarray(logits.softmax(dim=1)[:, 0].numpy())

    @torch.inference_mode()
    def similarity(self, images: Images, texts: Sequence[str]) -> np.ndarray:
        """Cosine of each picture and its text, (n,). What CLIP does not read of a text is cut."""
        found = []
        for start in range(0, len(texts), BATCH):
            tokens = self._tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).to(self._device)
            text = self._clip.get_text_features(**tokens).pooler_output
            found.append(torch.nn.functional.normalize(text, dim=-1).cpu().float())
        return np.asarray((torch.from_numpy(self.features(images)) * torch.cat(found)).sum(1))

    def broken(self, images: Images) -> np.ndarray:
        """1 for a flat picture, else 0, (n,)."""
        deviations = [np.asarray(image.convert("RGB"), float).std() for image in images]
        return np.array([float(deviation < 4) for deviation in deviations])


def filled(template: str, name: str) -> str:
    """The template with a name in its slot; its article is dropped or made "an" where it has to.

    "a photo of a {}" gives "a photo of an apple", and "a photo of the moon" for "the moon".
    """
    before, after = template.split("{}")
    if f" {before}".endswith(" a "):
        if name.split()[0].casefold() in {"a", "an", "the"}:
            before = before.removesuffix("a ")
        elif name[0].casefold() in "aeiou":
            before = before.removesuffix(" ") + "n "
    return f"{before}{name}{after}"


def _loaded(model: str | Path) -> Any:
    try:
        return CLIPModel.from_pretrained(model, use_safetensors=True)
    except OSError as error:
        raise ValueError(
            f"no CLIP could be loaded from {str(model)!r}, which must hold safetensors, since "
            f"pickles (pytorch_model.bin) are refused: {str(error).splitlines()[0]}"
        ) from error
