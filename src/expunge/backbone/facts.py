"""What a pipeline is: its parts, where they compute, how it is drawn from best."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge import hooks
from expunge.backbone.identity import (
    QUANTISED,
    SAME_WEIGHTS,
    Sketch,
    content_hash,
    sketch,
    sketch_distance,
    weights_key,
)
from expunge.backbone.profile import BUNDLED, Profile, Sampling

PredictionKind = Literal["epsilon", "v_prediction", "flow"]
Precision = Literal["own", "bfloat16"]
"""How the denoiser computes: in its weights' own type, or its products in bfloat16."""

CONFIG_OF_FILE = "_expunge_config"
"""Attribute of a pipeline from a single file: where its configuration came from."""

GuidanceKind = Literal["classifier-free", "embedded", "none"]
"""By two predictions, by an input of the denoiser (FLUX.1-dev), or not at all (FLUX.1-schnell)."""


class Facts(ABC):
    """One pipeline and what is known of it. The pipeline is read and never changed.

    Attributes:
        pipe: the pipeline.
        architecture: family name, such as `sd`.
        denoiser_name: the pipeline's component that predicts, `unet` or `transformer`.
        profile: sampling defaults and known concepts.
        precision: how predictions are computed; bfloat16 where the machine has units for it.
        guidance: how it is guided.
    """

    architecture: str
    denoiser_name: str
    guidance: GuidanceKind = "classifier-free"

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._place: tuple[Any, torch.device] | None = None
        self._hashed: tuple[Hashable, str] | None = None
        self._check_types()
        self.precision: Precision = fastest(self.device) if self.dtype == torch.float32 else "own"
        places = [name for name in self.source.values() if name]
        found = (Profile.read(BUNDLED.get(name, Path(name))) for name in places)
        own = next(filter(None, found), None) or Profile(self._usual_sampling())
        height, width = self._native_size()
        sampling = replace(
            own.sampling, height=own.sampling.height or height, width=own.sampling.width or width
        )
        self.profile = replace(own, sampling=sampling)

    @property
    def name_or_path(self) -> str:
        """Where the pipeline was loaded from, empty if it was built in memory."""
        return str(self.pipe.config.get("_name_or_path") or "")

    @property
    def source(self) -> dict[str, str]:
        """What this model can be opened with again: `model`, and `config` of a single file."""
        config = getattr(self.pipe, CONFIG_OF_FILE, None)
        return {"model": self.name_or_path or self.name} | ({"config": config} if config else {})

    @property
    def name(self) -> str:
        """A short name for people; of a pipeline built in memory its class."""
        path = self.name_or_path
        if not path:
            return type(self.pipe).__name__
        return Path(path).name if Path(path).exists() else path

    @property
    def loras(self) -> list[str]:
        """Names of the user's own LoRAs that are active, by network."""
        found = set()
        for component, network in self.networks.items():
            for module in network.modules():
                wrapped: Any = module
                if hasattr(module, "base_layer") and not getattr(module, "disable_adapters", True):
                    found |= {f"{component}/{name}" for name in wrapped.active_adapters}
        return sorted(found)

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts."""
        denoiser: nn.Module = getattr(self.pipe, self.denoiser_name)
        return denoiser

    @property
    def denoiser_config(self) -> dict[str, Any]:
        """How the denoiser is built, as its `config.json` says."""
        return self.config_of(self.denoiser_name)

    def config_of(self, component: str) -> dict[str, Any]:
        """How a component is built, as its `config.json` says."""
        config: Any = self.networks[component].config
        items = config.to_dict() if hasattr(config, "to_dict") else config
        return {name: value for name, value in items.items() if not name.startswith("_")}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Every network of the pipeline, by component."""
        parts = self.pipe.components.items()
        return {name: part for name, part in sorted(parts) if isinstance(part, nn.Module)}

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """The networks that read text, by component."""
        names = ("text_encoder", "text_encoder_2", "text_encoder_3")
        found = {name: getattr(self.pipe, name, None) for name in names}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def device(self) -> torch.device:
        """Where predictions are computed; with offloading the weights may lie elsewhere."""
        denoiser = self.denoiser
        hooked = [hasattr(denoiser, name) for name in ("_hf_hook", "_diffusers_hook")]
        key = (id(denoiser), next(denoiser.parameters()).device, hooked)
        if self._place is None or self._place[0] != key:  # the pipeline's own answer takes 5 ms
            self._place = (key, self.pipe._execution_device)
        return self._place[1]

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's precision."""
        return next(p.dtype for p in self.denoiser.parameters() if _computes(p))

    def _check_types(self) -> None:
        """Refuse a denoiser half of whose weights were cast: it fails only at the first picture."""
        found = {p.dtype for p in self.denoiser.parameters() if _computes(p)}
        if len(found) > 1:
            names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
            raise ValueError(
                f"the {self.denoiser_name} holds weights of several types ({names}); "
                f"cast it to one, for example pipe.{self.denoiser_name}.to(torch.bfloat16)"
            )

    def content_hash(self) -> str:
        """SHA-256 of all networks, to the bit; the same wherever a model is named by a hash.

        Computed once while no weight is written to or replaced. What hangs on the networks
        (erasures) is not in it.
        """
        key = tuple((name, weights_key(part)) for name, part in self.networks.items())
        if self._hashed is None or self._hashed[0] != key:
            self._hashed = (key, content_hash(self.networks))
        return self._hashed[1]

    def sketch(self, places: Iterable[str] | None = None) -> dict[str, dict[str, list[float]]]:
        """A few numbers for each layer that survive a cast, for `identity.sketch_distance`.

        Args:
            places: components and clean names (`unet/mid_block…to_k`); a module without a weight
                stands for all linear layers and convolutions in it. None for the denoiser.

        Raises:
            ValueError: the pipeline lacks one of the layers.
        """
        every = {
            f"{component}/{name}": module
            for component, network in self.networks.items()
            for name, module in hooks.layers(network).items()
        }
        chosen = set()
        for place in [f"{self.denoiser_name}/"] if places is None else places:
            if place not in every:
                raise ValueError(f"made for another architecture: no layer {place!r} here")
            if isinstance(getattr(every[place], "weight", None), Tensor):
                chosen.add(place)
                continue
            inside = [n for n in every if n.startswith(place if place[-1] == "/" else f"{place}.")]
            chosen |= {n for n in inside if isinstance(every[n], nn.Linear | nn.Conv2d)}
        return sketch({place: every[place] for place in sorted(chosen)})

    def check_sketch(self, made: Sketch, named: str) -> None:
        """Refuse a model whose weights are others than those a sketch was made of.

        Casts of one model pass. Quantised weights pass with a warning: they are others.

        Args:
            made: from `sketch`.
            named: the model it was made of, for the message.

        Raises:
            ValueError: the weights differ by more than a cast.
        """
        places = next(iter(made.values()), {})
        distance = sketch_distance(self.sketch(places), made)
        if distance <= SAME_WEIGHTS:
            return
        if distance <= QUANTISED and self.quantised:
            warnings.warn(
                f"the {self.denoiser_name} is quantised: its weights differ from those of {named} "
                f"by {distance:.1%}, so what was made for those fits only about",
                stacklevel=2,
            )
            return
        raise ValueError(
            f"made for other weights: those of {named} and of {self.name} differ by {distance:.2%} "
            f"in the changed layers (a cast explains {SAME_WEIGHTS:.2%})"
        )

    @property
    def quantised(self) -> bool:
        """Whether any weight is held in fewer bits than it computes in."""
        return any(type(p) not in (nn.Parameter, Tensor) for p in self.denoiser.parameters())

    def identity(self) -> dict[str, Any]:
        """All of the model that determines what is drawn, as plain data."""
        scheduler, config = self.pipe.scheduler, dict(self.pipe.scheduler.config)
        return {
            "pipeline": type(self.pipe).__name__,
            "content_hash": self.content_hash(),
            "scheduler": type(scheduler).__name__,
            "scheduler_config": {
                name: _written(value)
                for name, value in sorted(config.items())
                if not name.startswith("_")
            },
            "sampler": self.sampler,
            "guidance": self.guidance,
            "dtype": str(self.dtype).removeprefix("torch."),
            "precision": self.precision,
            "max_sequence_length": self.profile.max_sequence_length,
        }

    @property
    @abstractmethod
    def sampler(self) -> str:
        """What draws, whatever scheduler the pipeline has."""

    @property
    @abstractmethod
    def prediction(self) -> PredictionKind:
        """What the denoiser predicts."""

    @abstractmethod
    def _native_size(self) -> tuple[int, int]:
        """Height and width in pixels the model was trained at."""

    def _usual_sampling(self) -> Sampling:
        """How models of this family are drawn where no profile says better."""
        return Sampling()


def _computes(parameter: torch.Tensor) -> bool:
    """Whether a model computes in the type of a parameter; with layerwise casting it stores others
    in eight bits."""
    return parameter.is_floating_point() and parameter.itemsize > 1


def fastest(device: torch.device) -> Precision:
    """bfloat16 where the device multiplies in it natively."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "own"
    native = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if native else "own"


def _written(value: Any) -> Any:
    """A setting as JSON takes it: some schedulers have an infinite one."""
    infinite = isinstance(value, float) and not math.isfinite(value)
    return str(value) if infinite else value
