"""A diffusers pipeline seen as mathematics: encode, noise, predict, sample, decode."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from expunge.backbone.conditioning import Conditioning, ConditioningAt, TextStream, Tokens
from expunge.backbone.images import to_images, to_pixels
from expunge.backbone.profile import BUNDLED, Profile, Sampling

Prediction = Literal["epsilon", "v_prediction", "flow"]
Attention = Literal["cross", "self", "all"]
Precision = Literal["own", "bfloat16"]
"""How the denoiser computes: in its weights' own type, or its products in bfloat16."""


Guidance = Literal["classifier-free", "embedded", "none"]
"""By two predictions, by an input of the denoiser (FLUX.1-dev), or not at all (FLUX.1-schnell)."""

CACHE_BYTES = 2**30
"""Of encoded prompts, kept for the next time they are asked."""
ENCODED_AT_ONCE = 32


class Backbone(ABC):
    """One pipeline, with its own sampler. The pipeline is read and never changed.

    Noise level means t/T for ε- and v-models and σ after shift for flows: 1 is pure noise, 0 clean.

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
    guidance: Guidance = "classifier-free"

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._check_types()
        self.precision: Precision = fastest(self.device) if self.dtype == torch.float32 else "own"
        self._cache: dict[str, Conditioning] = {}
        folder = BUNDLED.get(self.name_or_path, Path(self.name_or_path))
        own = Profile.read(folder) or Profile(self._usual_sampling())
        height, width = self._native_size()
        sampling = replace(
            own.sampling, height=own.sampling.height or height, width=own.sampling.width or width
        )
        self.profile = replace(own, sampling=sampling)

    # --- what the pipeline is

    @property
    def name_or_path(self) -> str:
        """Where the pipeline was loaded from, empty if it was built in memory."""
        return str(self.pipe.config.get("_name_or_path") or "")

    @property
    def name(self) -> str:
        """A short name for people."""
        path = self.name_or_path
        return Path(path).name if Path(path).exists() else path or type(self.pipe).__name__

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts."""
        denoiser: nn.Module = getattr(self.pipe, self.denoiser_name)
        return denoiser

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The pipeline's networks, by component."""
        parts = self.pipe.components.items()
        return {name: part for name, part in parts if isinstance(part, nn.Module)}

    @property
    def source(self) -> dict[str, Any]:
        """What this model can be opened with again."""
        return {"model": self.name_or_path or self.name}

    def config_of(self, component: str) -> dict[str, Any]:
        """How a component is built, as its `config.json` says."""
        config: Any = self.networks[component].config
        items = config.to_dict() if hasattr(config, "to_dict") else config
        return {name: value for name, value in items.items() if not name.startswith("_")}

    @property
    def loras(self) -> list[str]:
        """Names of the user's own LoRAs that are active."""
        active = getattr(self.pipe, "get_active_adapters", list)
        return sorted(active()) if getattr(self.denoiser, "peft_config", None) else []

    def sketch(self, places: Iterable[str]) -> dict[str, list[float]]:
        return {}

    def check_sketch(self, made: Any, name: str) -> None:
        return None

    def unreadable(self, name: str) -> bool:
        return False

    @property
    def denoiser_config(self) -> dict[str, Any]:
        """How the denoiser is built, as its `config.json` says."""
        config: Any = self.denoiser.config
        return {name: value for name, value in config.items() if not name.startswith("_")}

    @property
    def device(self) -> torch.device:
        """Where predictions are computed; with offloading the weights may lie elsewhere."""
        device: torch.device = self.pipe._execution_device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's precision."""
        return next(p.dtype for p in self.denoiser.parameters() if p.is_floating_point())

    def _check_types(self) -> None:
        """Refuse a denoiser half of whose weights were cast: it fails only at the first picture."""
        found = {p.dtype for p in self.denoiser.parameters() if p.is_floating_point()}
        if len(found) > 1:
            names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
            raise ValueError(
                f"the {self.denoiser_name} holds weights of several types ({names}); "
                f"cast it to one, for example pipe.{self.denoiser_name}.to(torch.bfloat16)"
            )

    @property
    @abstractmethod
    def prediction(self) -> Prediction:
        """What the denoiser predicts."""

    @abstractmethod
    def _native_size(self) -> tuple[int, int]:
        """Height and width in pixels the model was trained at."""

    def _usual_sampling(self) -> Sampling:
        """How models of this family are drawn where no profile says better."""
        return Sampling()

    def weight_hash(self, names: Iterable[str] | None = None) -> str:
        """SHA-256 over layers' weights, cast to bf16, in name order; all layers if None."""
        modules = dict(self.denoiser.named_modules())
        if names is None:
            names = {n for n, m in modules.items() if isinstance(getattr(m, "weight", 0), Tensor)}
        digest = hashlib.sha256()
        for name in sorted(names):
            weight = modules[name].weight
            assert isinstance(weight, Tensor)
            digest.update(name.encode())
            digest.update(
                weight.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
            )
        return digest.hexdigest()

    def parts_hash(self) -> str:
        """SHA-256 over the weights of every other network: autoencoder and text encoders."""
        digest = hashlib.sha256()
        for part, network in sorted(self.pipe.components.items()):
            if isinstance(network, nn.Module) and part != self.denoiser_name:
                for name, value in sorted(network.state_dict().items()):
                    digest.update(f"{part} {name}".encode())
                    raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
                    digest.update(raw.numpy().tobytes())
        return digest.hexdigest()

    # --- projections

    @abstractmethod
    def text_streams(self) -> dict[str, TextStream]:
        """The ways by which text enters the denoiser, by name, `tokens` first."""

    def prompt_projections(self) -> dict[str, nn.Linear]:
        """Layers that receive the text encoder's output as it is, by name in the denoiser."""
        streams = self.text_streams().values()
        return {name: layer for stream in streams for name, layer in stream.layers.items()}

    @abstractmethod
    def attention_projections(self, attention: Attention = "all") -> dict[str, nn.Linear]:
        """Layers inside attention that adapters may train, by name in the denoiser."""

    # --- text

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Token states of every prompt, computed once per distinct text while memory allows."""
        known = {text: self._cache[text] for text in prompts if text in self._cache}
        missing = [text for text in dict.fromkeys(prompts) if text not in known]
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            part = missing[start : start + ENCODED_AT_ONCE]
            encoded = self._encode(part)
            known |= {text: encoded[i : i + 1].clone() for i, text in enumerate(part)}
        self._remember(known)
        return Conditioning.cat([known[text] for text in prompts])

    def _remember(self, known: dict[str, Conditioning]) -> None:
        """Keep what was used last, within a budget: on FLUX one text takes four megabytes."""
        for text, states in known.items():
            self._cache.pop(text, None)
            self._cache[text] = states
        each = next(iter(self._cache.values()))
        most = max(1, CACHE_BYTES // each.nbytes)
        for text in list(self._cache)[:-most]:
            del self._cache[text]

    def unconditional(self) -> Conditioning:
        """What guidance leads away from where no negative prompt is given, n = 1."""
        return self.encode_prompts([""])

    @abstractmethod
    def _encode(self, prompts: Sequence[str]) -> Conditioning: ...

    @abstractmethod
    def tokens(self, prompts: Sequence[str]) -> list[Tokens]:
        """The tokens behind `prompt_embeds`, one run for each tokenizer, in the order of states."""

    @abstractmethod
    def _tokenizers(self) -> list[tuple[Any, int]]:
        """Each tokenizer behind the token states, and how many tokens its encoder reads."""

    def cut_short(self, prompts: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Prompts no tokenizer reads to their end: how many tokens they have, how many are read."""
        found = {}
        for text in dict.fromkeys(prompts):
            counts = [
                (len(tokenizer(text, verbose=False).input_ids), limit)
                for tokenizer, limit in self._tokenizers()
            ]
            if all(count > limit for count, limit in counts):
                found[text] = max(counts, key=lambda entry: entry[1])
        return found

    # --- noise

    @abstractmethod
    def _predict(
        self,
        latents: Tensor,
        level: Tensor | float,
        conditioning: Conditioning,
        guidance_scale: float,
    ) -> Tensor: ...

    def predict(
        self,
        latents: Tensor,
        level: Tensor | float,
        conditioning: Conditioning,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """The denoiser's own prediction in one forward pass.

        Args:
            latents: noisy latents, (n, channels, height, width).
            level: noise level, one for all or n.
            conditioning: of n prompts.
            guidance_scale: read by denoisers that take guidance as an input, ignored by others;
                None for the profile's.

        Returns:
            Shaped like `latents`.
        """
        scale = self.profile.sampling.guidance_scale if guidance_scale is None else guidance_scale
        fast = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast), _quiet_norms():
            return self._predict(latents, level, conditioning, scale).to(latents.dtype)

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Within this context predictions are computed in the weights' own type."""
        before, self.precision = self.precision, "own"
        try:
            yield
        finally:
            self.precision = before

    def guided(
        self,
        latents: Tensor,
        level: float,
        conditioning: Conditioning,
        guidance_scale: float,
        negative: Conditioning,
    ) -> Tensor:
        """A guided prediction in one batched call.

        Args:
            latents: noisy latents, (n, …).
            level: noise level of all of them.
            conditioning: of n prompts.
            guidance_scale: 1 asks for the plain conditional prediction. A denoiser that takes
                guidance as an input gets it there and needs no `negative`.
            negative: of one prompt.
        """
        if guidance_scale == 1 or self.guidance == "embedded":
            return self.predict(latents, level, conditioning, guidance_scale)
        both = Conditioning.cat([negative.repeat(len(latents)), conditioning])
        away, toward = self.predict(torch.cat([latents, latents]), level, both).chunk(2)
        return away + guidance_scale * (toward - away)

    def check_guidance(self, guidance_scale: float) -> None:
        """Refuse a guidance the model cannot take.

        Raises:
            ValueError: the model was distilled to draw without guidance.
        """
        if self.guidance == "none" and guidance_scale != 1:
            raise ValueError(
                "this model was distilled to draw in few steps without guidance (as "
                f"FLUX.1-schnell): guidance_scale must be 1, got {guidance_scale:g}"
            )

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor | float) -> Tensor:
        """The noisy latent of a clean one."""

    @abstractmethod
    def clean(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        """The clean latent a prediction stands for."""

    @abstractmethod
    def noise(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        """The noise a prediction stands for."""

    @abstractmethod
    def log_snr(self, level: float) -> float:
        """Natural logarithm of signal power over noise power, the level architectures share."""

    def move(self, latents: Tensor, prediction: Tensor, level: float, to: float) -> Tensor:
        """Follow a prediction in a straight line from one noise level to another.

        On ε- and v-models this is a DDIM step, on flows an Euler step; up or down.
        """
        clean = self.clean(latents, prediction, level)
        return self.add_noise(clean, self.noise(latents, prediction, level), to)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one latent for a picture of that size in pixels.

        Raises:
            ValueError: the model cannot draw that size.
        """
        factor, grain = self.pipe.vae_scale_factor, self.grain
        if height % grain or width % grain:
            raise ValueError(
                f"height and width must be multiples of {grain}, got {height} and {width}"
            )
        return (self.pipe.vae.config.latent_channels, height // factor, width // factor)

    @property
    def grain(self) -> int:
        """Pixels that sizes must be a multiple of."""
        return int(self.pipe.vae_scale_factor)

    def initial_noise(self, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        """Starting noise, one CPU generator per picture, so a seed means the same in any batch."""
        assert sampling.height and sampling.width
        shape = self.latent_shape(sampling.height, sampling.width)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(drawn).to(self.device, self.dtype)

    # --- sampling

    @abstractmethod
    def _scheduler(self, sampling: Sampling) -> Any:
        """A fresh diffusers sampler of this model's noise schedule, its time steps set."""

    @abstractmethod
    def _level(self, timestep: Tensor) -> float:
        """The noise level of a sampler's timestep."""

    def levels(self, sampling: Sampling) -> list[float]:
        """The noise levels a sampling run passes through, from the highest to 0."""
        return [self._level(t) for t in self._scheduler(sampling).timesteps] + [0.0]

    @torch.no_grad()
    def trajectory(
        self,
        conditioning: ConditioningAt,
        noise: Tensor,
        sampling: Sampling,
        *,
        negative: ConditioningAt | None = None,
    ) -> Iterator[tuple[float, Tensor]]:
        """Sample, yielding (noise level, latents) before every step and at 0.

        ε- and v-models are sampled with DPM-Solver++, flows with Euler's method.

        Args:
            conditioning: of n prompts, or a function of the noise level.
            noise: (n, …), from `initial_noise`.
            sampling: steps and guidance.
            negative: of one prompt, or a function of the noise level; `unconditional` if None.
        """
        self.check_guidance(sampling.guidance_scale)
        scheduler = self._scheduler(sampling)
        empty = self.unconditional()
        latents = noise
        for timestep in scheduler.timesteps:
            level = self._level(timestep)
            yield level, latents
            toward = conditioning(level) if callable(conditioning) else conditioning
            away = negative(level) if callable(negative) else negative or empty
            predicted = self.guided(latents, level, toward, sampling.guidance_scale, away)
            latents = scheduler.step(predicted, timestep, latents).prev_sample
        yield 0.0, latents

    def sample(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling | None = None
    ) -> Tensor:
        """Clean latents for n prompts and n seeds, drawn as one batch."""
        sampling = sampling or self.profile.sampling
        noise = self.initial_noise(seeds, sampling)
        states = self.trajectory(self.encode_prompts(prompts), noise, sampling)
        [(_, latents)] = deque(states, maxlen=1)  # the last one
        return latents

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        advance: Callable[[int], object] | None = None,
    ) -> list[Image.Image]:
        """Pictures for n prompts and n seeds, in batches of `sampling.batch_size`."""
        sampling = sampling or self.profile.sampling
        drawn: list[Image.Image] = []
        for start in range(0, len(prompts), sampling.batch_size):
            part = slice(start, start + sampling.batch_size)
            drawn += self.decode(self.sample(prompts[part], seeds[part], sampling))
            if advance:
                advance(len(drawn) - start)
        return drawn

    # --- pictures

    @contextlib.contextmanager
    def _autoencoder(self) -> Iterator[Any]:
        """The autoencoder, in float32 while in use if half precision would overflow it (SDXL's)."""
        vae = self.pipe.vae
        half = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
        if half:
            vae.to(torch.float32)
        try:
            yield vae
        finally:
            if half:
                vae.to(torch.float16)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of clean latents."""
        return to_images(self.decode_pixels(latents))

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Pixels of clean latents, about [-1, 1], (n, 3, height, width), with a gradient."""
        with self._autoencoder() as vae:
            shift = vae.config.get("shift_factor") or 0.0
            scaled = latents.to(vae.dtype) / vae.config.scaling_factor + shift
            pixels: Tensor = vae.decode(scaled, return_dict=False)[0]
            return pixels

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Clean latents of pictures of one size (the posterior's mode)."""
        return self.encode_pixels(to_pixels(images))

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Clean latents of pixels in [-1, 1], (n, 3, height, width) (the posterior's mode)."""
        with self._autoencoder() as vae:
            shift = vae.config.get("shift_factor") or 0.0
            mode = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()
            latents: Tensor = ((mode - shift) * vae.config.scaling_factor).to(self.dtype)
            return latents


def fastest(device: torch.device) -> Precision:
    """bfloat16 where the device multiplies in it natively."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "own"
    native = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if native else "own"


@contextlib.contextmanager
def _quiet_norms() -> Iterator[None]:
    """Without torch's remark that float32 norms cannot be fused under bfloat16 autocast."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield
