"""How long a training lasts, and how fast it is when."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Plan:
    """How long to train, and how the learning rates rise and fall.

    Attributes:
        steps: at least 1.
        warmup: steps of linear warm-up.
        decay_from: share of the steps after which the rates fall linearly to zero.
        ema: decay of the running average of the weights, None for no average.
        save_every: steps between checkpoints.
        keep: steps whose weights are kept beside the checkpoint, for each player as
            `<player>-weights-<step>.safetensors`.
    """

    steps: int
    warmup: int = 100
    decay_from: float = 0.6
    ema: float | None = None
    save_every: int = 250
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.warmup < 0:
            raise ValueError(f"warmup must not be negative, got {self.warmup}")
        if not 0 <= self.decay_from <= 1:
            raise ValueError(f"decay_from must lie between 0 and 1, got {self.decay_from}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, got {self.ema}; None for no average")

    def shortened(self, share: float) -> Plan:
        """The same plan with a share of the steps.

        Raises:
            ValueError: the share is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        steps, *keep = (max(1, round(step * share)) for step in (self.steps, *self.keep))
        return replace(self, steps=steps, keep=tuple(keep))

    def rate(self, step: int) -> float:
        """The share of a learning rate used at a step (counted from 0)."""
        start = self.decay_from * self.steps
        falling = (self.steps - step) / max(self.steps - start, 1)
        return min((step + 1) / max(self.warmup, 1), falling, 1.0)
