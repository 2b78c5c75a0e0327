"""What a guard has to know of a diffusers scheduler: where its steps end, and what it remembers.

A guard that replaces latents between steps is undone by a scheduler that remembers them: UniPC's
corrector, the second half of Heun's step and PNDM's warm-up all start from what they kept. So what
is remembered is dropped, and nothing is replaced within a step.
"""

from __future__ import annotations

from typing import Any

import torch

from expunge import hooks


class Memory:
    """Of a scheduler that remembers nothing between its steps."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def whole(self) -> bool:
        """Whether the call that was just made ended a step."""
        return True

    def reached(self, timestep: Any) -> float:
        """The time step of the latents that a call at `timestep` gave; 0 at the end."""
        times = self.scheduler.timesteps
        index = getattr(self.scheduler, "step_index", None)
        if index is None:
            index = int((times == timestep).nonzero()[0]) + 1
        return float(times[index]) if index < len(times) else 0.0

    def scale(self, timestep: float) -> float:
        """Size of its latents over the denoiser's, at a time step it has reached."""
        scaled = getattr(self.scheduler, "scale_model_input", None)
        one = torch.ones(1, dtype=torch.float64)
        return 1.0 if scaled is None else 1 / float(scaled(one, torch.tensor(timestep)))

    def forget(self) -> None:
        """Drop what it remembers: the latents were replaced."""

    def mend(self, taken: hooks.StepTaken) -> Any:
        """The latents after the first call behind `forget`, where the call could not know."""
        return None


class Outputs(Memory):
    """Of multistep solvers of DPM-Solver's kind, UniPC among them."""

    def forget(self) -> None:
        order = self.scheduler.config.solver_order
        self.scheduler.model_outputs = [None] * order
        self.scheduler.lower_order_nums = 0
        if hasattr(self.scheduler, "last_sample"):
            self.scheduler.last_sample = None
            self.scheduler.timestep_list = [None] * order


class Derivative(Memory):
    """Of Heun's scheduler and its like, which call twice a step and once for the last."""

    def whole(self) -> bool:
        last = self.scheduler.step_index == len(self.scheduler.timesteps)
        return bool(self.scheduler.state_in_first_order) or last


class Orders(Memory):
    """Of DPM-Solver in single steps: a step ends where the next call is of first order."""

    def whole(self) -> bool:
        left = self.scheduler.order_list[self.scheduler.step_index :]
        return not left or left[0] == 1


class Slopes(Memory):
    """Of the linear multistep scheduler, whose weights want a history of full length."""

    def mend(self, taken: hooks.StepTaken) -> Any:
        slopes = self.scheduler.derivatives
        self.scheduler.derivatives = [slopes[-1]] * len(slopes)
        before, after = self.scheduler.sigmas[self.scheduler.step_index - 1 :][:2]
        return taken.sample + slopes[-1] * (after - before)


class Pseudo(Memory):
    """Of PNDM without Runge-Kutta steps, whose first two calls are one step."""

    def whole(self) -> bool:
        return bool(self.scheduler.counter != 1)

    def reached(self, timestep: Any) -> float:
        if self.scheduler.counter == 2:  # the first step, taken again
            return float(timestep)
        return max(float(timestep) - self._stride, 0.0)

    def mend(self, taken: hooks.StepTaken) -> Any:
        # Its formulas cannot do without a history, so the step is taken again along what it was
        # just told, in first order.
        self.scheduler.ets = [told] = self.scheduler.ets[-1:]
        time = int(taken.timestep)
        return self.scheduler._get_prev_sample(taken.sample, time, time - self._stride, told)

    @property
    def _stride(self) -> int:
        config = self.scheduler.config
        return int(config.num_train_timesteps // self.scheduler.num_inference_steps)


KNOWN: dict[str, type[Memory]] = {
    "DDIMScheduler": Memory,
    "DDPMScheduler": Memory,
    "EulerDiscreteScheduler": Memory,
    "EulerAncestralDiscreteScheduler": Memory,
    "FlowMatchEulerDiscreteScheduler": Memory,
    "LCMScheduler": Memory,
    "TCDScheduler": Memory,
    "DPMSolverMultistepScheduler": Outputs,
    "DEISMultistepScheduler": Outputs,
    "UniPCMultistepScheduler": Outputs,
    "DPMSolverSinglestepScheduler": Orders,
    "HeunDiscreteScheduler": Derivative,
    "KDPM2DiscreteScheduler": Derivative,
    "KDPM2AncestralDiscreteScheduler": Derivative,
    "LMSDiscreteScheduler": Slopes,
    "PNDMScheduler": Pseudo,
}
"""Schedulers that a guard can act between the steps of."""


def memory_of(scheduler: Any) -> Memory:
    """What a scheduler remembers.

    Raises:
        ValueError: it is not known, another tool stands in for its `step`, or PNDM begins with
            Runge-Kutta steps.
    """
    name = type(scheduler).__name__
    if name not in KNOWN:
        raise ValueError(
            f"{name} is not known to guards, which would not know when its steps end or what it "
            f"remembers; use one of {', '.join(KNOWN)}"
        )
    if "step" in vars(scheduler) and not hooks.watched_by(scheduler):
        raise ValueError(
            f"another tool has replaced the step of this {name}, so a guard cannot follow it; "
            "undo that first"
        )
    if name == "PNDMScheduler" and not scheduler.config.skip_prk_steps:
        raise ValueError(
            "PNDMScheduler begins with Runge-Kutta steps that a guard cannot act between; make it "
            "with skip_prk_steps=True"
        )
    return KNOWN[name](scheduler)
