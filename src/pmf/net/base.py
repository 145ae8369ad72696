"""What all architectures have in common: what a network says of itself, and the blocks that it is built from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from pmf.net.dual import Dual, Operand, value_of
from pmf.net.recompute import recomputed


class BaseNetwork(nn.Module):
    """A network as the table of sizes lists it (pmf/net/sizes.py); ``forward`` is as pmf/net/interface.py says.

    The constructor of a subclass takes, by keyword, ``image_size``, ``channels``, ``num_classes``, ``inference`` and
    ``generator``, the patch size and whatever else the rows of the table give. ``image_size`` and ``channels`` are the
    side and the channels of the network's space (pixels, or latents). With ``inference`` it leaves out what only
    training uses, and all initial weights come from the generator (None: torch's global one).

    Attributes:
        heads: ``uv``, or ``u`` for a network with one head and for one that was built for inference.
        carries_tangents: whether ``forward`` takes a ``tangent`` and computes the derivative of u beside u.
        training_only: how the names of the tensors begin that a network built for inference does not have.
        compiled_methods: names of methods that do what is around the blocks, to be compiled as blocks are: of tensors
            and operands, without a decision that depends on what a tensor holds.
    """

    heads: Literal["u", "uv"] = "u"
    carries_tangents: bool = False
    training_only: tuple[str, ...] = ()
    compiled_methods: tuple[str, ...] = ()

    @classmethod
    def is_training_only(cls, name: str) -> bool:
        """Whether a network built for inference lacks the tensor of this name (as in ``state_dict``)."""
        return name.startswith(cls.training_only)

    def find_blocks(self) -> list[BaseBlock]:
        """The blocks of the network, in the order of its modules."""
        return [module for module in self.modules() if isinstance(module, BaseBlock)]

    def compile_blocks(self, *, static_shapes: bool = False) -> None:
        """Compile each block, and each of ``compiled_methods``, by itself, without graph breaks.

        Equal blocks share their code.

        Args:
            static_shapes: compile one graph for each number of rows, instead of one for any number.
        """
        for block in self.find_blocks():
            block.compile_body(static_shapes=static_shapes)
        for name in self.compiled_methods:
            setattr(self, name, compiled(getattr(self, name), static_shapes=static_shapes))

    def checkpoint_blocks(self) -> None:
        """Train in less memory: each block keeps its inputs only, and runs a second time for its gradients."""
        for block in self.find_blocks():
            block.checkpointed = True


class BaseBlock(nn.Module):
    """A layer that is compiled and checkpointed by itself; a subclass writes :meth:`body`.

    Attributes:
        checkpointed: keep only the block's inputs for the backward pass, and run the block again there.
    """

    checkpointed = False
    body: Callable[..., Operand]
    """The block itself, as a method: (x, *context) to an operand of the shape of x. This is what is compiled."""

    def forward(self, x: Operand, *context: Any) -> Operand:
        """Run the body, and with ``checkpointed`` see to it that only its inputs are kept.

        Args:
            x: (B, ...).
            context: the body's other arguments: operands (gradients flow to them too), or anything else.
        """
        operands = [part for part in (x, *context) if isinstance(part, torch.Tensor | Dual)]
        if self.checkpointed and any(value_of(operand).requires_grad for operand in operands):
            return recomputed(self.body, tuple(self.parameters()), x, *context)
        return self.body(x, *context)

    def compile_body(self, *, static_shapes: bool) -> None:
        """Compile the body; see :meth:`BaseNetwork.compile_blocks`."""
        self.body = compiled(self.body, static_shapes=static_shapes)


def compiled(function: Callable[..., Any], *, static_shapes: bool = False) -> Callable[..., Any]:
    """A function compiled without graph breaks, for any number of rows or (``static_shapes``) anew for each."""
    return torch.compile(function, fullgraph=True, dynamic=False if static_shapes else None)
