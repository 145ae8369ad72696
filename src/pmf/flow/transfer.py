"""From the host to the device in one copy: the many small tensors that a micro-batch is told."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def move_together(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors of the CPU on a device: for a GPU by one copy from page-locked memory, for which nothing waits.

    Each is a tensor of its own, not a view of a common buffer, whose size compiled code would look at.
    """
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    lengths = [tensor.nbytes for tensor in tensors.values()]
    buffer = torch.empty(sum(lengths), dtype=torch.uint8, pin_memory=True)
    for part, tensor in zip(buffer.split(lengths), tensors.values(), strict=True):
        part.copy_(_bytes_of(tensor.contiguous()))
    moved = {name: torch.empty_like(tensor, device=device) for name, tensor in tensors.items()}
    together = buffer.to(device, non_blocking=True)
    torch.split_with_sizes_copy(together, lengths, out=[_bytes_of(tensor) for tensor in moved.values()])
    return moved


def _bytes_of(tensor: Tensor) -> Tensor:
    """A view of a contiguous tensor, (bytes,) uint8."""
    return tensor.view(-1).view(torch.uint8)
