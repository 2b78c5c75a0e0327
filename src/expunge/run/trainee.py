"""A player while it is trained: its optimiser, its running average, and what they remember."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from expunge.run.objective import Grads, Player


class Trainee:
    """A player in a run.

    Args:
        name: of the player.
        player: what is trained and how fast.
        ema: decay of the running average of its weights, None for no average.

    Raises:
        ValueError: none of its parameters requires a gradient.
    """

    def __init__(self, name: str, player: Player, ema: float | None) -> None:
        self.name, self.player = name, player
        self.parameters = [p for p in player.module.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError(f"no parameter of {name} requires a gradient, so none is trained")
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=player.lr, betas=player.betas, weight_decay=player.weight_decay
        )
        self.average: AveragedModel | None = None
        if ema is not None:
            rule = get_ema_multi_avg_fn(ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(player.module, multi_avg_fn=rule)

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint must have in common with it."""
        names = ("lr", "betas", "weight_decay", "clip", "every")
        return {name: getattr(self.player, name) for name in names}

    @property
    def result(self) -> nn.Module:
        """The running average, or the module itself."""
        return self.average.module if self.average else self.player.module

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What has to be kept, by role."""
        kept: dict[str, nn.Module] = {"player": self.player.module}
        return kept | ({"average": self.average} if self.average else {})

    def move(self, grads: Grads, share: float) -> float:
        """One step of the optimiser, unless the gradient is not finite.

        Args:
            grads: one for each parameter; None leaves the parameter as it is.
            share: of the learning rate.

        Returns:
            The gradient's norm before clipping.
        """
        found = [grad for grad in grads if grad is not None]
        norm = float(nn.utils.get_total_norm(found))
        if not norm < float("inf"):
            return norm
        clip = self.player.clip
        scale = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        for parameter, grad in zip(self.parameters, grads, strict=True):
            # Not in place: autograd may give two parameters the same tensor.
            parameter.grad = grad if grad is None or scale == 1 else grad * scale
        for group in self.optimizer.param_groups:
            group["lr"] = self.player.lr * share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update_parameters(self.player.module)
        return norm

    def finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(bool(torch.isfinite(p).all()) for p in self.parameters)

    def remembered(self) -> dict[str, Tensor]:
        """The optimiser's averages, as `<parameter>/<name>`."""
        state = self.optimizer.state_dict()["state"]
        return {f"{index}/{k}": v for index, slot in state.items() for k, v in slot.items()}

    def remember(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `remembered` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
