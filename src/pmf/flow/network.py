"""What the flow asks of a network. Any callable that does this can be trained and sampled."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor


class Outputs(Protocol):
    """Fields of the heads that were asked for; the others are None."""

    u: Tensor | None
    v: Tensor | None
    u_tangent: Tensor | None


class Network(Protocol):
    """``z_tangent`` is optional equipment; see ``objective.derivative`` in the config."""

    def __call__(
        self,
        z: Tensor,
        h: Tensor,
        omega: Tensor,
        t_min: Tensor,
        t_max: Tensor,
        labels: Tensor,
        heads: Literal["u", "v", "uv"] = "uv",
        z_tangent: Tensor | None = None,
    ) -> Outputs:
        """See ``PixelTransformer.forward``."""


def head(output: Tensor | None) -> Tensor:
    """A field of :class:`Outputs` that was asked for."""
    assert output is not None, "the network left out a head that was asked for"
    return output
