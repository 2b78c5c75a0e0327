"""A diffusers pipeline seen as mathematics: encode, noise, predict, sample, decode."""

from __future__ import annotations

import contextlib
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from expunge import hooks
from expunge.backbone.call import Asked, Call, Guard, Row
from expunge.backbone.conditioning import Conditioning, Tokens
from expunge.backbone.guidance import ClassifierFree, Embedded, Level, Plain
from expunge.backbone.images import Pictures
from expunge.backbone.layers import Layers
from expunge.backbone.profile import Sampling
from expunge.backbone.sampling import follow
from expunge.backbone.text import Text


class Backbone(Text, Pictures, Layers):
    """One pipeline, with its own sampler. The pipeline is read and never changed.

    Noise level means t/T for ε- and v-models and σ after shift for flows: 1 is pure noise, 0 clean.

    Attributes:
        guards: defences that act in every prediction and step; set by `guarded`.
        predictions_heard: how many predictions were made outside of `original()`.
    """

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self.guards: tuple[Guard, ...] = ()
        self.predictions_heard = 0
        self._read: tuple[tuple[str | None, ...], tuple[Tokens, ...] | None] = ((), None)

    # --- prediction

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
        *,
        rows: Sequence[Row] | None = None,
    ) -> Tensor:
        """The denoiser's own prediction in one forward pass; guards act on it.

        Args:
            latents: noisy latents, (n, channels, height, width).
            level: noise level, one for all or n.
            conditioning: of n prompts.
            guidance_scale: read by denoisers that take guidance as an input, ignored by others;
                None for the profile's.
            rows: what each prediction is for; None where all are used as they are.

        Returns:
            Shaped like `latents`.
        """
        scale = self.profile.sampling.guidance_scale if guidance_scale is None else guidance_scale
        self.predictions_heard += not hooks.silent()
        if not self.guards:
            return self._pass(latents, level, conditioning, scale)
        guards, texts = self.guards, conditioning.texts
        only: list[Row] = ["only"] * len(latents)
        named = tuple(rows or only)
        call = Call(latents, level, conditioning, named, texts, self._tokens_of(texts))
        for guard in guards:
            with self.guarded():
                call = replace(call, conditioning=guard.conditioning(call))
        out = self._pass(latents, level, call.conditioning, scale)
        for guard in guards:
            with self.guarded():
                out = guard.prediction(call, out)
        return out

    def _pass(
        self, latents: Tensor, level: Tensor | float, conditioning: Conditioning, scale: float
    ) -> Tensor:
        if self.precision == "own":
            return self._predict(latents, level, conditioning, scale).to(latents.dtype)
        with torch.autocast(self.device.type, torch.bfloat16), _quiet_norms():
            return self._predict(latents, level, conditioning, scale).to(latents.dtype)

    def _tokens_of(self, texts: tuple[str | None, ...]) -> tuple[Tokens, ...] | None:
        """The tokens of a call's texts; the same texts come again at every step."""
        if self._read[0] != texts:
            known = [text for text in texts if text is not None]
            tokens = tuple(self.tokens(known)) if len(known) == len(texts) else None
            self._read = (texts, tokens)
        return self._read[1]

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Within this context predictions are computed in the weights' own type."""
        before, self.precision = self.precision, "own"
        try:
            yield
        finally:
            self.precision = before

    @contextlib.contextmanager
    def guarded(self, *guards: Guard) -> Iterator[None]:
        """Within this context these guards act in every prediction and step, and no others.

        Without any, all are silent.
        """
        before, self.guards = self.guards, guards
        try:
            yield
        finally:
            self.guards = before

    def guidance_for(
        self, conditioning: Conditioning, scale: float, negative: Conditioning | None = None
    ) -> Plain | Embedded | ClassifierFree:
        """Guidance by a scale, in the way this model takes it.

        Args:
            conditioning: of n prompts.
            scale: 1 for none.
            negative: what classifier-free guidance leads away from, of one prompt or of n; None
                for `unconditional`.

        Raises:
            ValueError: the model cannot take that scale, or reads no negative prompt.
        """
        self.check_guidance(scale)
        if negative is not None and self.guidance != "classifier-free":
            raise ValueError(
                f"negative must be None: {self.name} is not guided away from a prompt "
                f"(its guidance is {self.guidance})"
            )
        if self.guidance == "embedded":
            return Embedded(conditioning, scale)
        if scale == 1:
            return Plain(conditioning)
        return ClassifierFree(conditioning, scale, negative or self.unconditional())

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

    # --- a pipeline's own loop

    @abstractmethod
    def asked(self, given: Mapping[str, Any]) -> Asked:
        """What the arguments of a denoiser's call say.

        Args:
            given: by the names of the denoiser's `forward`.
        """

    @abstractmethod
    def told(self, given: Mapping[str, Any], conditioning: Conditioning) -> dict[str, Any]:
        """The same arguments with another conditioning."""

    def as_picture(self, latents: Tensor, given: Mapping[str, Any]) -> Tensor:
        """The pipeline's own latents, or the denoiser's output, as (n, channels, height, width)."""
        return latents

    def as_given(self, picture: Tensor) -> Tensor:
        """What `as_picture` was given."""
        return picture

    # --- noise

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor | float) -> Tensor:
        """The noisy latent of a clean one; at level 0 the clean one."""

    @abstractmethod
    def clean(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        """The clean latent a prediction stands for."""

    @abstractmethod
    def noise(self, latents: Tensor, prediction: Tensor, level: Tensor | float) -> Tensor:
        """The noise a prediction stands for."""

    @abstractmethod
    def log_snr(self, level: float) -> float:
        """Natural logarithm of signal power over noise power, the level architectures share."""

    def move(self, latents: Tensor, prediction: Tensor, level: Level, to: Level) -> Tensor:
        """Follow a prediction in a straight line from one noise level to another, each one or n.

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

    def size(self, sampling: Sampling) -> tuple[int, int]:
        """Height and width in pixels of what is drawn: the model's own where nothing is said."""
        usual = self.profile.sampling
        height, width = sampling.height or usual.height, sampling.width or usual.width
        assert height and width
        return height, width

    def initial_noise(self, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        """Starting noise, one CPU generator per picture, so a seed means the same in any batch."""
        shape = self.latent_shape(*self.size(sampling))
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(drawn).to(self.device, self.dtype)

    # --- sampling

    @abstractmethod
    def scheduler(self, sampling: Sampling) -> Any:
        """A fresh diffusers sampler of this model's noise schedule, its time steps set."""

    @abstractmethod
    def level_of(self, timestep: float) -> float:
        """The noise level of a sampler's timestep."""

    def levels_of(self, scheduler: Any) -> list[float]:
        """The noise levels a sampler passes through, from the highest to 0."""
        return [self.level_of(t) for t in scheduler.timesteps.tolist()] + [0.0]

    def levels(self, sampling: Sampling) -> list[float]:
        """The noise levels a sampling run passes through, from the highest to 0."""
        return self.levels_of(self.scheduler(sampling))

    def sample(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling | None = None
    ) -> Tensor:
        """Clean latents for n prompts and n seeds, drawn as one batch."""
        sampling = sampling or self.profile.sampling
        guidance = self.guidance_for(self.encode_prompts(prompts), sampling.guidance_scale)
        return follow(self, self.initial_noise(seeds, sampling), guidance, sampling)

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


@contextlib.contextmanager
def _quiet_norms() -> Iterator[None]:
    """Without torch's remark that float32 norms cannot be fused under bfloat16 autocast."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield
