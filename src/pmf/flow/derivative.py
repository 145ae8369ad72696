"""u, v, and the total derivative of u along the flow.

V = u + (t - r) stopgrad(du/dt), and du/dt is the derivative of u(z, r, t) along (dz, dr, dt) = (v_c, 0, 1)
(MeanFlow equation 6, pMF equation 10). No gradient flows through du/dt, and rows with r = t do not use it: so it is
taken without a graph and only for the rows after the flow-matching ones. This is the only file that knows torch.func.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from pmf.errors import UserError
from pmf.flow.network import Network, TangentNetwork, head
from pmf.flow.options import ObjectiveConfig
from pmf.flow.parameterization import Parameterization

# torch's own, when it loads its forward-mode rules; nothing a user could do about it.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)


@dataclass(frozen=True, kw_only=True)
class FlowPoint:
    """Where the network is evaluated: z (B, C, H, W); t, h = t - r, omega, t_min, t_max, labels (B,)."""

    z: Tensor
    t: Tensor
    h: Tensor
    omega: Tensor
    t_min: Tensor
    t_max: Tensor
    labels: Tensor

    def last(self, rows: int) -> FlowPoint:
        """The last ``rows`` rows."""
        start = self.z.shape[0] - rows
        return FlowPoint(**{f.name: getattr(self, f.name)[start:] for f in fields(self)})

    def conditions(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The network's arguments after z and h."""
        return self.omega, self.t_min, self.t_max, self.labels


@dataclass(frozen=True, kw_only=True)
class Velocities:
    """u, v: (B, C, H, W) with graph; du_dt: (K, C, H, W) of the last K rows, without."""

    u: Tensor
    v: Tensor
    du_dt: Tensor


def jvp_derivative(network: Network, parameterization: Parameterization, point: FlowPoint, v_c: Tensor) -> Velocities:
    """By ``torch.func.jvp`` of the u head, in a pass of its own: works with any network.

    Args:
        v_c: (K, C, H, W) tangent of z for the last K rows.
    """
    outputs = network(point.z, point.h, *point.conditions(), heads="uv")
    u = parameterization.to_velocity(head(outputs.u), point.z, point.t)
    v = parameterization.to_velocity(head(outputs.v), point.z, point.t)
    part = point.last(v_c.shape[0])
    frozen = _without_graph(network)

    def average_velocity(z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        output = frozen(z, h, *part.conditions(), heads="u").u
        return parameterization.to_velocity(output, z, t)

    one = torch.ones_like(part.t)  # r stays, so dh = dt
    with _wide_range(point.z.device.type):
        du_dt = _directional(average_velocity, (part.z, part.t, part.h), (v_c, one, one))
    return Velocities(u=u, v=v, du_dt=du_dt)


def dual_derivative(
    network: TangentNetwork, parameterization: Parameterization, point: FlowPoint, v_c: Tensor
) -> Velocities:
    """By the network's own tangents, carried beside the training pass (pmf/net/dual.py): the fast form.

    Args:
        v_c: (K, C, H, W) tangent of z for the last K rows.
    """
    outputs = network(point.z, point.h, *point.conditions(), heads="uv", z_tangent=v_c)
    output_u = head(outputs.u)
    part = point.last(v_c.shape[0])
    primal = output_u.detach()[point.z.shape[0] - v_c.shape[0] :]
    tangents = (head(outputs.u_tangent), v_c, torch.ones_like(part.t))
    du_dt = _directional(parameterization.to_velocity, (primal, part.z, part.t), tangents)
    return Velocities(
        u=parameterization.to_velocity(output_u, point.z, point.t),
        v=parameterization.to_velocity(head(outputs.v), point.z, point.t),
        du_dt=du_dt,
    )


def auto_derivative(network: Network, parameterization: Parameterization, point: FlowPoint, v_c: Tensor) -> Velocities:
    """By the network's own tangents if it carries them, otherwise by :func:`jvp_derivative`."""
    if carries_tangents(network):
        return dual_derivative(network, parameterization, point, v_c)
    return jvp_derivative(network, parameterization, point, v_c)


DERIVATIVES: dict[str, Callable[..., Velocities]] = {
    "auto": auto_derivative,
    "jvp": jvp_derivative,
    "dual": dual_derivative,
}


def carries_tangents(network: Network) -> TypeGuard[TangentNetwork]:
    """What a network says of itself."""
    return getattr(network, "carries_tangents", False)


def require_derivative(network: Network, settings: ObjectiveConfig, *, compiled: bool, parallel: str) -> None:
    """The derivative asked for is one that the network has, and that goes with how it is trained.

    Raises:
        UserError: it carries no tangents, and they are asked for or jvp cannot take their place.
    """
    if carries_tangents(network) or settings.derivative == "jvp":  # what goes with jvp, the config has checked
        return
    name = type(network).__name__
    if settings.derivative == "dual":
        raise UserError(f"objective.derivative is dual, but {name} carries no tangents; use jvp or auto")
    needs = f"objective.derivative is auto, which is jvp for {name}, as it carries no tangents"
    if compiled:
        raise UserError(f"{needs}; jvp cannot pass compiled blocks: set training.compile to false")
    if parallel != "ddp":
        raise UserError(f"{needs}; jvp needs training.parallel: ddp, which is {parallel}")


def _directional(function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Tensor:
    return torch.func.jvp(function, primals, tangents)[1].detach()  # what is no module may have weights with a graph


def _wide_range(device: str) -> contextlib.AbstractContextManager[object]:
    """Float32 where autocast would take float16, whose range tangents leave and nothing in torch.func would rescale."""
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _without_graph(network: Network) -> Callable[..., Any]:
    """The network with detached weights. Under no_grad alone forward AD would still record the tangents' graph."""
    if not isinstance(network, nn.Module):
        return network
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    return lambda *args, **kwargs: torch.func.functional_call(network, weights, args, kwargs)
