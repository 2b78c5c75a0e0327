"""How long an audit or a bench will take, told before it starts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expunge.backbone.base import Backbone
    from expunge.backbone.profile import Sampling
    from expunge.run.store import Store


class Drawing(Protocol):
    """What will be drawn: the plan of an audit or a bench."""

    @property
    def sampling(self) -> Sampling: ...
    @property
    def pictures(self) -> int: ...
    @property
    def proposals(self) -> Sequence[object]: ...
    def left(self, store: Store) -> int: ...


@dataclass(frozen=True)
class Estimate:
    """What an audit or a bench costs.

    Attributes:
        pictures: that are drawn.
        left: of those, not drawn yet.
        minutes: for what is left, by the speed of one step here; judges and attacks not counted.
        attacks: attempts that attacks make before, each at its own cost.
    """

    pictures: int
    left: int
    minutes: float
    attacks: int

    def __str__(self) -> str:
        done = self.pictures - self.left
        kept = f", {done} of them kept from before" if done else ""
        minutes = "less than a minute" if self.minutes < 1 else f"about {self.minutes:.0f} minutes"
        more = f", and {self.attacks} attempts of attacks beforehand" if self.attacks else ""
        return f"{self.pictures} pictures{kept}: {minutes} of drawing{more}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "minutes": round(self.minutes, 2)}


def estimate(laid: Drawing, backbone: Backbone, store: Store) -> Estimate:
    """Measure one step of drawing, and multiply."""
    left = laid.left(store)
    seconds = left * _seconds_a_picture(backbone, laid.sampling) if left else 0.0
    return Estimate(laid.pictures, left, seconds / 60, len(laid.proposals))


def _seconds_a_picture(backbone: Backbone, sampling: Sampling) -> float:
    import torch

    count = sampling.batch_size
    with torch.no_grad():
        states = backbone.encode_prompts(["a picture"] * count)
        guidance = backbone.guidance_for(states, sampling.guidance_scale)
        noise = backbone.initial_noise(range(count), sampling).to(backbone.device, backbone.dtype)
        guidance(backbone, noise, 0.5)  # the first call warms up
        step = _timed(lambda: guidance(backbone, noise, 0.5))
        decoding = _timed(lambda: backbone.decode(noise[:1]))
    return sampling.num_inference_steps * step / count + decoding


def _timed(work: Any) -> float:
    import torch

    start = time.monotonic()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - start
