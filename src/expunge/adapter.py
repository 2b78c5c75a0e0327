"""Changes hooked into networks: no weight is copied or changed, and all of it comes off again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from expunge import hooks
from expunge.change import Change, Changes, LowRank
from expunge.gate import Gate


class _Hook(nn.Module):
    """Everything added to one layer's output, with a strength for each slice.

    What is trained stays in float32, whatever the layer computes in: in bfloat16 the optimiser's
    averages stop decaying and small steps are lost.
    """

    def __init__(self, changes: Sequence[tuple[str, Change]], adapter: Adapter) -> None:
        super().__init__()
        low = [(name, c) for name, c in changes if isinstance(c, LowRank) and not _trained(c)]
        self.columns = [(name, change.rank) for name, change in low]
        self.stacked = LowRank.stack([change for _, change in low]) if low else None
        rest = [(name, change) for name, change in changes if (name, change) not in low]
        self.names = [name for name, _ in rest]
        self.rest = nn.ModuleList([change for _, change in rest])
        self.adapter, self.ran = adapter, False

    # Compiled code would keep strengths as they were when it was compiled.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if hooks.silent() or not self.adapter.attached:
            return output
        self.ran = True
        plain = output if isinstance(output, Tensor) else output[0]
        added = self._added(module, args, plain)
        if added is None:
            return output
        whole = plain + added.to(plain.dtype)
        return whole if isinstance(output, Tensor) else (whole, *output[1:])

    def _added(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self.to(output.device)  # a pipeline may be moved after an erasure was applied
        strengths = {name: self._strength(name, output) for name, _ in self.columns}
        strengths |= {name: self._strength(name, output) for name in self.names}
        found: Tensor | None = None
        if self.stacked is not None and any(map(_acts, strengths.values())):
            ranks = [(strengths[name], rank) for name, rank in self.columns]
            found = self.stacked(module, args, output, _by_column(ranks, output.device))
        for name, change in zip(self.names, self.rest, strict=True):
            strength = strengths[name]
            if _acts(strength):
                more = change(module, args, output)
                if isinstance(strength, Tensor):
                    strength = strength.to(more.dtype).view(-1, *(1,) * (more.ndim - 1))
                more = more * strength
                found = more if found is None else found + more
        return found

    def _strength(self, name: str, output: Tensor) -> float | Tensor:
        """Of one slice, or where a gate says so one for each of the n rows."""
        strength: float = self.adapter.strengths[name]
        gate = self.adapter.gates.get(name)
        rows: Tensor | None = gate.rows(len(output)) if gate is not None else None
        return strength if rows is None else strength * rows.to(output.device)


def _acts(strength: float | Tensor) -> bool:
    return isinstance(strength, Tensor) or strength != 0


def _trained(change: Change) -> bool:
    return any(parameter.requires_grad for parameter in change.parameters())


def _by_column(ranks: Sequence[tuple[float | Tensor, int]], device: torch.device) -> Tensor | None:
    """Strengths of stacked columns, (columns,) or (n, columns); None where all are 1."""
    if all(not isinstance(strength, Tensor) and strength == 1 for strength, _ in ranks):
        return None
    rows = max(len(strength) if isinstance(strength, Tensor) else 1 for strength, _ in ranks)
    parts = [
        torch.as_tensor(strength, device=device).view(-1, 1).expand(rows, rank)
        for strength, rank in ranks
    ]
    whole = torch.cat(parts, dim=1)
    return whole[0] if rows == 1 else whole


class Adapter:
    """Changes attached to the networks of a pipeline, in named slices with strengths of their own.

    Args:
        networks: by component, such as `unet` or `text_encoder`; others may be among them.
        slices: name -> changes by place. What may be trained is what requires a gradient.
        name: of all of it; a network never carries two of one name.
        gates: name of a slice -> what its strength depends on.
        dtype: what frozen changes are kept in where a layer's own weight cannot say.

    Raises:
        ValueError: a network lacks a layer, one has another shape, projections are fused, or
            something of that name is attached already.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        slices: Mapping[str, Changes],
        *,
        name: str = "changes",
        gates: Mapping[str, Gate] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name, self.attached = name, True
        self.at_end: list[Callable[[], None]] = []  # called when all of it is off
        self.strengths: dict[str, float] = dict.fromkeys(slices, 1.0)
        self.gates = dict(gates or {})
        by_place: dict[str, list[tuple[str, Change]]] = {}
        for each, changes in slices.items():
            for place, change in changes.items():
                by_place.setdefault(place, []).append((each, change))
        found = find_layers(networks, by_place)
        self._check(networks, found, by_place)
        self._watch(networks)
        self._hooks = {}
        for place, entries in by_place.items():
            hook = _Hook(entries, self)
            if hook.stacked is not None:
                hook.stacked.to(_dtype(found[place], dtype))
            self._hooks[place] = hook
            found[place].register_forward_hook(hook)
        self.components = sorted({place.partition("/")[0] for place in by_place})
        for component in self.components:
            hooks.forget_compiled(networks[component])
            own = {p: h for p, h in self._hooks.items() if p.partition("/")[0] == component}
            hooks.attached(networks[component])[name] = Share(self, component, own)

    def _watch(self, networks: Mapping[str, nn.Module]) -> None:
        """Let gates follow the networks: all of them, before anything is hooked, or none."""
        try:
            for gate in self.gates.values():
                gate.watch(networks)
        except ValueError:
            for gate in self.gates.values():
                gate.unwatch()
            raise

    def _check(
        self,
        networks: Mapping[str, nn.Module],
        found: Mapping[str, nn.Module],
        by_place: Mapping[str, Sequence[tuple[str, Change]]],
    ) -> None:
        for place, changes in by_place.items():
            for _, change in changes:
                check_layer(place, found[place], change)
        for component in {place.partition("/")[0] for place in by_place}:
            hooks.refuse_fused(networks[component], component)
            if self.name in hooks.attached(networks[component]):
                raise ValueError(
                    f"this erasure is already applied to this {component} (or to the one it was "
                    "copied from): set its strength or remove it instead"
                )

    def set_strength(self, strengths: Mapping[str, float]) -> None:
        """Set the strength of some slices: 0 is off, 1 as made."""
        self.strengths.update(strengths)

    def remove(self, networks: Mapping[str, nn.Module]) -> None:
        """Take everything off. Code that was compiled with it finds nothing to add."""
        self.attached = False
        for component in self.components:
            network = networks[component]
            for module in network.modules():
                for key, hook in list(module._forward_hooks.items()):
                    if isinstance(hook, _Hook) and hook.adapter is self:
                        del module._forward_hooks[key]
            hooks.attached(network).pop(self.name, None)
        for gate in self.gates.values():
            gate.unwatch()
        for call in self.at_end:
            call()


class Share:
    """What of an adapter hangs on one network."""

    def __init__(self, adapter: Adapter, component: str, own: Mapping[str, _Hook]) -> None:
        self.adapter, self.component, self._own = adapter, component, own

    def state(self) -> Hashable:
        """Strengths, and how often each trained tensor has changed."""
        versions = sum(p._version for hook in self._own.values() for p in hook.rest.parameters())
        return (tuple(self.adapter.strengths.items()), versions)

    def begin(self) -> None:
        """Nothing has run yet."""
        for hook in self._own.values():
            hook.ran = False

    def check_ran(self) -> None:
        """All changed layers must have run since `begin`.

        Raises:
            NotFeltError: names those that did not.
        """
        idle = [place for place, hook in self._own.items() if not hook.ran]
        self.begin()
        if idle:
            named = ", ".join(idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
            raise hooks.NotFeltError(
                f"an erasure is applied and {len(idle)} of its {len(self._own)} changed layers in "
                f"the {self.component} did not run ({named}): fused projections, code compiled by "
                "other means, a cache or ready-made embeddings go around it; nothing drawn so is "
                "erased"
            )


def applied_to(network: nn.Module) -> dict[str, Adapter]:
    """Adapters that hang on a network, by name."""
    shares = hooks.attached(network)
    return {name: each.adapter for name, each in shares.items() if isinstance(each, Share)}


def find_layers(networks: Mapping[str, nn.Module], places: Iterable[str]) -> dict[str, nn.Module]:
    """The layers at some places.

    Raises:
        ValueError: the pipeline lacks a component, or a network a layer.
    """
    named: dict[str, dict[str, nn.Module]] = {}
    found = {}
    for place in places:
        component, _, layer = place.partition("/")
        if component not in networks:
            raise ValueError(
                f"made for another architecture: it changes the component {component!r}, and this "
                f"pipeline has {', '.join(sorted(networks))}"
            )
        if component not in named:
            named[component] = hooks.layers(networks[component])
        if layer not in named[component]:
            raise ValueError(f"made for another architecture: this model has no layer {place!r}")
        found[place] = named[component][layer]
    return found


def find_weights(networks: Mapping[str, nn.Module], places: Iterable[str]) -> dict[str, nn.Module]:
    """Layers with a weight at some places, or inside of what lies there.

    Raises:
        ValueError: the pipeline lacks a component, or a network a layer.
    """
    return {
        f"{place}.{name}" if name else place: layer
        for place, module in find_layers(networks, places).items()
        for name, layer in hooks.layers(module).items()
        if isinstance(weight := getattr(layer, "weight", None), Tensor) and weight.ndim > 1
    }


def check_layer(place: str, module: nn.Module, change: Change) -> None:
    """Refuse a change made for another architecture.

    Raises:
        ValueError: says what differs.
    """
    why = change.unfit(module)
    if why:
        raise ValueError(f"made for another architecture: {place!r} {why}")


def _dtype(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """What a frozen change of a layer is kept in: the weight's type, where it computes in that."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or type(weight) not in (Tensor, nn.Parameter):
        return otherwise
    narrow = not weight.is_floating_point() or weight.itemsize < 2  # stored so, computed otherwise
    return otherwise if narrow else weight.dtype


def weight_of(module: nn.Module) -> Tensor:
    """A layer's weight as an ordinary tensor in fp64 on the CPU, wherever and however it is kept.

    Raises:
        ValueError: its values are nowhere to be found.
    """
    with align_module_device(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        if weight.is_meta:
            raise ValueError(
                "a layer's weight lies on the meta device, without values; load the model with "
                "weights in memory (offload='layers' keeps them there)"
            )
        plain = weight.detach()
        if type(plain) not in (Tensor, nn.Parameter):
            plain = plain.dequantize()
        return plain.to("cpu", torch.float64)
