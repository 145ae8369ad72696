"""What a layout of weights is: how somebody's files name and store the tensors of a network of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def as_it_is(_: str, tensor: Tensor) -> Tensor:
    """The tensor."""
    return tensor


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a code base names and stores our parameters; each function takes our name.

    Attributes:
        name: our name to theirs.
        store: our tensor to theirs.
        restore: their tensor to ours, the inverse of ``store``.
    """

    name: Callable[[str], str]
    store: Callable[[str, Tensor], Tensor] = as_it_is
    restore: Callable[[str, Tensor], Tensor] = as_it_is


OURS = Layout(name=str)


def within(prefix: str, layout: Layout) -> Layout:
    """The same layout where every name begins with ``prefix``."""
    return Layout(name=lambda name: prefix + layout.name(name), store=layout.store, restore=layout.restore)


def replace_first(name: str, patterns: Iterable[tuple[str, str]]) -> str:
    """The replacement of the first pattern that matches the whole name; the name, if none does."""
    for pattern, replacement in patterns:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def replace_all(name: str, patterns: Iterable[tuple[str, str]]) -> str:
    """The name after all replacements, in this order."""
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def to_kernel(tensor: Tensor) -> Tensor:
    """Of a linear layer or convolution, flax's kernel: (in, out) or (height, width, in, out); other tensors as is."""
    if tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0)
    return tensor.T if tensor.ndim == 2 else tensor


def from_kernel(tensor: Tensor) -> Tensor:
    """The inverse of :func:`to_kernel`: (out, in) or (out, in, height, width)."""
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    return tensor.T if tensor.ndim == 2 else tensor


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Each name of a whole network's tensors, and what it is without what training tools put around modules.

    ``torch.compile``, FSDP and recomputation name their wrappers wherever they stand. Others (``module.`` of DDP and of
    averages, ``model.`` of Lightning) stand before all names; so may the official ``net.``, which stays.
    """
    found = {name: _WRAPPERS.sub("", name) for name in names}
    while True:
        firsts = {name.partition(".")[0] if "." in name else "" for name in found.values()}
        if len(firsts) != 1 or firsts & {"", "net"}:
            return found
        found = {name: short.partition(".")[2] for name, short in found.items()}
