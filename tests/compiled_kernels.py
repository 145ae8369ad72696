"""Triton's kernels compiled for GPUs that are not there, and what they take of one."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes that a block may have, by compute capability (CUDA programming guide)."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A kernel for one kind of GPU.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread that did not find room in registers, and are in memory.
        shared: bytes of a block.
        ptx: its code.
    """

    registers: int
    stack: int
    shared: int
    ptx: str = field(repr=False)


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    *,
    warps: int,
    stages: int,
    multiples: Collection[str] = (),
) -> Compiled:
    """Compile for a compute capability (90 is Hopper).

    Args:
        types: of arguments; those that are neither here nor constants are 32-bit integers. Pointers are aligned, as
            torch allocates.
        multiples: names of integers that are multiples of 16, which Triton finds out when it is called.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if signature[name].startswith("*") or name in multiples
        },
    )
    options = {"num_warps": warps, "num_stages": stages}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Triton's, of defaults that will change
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage = _resource_usage(compiled.asm["cubin"], Path(triton.__file__).parent / "backends" / "nvidia" / "bin")
    return Compiled(
        registers=usage["REG"], stack=usage["STACK"], shared=compiled.metadata.shared, ptx=compiled.asm["ptx"]
    )


def _resource_usage(cubin: bytes, tools: Path) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tools / "cuobjdump", "-res-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in printed.splitlines() if "REG:" in line)
    pairs = (part.split(":") for part in line.split() if part.count(":") == 1)
    return {name: int(value) for name, value in pairs if value.isdigit()}
