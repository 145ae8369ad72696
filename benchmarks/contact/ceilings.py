"""What the machine can do at best: copies, products, attention."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from benchmarks.contact.setting import Measurements, Report, Setting, milliseconds
from benchmarks.environment import synchronize
from benchmarks.result_file import one_line
from benchmarks.step_variants import only_attention
from pmf.net.layers import Attention
from pmf.net.pixel_transformer import PixelTransformer
from pmf.net.sizes import create_network

BACKENDS = {
    "default": None,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
NEW_SHAPES = 3


def measure(setting: Setting, report: Report) -> None:
    """Copy bandwidth, a large product, the model's own products, attention."""
    sizes = setting.sizes
    report(copy_gb_per_s=copy_rate(setting))
    side = sizes.product_side
    report(square_product={"side": side, "bf16_tflops": product_rate(setting, side, side, side)})
    for rows, (outputs, inputs) in product_shapes(setting):
        forward, to_inputs, to_weights = (
            product_rate(setting, *shape)
            for shape in ((rows, inputs, outputs), (rows, outputs, inputs), (outputs, rows, inputs))
        )
        rates = {"forward": forward, "to_inputs": to_inputs, "to_weights": to_weights}
        report(**{f"bf16 tflops, {rows} rows x {inputs} -> {outputs}": rates})
    attention = {}
    for name, backend in BACKENDS.items():
        attention[name] = attention_costs(setting, backend)
        report(attention=attention)


def copy_rate(setting: Setting) -> float:
    """Bytes read and written, GB/s."""
    source = torch.zeros(setting.sizes.copied_mib * 2**18, device=setting.device)
    target = torch.empty_like(source)
    repeats = setting.sizes.repeats
    return (
        2
        * source.nbytes
        / milliseconds(lambda: target.copy_(source), setting.device, repeats=repeats)["device_ms"]
        / 1e6
    )


def product_rate(setting: Setting, rows: int, inner: int, columns: int) -> float:
    """TFLOP/s of (rows, inner) x (inner, columns) in bfloat16."""
    left = torch.randn(rows, inner, device=setting.device, dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device=setting.device, dtype=torch.bfloat16)
    out = torch.empty(rows, columns, device=setting.device, dtype=torch.bfloat16)
    calls = 10 if setting.on_gpu else 1  # launching one of these takes as long as some of them do
    time_ms = milliseconds(
        lambda: torch.mm(left, right, out=out), setting.device, repeats=setting.sizes.repeats, calls=calls
    )["device_ms"]
    return 2 * rows * inner * columns / time_ms / 1e9


def product_shapes(setting: Setting) -> Iterator[tuple[int, tuple[int, int]]]:
    """Rows (tokens of a micro-batch of 64 and of 128) and weights (out, in) of the linear layers of a block."""
    network = network_without_values(setting)
    block = network.find_blocks()[0]
    # As wide as inside the products, where SwiGLU rounds its hidden width up to a multiple of 8.
    weights = {
        tuple(-(-length // 8) * 8 for length in module.weight.shape)
        for module in block.modules()
        if isinstance(module, nn.Linear)
    }
    tokens = network.position_embedding.shape[1]
    for images in (64, 128):
        for outputs, inputs in sorted(weights):
            yield setting.micro_batch(images) * tokens, (outputs, inputs)


def network_without_values(setting: Setting) -> PixelTransformer:
    """The model's layers and shapes."""
    with torch.device("meta"):
        network = create_network(setting.model, image_size=setting.image_size, num_classes=1)
    assert isinstance(network, PixelTransformer)
    return network


def attention_costs(setting: Setting, backend: SDPBackend | None) -> Measurements | str:
    """Milliseconds of one block's attention at a micro-batch of 64, and of the first call at a size never seen.

    Returns:
        Or why the backend cannot be used here.
    """
    batch = setting.micro_batch(64)
    try:
        with with_backend(backend):
            costs: Measurements = {"batch": batch}
            for name, call in zip(("forward", "forward_backward"), attention_calls(setting, batch), strict=True):
                costs[f"{name}_ms"] = milliseconds(call, setting.device, repeats=setting.sizes.repeats)["device_ms"]
            costs["new_shape_extra_ms"] = new_shape_costs(setting, batch)
            return costs
    except RuntimeError as error:
        return one_line(error)


def with_backend(backend: SDPBackend | None) -> AbstractContextManager[object]:
    """Only this backend; None leaves the choice to torch."""
    return contextlib.nullcontext() if backend is None else only_attention(backend)


def attention_calls(setting: Setting, batch: int) -> tuple[Callable[[], Tensor], Callable[[], object]]:
    """Forward alone, and with backward, over (batch, heads, tokens, d) in bfloat16."""
    network = network_without_values(setting)
    tokens, width = network.position_embedding.shape[1:]
    num_heads = next(module.num_heads for module in network.modules() if isinstance(module, Attention))
    shape = (batch, num_heads, tokens, width // num_heads)
    query, key, value = (
        torch.randn(shape, device=setting.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    gradient = torch.randn(shape, device=setting.device, dtype=torch.bfloat16)

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def forward_backward() -> object:
        return torch.autograd.grad(forward(), (query, key, value), gradient)

    return forward, forward_backward


def new_shape_costs(setting: Setting, batch: int) -> list[float]:
    """Milliseconds by which the first forward and backward at a new batch size exceed the second, host included."""
    extra = []
    for number in range(1, NEW_SHAPES + 1):
        call = attention_calls(setting, batch + number)[1]
        seconds = []
        for _ in range(2):
            synchronize(setting.device)
            started = time.perf_counter()
            call()
            synchronize(setting.device)
            seconds.append(time.perf_counter() - started)
        extra.append(1e3 * (seconds[0] - seconds[1]))
    return extra
