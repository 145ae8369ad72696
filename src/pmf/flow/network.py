"""What the flow asks of a network. Any callable that does this can be trained and sampled."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor


class Outputs(Protocol):
    """Fields of the heads that were asked for; the others are None."""

    u: Tensor | None
    v: Tensor | None


class Network(Protocol):
    """Images and conditions to what the heads say."""

    def __call__(
        self,
        z: Tensor,
        h: Tensor,
        omega: Tensor,
        t_min: Tensor,
        t_max: Tensor,
        labels: Tensor,
        heads: Literal["u", "v", "uv"] = "uv",
    ) -> Outputs:
        """See ``PixelTransformer.forward``."""


class TangentOutputs(Outputs, Protocol):
    """With the derivative of u's last rows, if it was asked for."""

    u_tangent: Tensor | None


class TangentNetwork(Network, Protocol):
    """Optional equipment: a network that carries tangents through its pass, and says so.

    Attributes:
        carries_tangents: True; other networks need not have it.
    """

    carries_tangents: bool

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
    ) -> TangentOutputs:
        """See ``PixelTransformer.forward``."""


def head(output: Tensor | None) -> Tensor:
    """A field of :class:`Outputs` that was asked for."""
    assert output is not None, "the network left out a head that was asked for"
    return output
