"""u, v, and the total derivative of u along the flow.

V = u + (t - r) stopgrad(du/dt), where du/dt is the derivative of u(z, r, t) along (dz, dr, dt) = (v_c, 0, 1)
(MeanFlow equation 6, pMF equation 10). No gradient flows through du/dt, and rows with r = t do not use it: so it is
taken without a graph and only for the rows after the flow-matching ones. This is the only file that knows torch.func.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pmf.errors import UserError
from pmf.flow.parameterization import Parameterization
from pmf.net.interface import Conditions, HeadOutputs, Heads, Network, Tangent, head

# torch's own, when it loads its forward-mode rules; nothing a user could do about it.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)

Direction = tuple[Tensor, float, float]
"""(dz, dr, dt) for the last K rows: dz is (K, C, H, W), the rates of the times are numbers."""

Velocities = tuple[Tensor, Tensor | None, Tensor]
"""u and v, (B, C, H, W) with a graph, and du/dt of the last K rows, (K, C, H, W) without; v is None where it is not
trained."""


class Derivative(Protocol):
    """A way to compute u, v and du/dt along a direction, in one step with the training pass."""

    def __call__(
        self,
        network: Network,
        parameterization: Parameterization,
        z: Tensor,
        conditions: Conditions,
        along: Direction,
        heads: Literal["u", "uv"] = "uv",
    ) -> Velocities:
        """The velocities at z, (B, C, H, W), of the heads that are trained."""


def jvp_derivative(
    network: Network,
    parameterization: Parameterization,
    z: Tensor,
    conditions: Conditions,
    along: Direction,
    heads: Literal["u", "uv"] = "uv",
) -> Velocities:
    """u, v and du/dt by ``torch.func.jvp`` of the u head in a pass of its own: works with any network."""
    outputs = network(z, conditions, heads=heads)
    u = parameterization.to_velocity(head(outputs.u), z, conditions.t)
    v = _instantaneous(parameterization, outputs, z, conditions, heads)
    tangent = _tangent(along, conditions)
    rows = len(tangent.z)
    last, last_z = conditions.last(rows), z[len(z) - rows :]
    frozen = _without_graph(network)

    def average_velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        output = frozen(z, dataclasses.replace(last, t=t, h=h), heads="u").u
        return parameterization.to_velocity(output, z, t)

    with _wide_range(z.device.type):
        du_dt = _directional(average_velocity, (last_z, last.t, last.h), (tangent.z, tangent.t, tangent.h))
    return u, v, du_dt


def dual_derivative(
    network: Network,
    parameterization: Parameterization,
    z: Tensor,
    conditions: Conditions,
    along: Direction,
    heads: Literal["u", "uv"] = "uv",
) -> Velocities:
    """u, v and du/dt by the network's own tangents, carried beside the training pass: fast (pmf/net/dual.py)."""
    tangent = _tangent(along, conditions)
    first = len(z) - len(tangent.z)
    outputs = network(z, conditions, heads=heads, tangent=tangent)
    output_u = head(outputs.u)
    primals = (output_u.detach()[first:], z[first:], conditions.t[first:])
    du_dt = _directional(parameterization.to_velocity, primals, (head(outputs.u_tangent), tangent.z, tangent.t))
    u = parameterization.to_velocity(output_u, z, conditions.t)
    v = _instantaneous(parameterization, outputs, z, conditions, heads)
    return u, v, du_dt


def auto_derivative(
    network: Network,
    parameterization: Parameterization,
    z: Tensor,
    conditions: Conditions,
    along: Direction,
    heads: Literal["u", "uv"] = "uv",
) -> Velocities:
    """u, v and du/dt by the network's own tangents if it carries them, otherwise by :func:`jvp_derivative`."""
    derivative = dual_derivative if carries_tangents(network) else jvp_derivative
    return derivative(network, parameterization, z, conditions, along, heads)


DERIVATIVES: dict[str, Derivative] = {
    "auto": auto_derivative,
    "jvp": jvp_derivative,
    "dual": dual_derivative,
}


def carries_tangents(network: Network) -> bool:
    """Whether a network can carry tangents: its attribute of that name; False where it has none."""
    return getattr(network, "carries_tangents", False)


def require_derivative(network: Network, derivative: str, *, compiled: bool, parallel: str) -> None:
    """Refuse a network that lacks the derivative asked for, or whose derivative does not go with compilation or shards.

    Raises:
        UserError: it carries no tangents, and they are asked for or jvp cannot take their place.
    """
    if carries_tangents(network) or derivative == "jvp":  # what goes with jvp, the config has checked
        return
    name = type(network).__name__
    if derivative == "dual":
        raise UserError(f"objective.derivative is dual, but {name} carries no tangents; use jvp or auto")
    needs = f"objective.derivative is auto, which is jvp for {name}, as it carries no tangents"
    if compiled:
        raise UserError(f"{needs}; jvp cannot pass compiled blocks: set training.compile to false")
    if parallel != "ddp":
        raise UserError(f"{needs}; jvp needs training.parallel: ddp, which is {parallel}")


def _instantaneous(
    parameterization: Parameterization, outputs: HeadOutputs, z: Tensor, conditions: Conditions, heads: Heads
) -> Tensor | None:
    """v, where its head was asked for."""
    return parameterization.to_velocity(head(outputs.v), z, conditions.t) if "v" in heads else None


def _tangent(along: Direction, conditions: Conditions) -> Tangent:
    """The direction in the network's own variables, t and h = t - r."""
    dz, dr, dt = along
    rows = conditions.t[len(conditions.t) - len(dz) :]
    return Tangent(z=dz, t=rows.new_full(rows.shape, dt), h=rows.new_full(rows.shape, dt - dr))


def _directional(function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Tensor:
    return torch.func.jvp(function, primals, tangents)[
        1
    ].detach()  # a network that is no nn.Module may have weights with a graph


def _wide_range(device: str) -> contextlib.AbstractContextManager[object]:
    """Float32 where autocast would take float16: tangents leave its range, and torch.func does not rescale them."""
    if device == "meta":  # autocast does not know it
        return contextlib.nullcontext()
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _without_graph(network: Network) -> Callable[..., Any]:
    """The network with detached weights. Under no_grad alone forward AD would still record the tangents' graph."""
    if not isinstance(network, nn.Module):
        return network
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    return lambda *args, **kwargs: torch.func.functional_call(network, weights, args, kwargs)
