"""One training loop for everything that is trained: one network, or several in turn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge.run import checkpoint
from expunge.run.checkpoint import Kept, Workspace
from expunge.run.files import write_atomically
from expunge.run.objective import Objective, Player, Step
from expunge.run.plan import Plan
from expunge.run.progress import progress_bar
from expunge.run.stop import stop_between
from expunge.run.trainee import Trainee

Curves = dict[str, list[float]]
"""Numbers by name, one for each time they were computed."""


class DivergedError(ArithmeticError):
    """A loss, a gradient or a weight is no longer a finite number."""


@dataclass(frozen=True)
class Trained:
    """What a run made.

    Attributes:
        modules: of each player, their running averages if the plan asks for them.
        losses: of each player, under its name; named terms as `<player>/<term>`.
        norms: of each player's gradient before clipping.
        logged: what the objective logged.
        steps: how many were done.
        early: whether the objective ended the run before the plan's last step.
    """

    modules: Mapping[str, nn.Module]
    losses: Curves
    norms: Curves
    logged: Curves
    steps: int
    early: bool


def fit(
    title: str,
    players: Mapping[str, Player],
    objective: Objective,
    plan: Plan,
    workspace: Workspace | None = None,
    *,
    seed: int = 0,
) -> Trained:
    """Train every player's parameters that require a gradient.

    Everything random in a step comes from its generator, and torch's own generators are seeded for
    it as well, so a run that was stopped and goes on sees what an unbroken run would have seen.
    The caller's random state is left as it was.

    Args:
        title: name of the progress bar, and of the checkpoint file.
        players: what is trained, in the order in which it moves within a step.
        objective: what towards.
        plan: length.
        workspace: where checkpoints go, and what they have to have in common with this run. With
            one, the same call after a stop goes on where it was.
        seed: of everything random.

    Raises:
        DivergedError: a loss, gradient or weight became NaN or infinite; says the step and the last
            good checkpoint.
        ValueError: the checkpoint is damaged or of another run; a player has nothing to train, or
            its loss does not depend on what it trains, or it was never trained.
        OSError: the workspace cannot be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step in flight and its checkpoint.
    """
    run = _Run(title, players, objective, plan, workspace, seed)
    run.resume()
    devices = range(torch.cuda.device_count())
    with (
        torch.random.fork_rng(devices=devices),
        progress_bar(title, plan.steps, run.done) as advance,
        stop_between() as stopped,
    ):
        while not run.finished:
            run.step()
            advance(1, run.note)
            stop = stopped()
            if run.finished or stop or run.done % plan.save_every == 0:
                run.save()
            if stop:
                raise KeyboardInterrupt(f"{title} stopped after step {run.done}; {run.way_on}")
    return run.result()


class _Run:
    """The state of a run between steps."""

    def __init__(
        self,
        title: str,
        players: Mapping[str, Player],
        objective: Objective,
        plan: Plan,
        workspace: Workspace | None,
        seed: int,
    ) -> None:
        if not players:
            raise ValueError("players must hold at least one player, got none")
        self.title, self.objective, self.plan, self.seed = title, objective, plan, seed
        self.trainees = [Trainee(name, player, plan.ema) for name, player in players.items()]
        _check_apart(self.trainees)
        self.done, self.saved, self.early = 0, 0, False
        self.curves: dict[str, Curves] = {"losses": {}, "norms": {}, "logged": {}}
        self.workspace = workspace and self._described(workspace)

    def _described(self, workspace: Workspace) -> Workspace:
        """The workspace with the settings of the training itself."""
        plan = {k: v for k, v in asdict(self.plan).items() if k != "save_every"}
        players = {trainee.name: trainee.settings for trainee in self.trainees}
        training = {**plan, "seed": self.seed, "players": players}
        return Workspace(workspace.folder, {**workspace.settings, "training": training})

    @property
    def finished(self) -> bool:
        return self.early or self.done >= self.plan.steps

    @property
    def note(self) -> str:
        losses = self.curves["losses"]
        names = [trainee.name for trainee in self.trainees if trainee.name in losses]
        told = [f"{name} {losses[name][-1]:.4f}" for name in names]
        return f"loss {losses[names[0]][-1]:.4f}" if len(told) == 1 else ", ".join(told)

    @property
    def way_on(self) -> str:
        if self.workspace is None:
            return "nothing is kept"
        return f"the same command goes on from step {self.saved}"

    @property
    def _modules(self) -> dict[str, nn.Module]:
        """Everything that has to be kept, by a prefix of its own."""
        kept = {
            f"{role}/{quote(trainee.name, safe='')}/": module
            for trainee in self.trainees
            for role, module in trainee.modules.items()
        }
        others = self.objective.networks.items()
        return kept | {f"network/{quote(name, safe='')}/": module for name, module in others}

    def step(self) -> None:
        """Let every player move once."""
        number = (self.seed * 1_000_003 + self.done) % 2**63  # any integer may be a seed
        step = Step(self.done, torch.Generator().manual_seed(number))
        torch.manual_seed(number ^ 0x5DEECE66D)  # dropout and its like
        self.objective.before(step)
        for trainee in self.trainees:
            if self.done % trainee.player.every == 0:
                self._move(step, trainee)
        self.early = self.objective.done(step)
        self._log("logged", step.logged)
        self.done += 1
        if self.workspace and self.done in self.plan.keep:
            self._keep(self.workspace.folder)

    def _move(self, step: Step, trainee: Trainee) -> None:
        name = trainee.name
        loss = self.objective.loss(step, name)
        if loss is None:
            return
        terms = {name: loss} if isinstance(loss, Tensor) else dict(loss)
        values = {term: value.item() for term, value in terms.items()}
        for term, value in values.items():
            if not math.isfinite(value):
                self._diverged(f"the loss {term} is {value}", trainee)
        with_graph = [term for term in terms.values() if term.requires_grad]
        grads = self.objective.gradient(step, name, terms, trainee.parameters) if with_graph else []
        if all(grad is None for grad in grads):
            raise ValueError(
                f"the loss of {name} does not depend on what is trained in step {step.number}; "
                "compute it with gradients, and with its parameters in use"
            )
        norm = trainee.move(grads, self.plan.rate(step.number))
        if not math.isfinite(norm):
            self._diverged(f"the gradient of {name} has norm {norm}", trainee)
        if name not in terms:
            values = {name: sum(values.values())} | {f"{name}/{k}": v for k, v in values.items()}
        self._log("losses", values)
        self._log("norms", {name: norm})

    def _log(self, kind: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.curves[kind].setdefault(name, []).append(value)

    def _diverged(self, what: str, trainee: Trainee) -> NoReturn:
        kept = self.workspace and self.saved
        good = f"the last good checkpoint is step {self.saved}" if kept else "nothing was saved"
        raise DivergedError(
            f"{self.title} failed at step {self.done}: {what}; {good}; a learning rate below "
            f"{trainee.player.lr:g}, or float32, usually helps"
        )

    def _keep(self, folder: Path) -> None:
        for trainee in self.trainees:
            state = trainee.player.module.state_dict()
            tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
            file = f"{quote(trainee.name, safe='')}-weights-{self.done}.safetensors"
            write_atomically(folder / file, partial(save_file, tensors))

    def save(self) -> None:
        """Keep where the run is, if it has a workspace and all is well."""
        for trainee in self.trainees:
            if not trainee.finite():
                self._diverged(f"the weights of {trainee.name} are not finite", trainee)
        if self.workspace:
            tensors = self._state() | self._memory()
            kept = Kept(self.done, self.early, tensors)
            checkpoint.write(self._path(self.workspace), self.workspace, kept)
            self.saved = self.done

    def resume(self) -> None:
        """Go on where a run with the same settings was."""
        if self.workspace is None:
            return
        self.workspace.check()
        path = self._path(self.workspace)
        kept = checkpoint.read(path, self.workspace, self.plan.steps)
        if kept is None:
            return
        theirs = {k: v for k, v in kept.tensors.items() if not k.startswith(("memory/", "curve/"))}
        _check_same(path, theirs, self._state())
        for prefix, module in self._modules.items():
            module.load_state_dict(_under(prefix, kept.tensors))
        for index, trainee in enumerate(self.trainees):
            trainee.remember(_under(f"memory/{index}/", kept.tensors))
        for kind, curves in self.curves.items():
            found = _under(f"curve/{kind}/", kept.tensors)
            curves.update({name: values.tolist() for name, values in found.items()})
        self.done = self.saved = kept.step
        self.early = kept.early

    def _path(self, workspace: Workspace) -> Path:
        return workspace.folder / f"{quote(self.title, safe=' ')}.safetensors"

    def _state(self) -> dict[str, Tensor]:
        modules = self._modules.items()
        return {prefix + k: v for prefix, m in modules for k, v in m.state_dict().items()}

    def _memory(self) -> dict[str, Tensor]:
        """What optimisers and curves remember."""
        kept = {
            f"memory/{index}/{key}": value
            for index, trainee in enumerate(self.trainees)
            for key, value in trainee.remembered().items()
        }
        for kind, curves in self.curves.items():
            for name, values in curves.items():
                kept[f"curve/{kind}/{name}"] = torch.tensor(values, dtype=torch.float64)
        return kept

    def result(self) -> Trained:
        """What was made.

        Raises:
            ValueError: a player did not learn anything.
        """
        norms = self.curves["norms"]
        for trainee in self.trainees:
            if not any(norms.get(trainee.name, ())):
                why = "its gradient was zero" if trainee.name in norms else "it always passed"
                raise ValueError(
                    f"{trainee.name} learnt nothing in {self.done} steps of {self.title}: {why}"
                )
        modules: dict[str, Any] = {trainee.name: trainee.result for trainee in self.trainees}
        early = self.early and self.done < self.plan.steps
        return Trained(modules, **self.curves, steps=self.done, early=early)


def _check_apart(trainees: list[Trainee]) -> None:
    """Refuse players that share a parameter: it would be moved twice a step."""
    owners: dict[int, str] = {}
    for trainee in trainees:
        for parameter in trainee.parameters:
            other = owners.setdefault(id(parameter), trainee.name)
            if other != trainee.name:
                raise ValueError(f"{other} and {trainee.name} share a parameter; give it to one")


def _check_same(path: Path, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    first, second = ({k: (v.shape, v.dtype) for k, v in each.items()} for each in (theirs, ours))
    differ = sorted(k for k in {**first, **second} if first.get(k) != second.get(k))
    if differ:
        raise checkpoint.foreign(path, f"networks of other shapes, {differ[0]} for one")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
