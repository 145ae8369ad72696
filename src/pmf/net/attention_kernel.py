"""The tangent of attention as one Triton kernel: a pass over the keys in which nothing of T x T numbers is stored.

With S = q k^T / sqrt(d), P = softmax(S) and dS = (dq k^T + q dk^T) / sqrt(d), the tangent of O = P V is
(P * dS) V + P dV - rowsum(P * dS) O. Each of its parts is a sum over the keys, so each can be kept with the running
maximum of an online softmax (Milakov and Gimelshein, 1805.02867). P and the O that is subtracted come from one softmax.
That takes six products of T x T x d. With the fused forward pass's log-sum-exp and O it would be five, but torch gives
the log-sum-exp only to its own backward pass, and its O is rounded to half precision. To compute rowsum(P * dS) before
the sum that it is taken from would take seven.

Heads are 64, 72 or 80 wide, and a tile has a power of two of columns: so a head is a main part and a rest (64 + 16)
instead of one part of 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

ALIGNED = 8
"""Numbers at whose multiples rows and heads begin, if they do: 16 bytes or more, the most that a thread loads at once.
Triton by itself looks for multiples of 16, which 72 is not."""


@triton.jit
def attention_tangent_kernel(  # type: ignore[no-untyped-def]
    query, key, value, query_rate, key_rate, value_rate, tangent,
    query_row, query_head, query_token,
    key_row, key_head, key_token,
    value_row, value_head, value_token,
    query_rate_row, query_rate_head, query_rate_token,
    key_rate_row, key_rate_head, key_rate_token,
    value_rate_row, value_rate_head, value_rate_token,
    tangent_row, tangent_head, tangent_token,
    heads, scale,
    UNIT: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of QUERIES tokens of a head of a row; strides are in units of UNIT numbers."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    tiles = tl.cdiv(TOKENS, QUERIES)
    tile = tl.program_id(0) % tiles
    head = (tl.program_id(0) // tiles) % heads
    row = (tl.program_id(0) // (tiles * heads)).to(tl.int64)  # offsets of large batches are beyond 32 bits

    query += (row * query_row + head * query_head) * UNIT
    key += (row * key_row + head * key_head) * UNIT
    value += (row * value_row + head * value_head) * UNIT
    query_rate += (row * query_rate_row + head * query_rate_head) * UNIT
    key_rate += (row * key_rate_row + head * key_rate_head) * UNIT
    value_rate += (row * value_rate_row + head * value_rate_head) * UNIT
    tangent += (row * tangent_row + head * tangent_head) * UNIT

    asking = tile * QUERIES + tl.arange(0, QUERIES)
    main = tl.arange(0, MAIN)
    asks = (asking < TOKENS)[:, None]
    inside = (main < WIDTH)[None, :]
    q = tl.load(query + asking[:, None] * query_token * UNIT + main, asks & inside, 0.0)
    dq = tl.load(query_rate + asking[:, None] * query_rate_token * UNIT + main, asks & inside, 0.0)
    if REST:
        rest = MAIN + tl.arange(0, REST)
        inside_rest = (rest < WIDTH)[None, :]
        q_rest = tl.load(query + asking[:, None] * query_token * UNIT + rest, asks & inside_rest, 0.0)
        dq_rest = tl.load(query_rate + asking[:, None] * query_rate_token * UNIT + rest, asks & inside_rest, 0.0)

    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)  # of exp(S)
    weighted = tl.zeros((QUERIES,), tl.float32)  # of exp(S) dS
    output = tl.zeros((QUERIES, MAIN), tl.float32)  # exp(S) V
    both = tl.zeros((QUERIES, MAIN), tl.float32)  # (exp(S) * dS) V + exp(S) dV
    if REST:
        output_rest = tl.zeros((QUERIES, REST), tl.float32)
        both_rest = tl.zeros((QUERIES, REST), tl.float32)

    for start in range(0, TOKENS, KEYS):
        asked = start + tl.arange(0, KEYS)
        known = asked < TOKENS
        given = known[:, None] & inside
        k = tl.load(key + asked[:, None] * key_token * UNIT + main, given, 0.0)
        dk = tl.load(key_rate + asked[:, None] * key_rate_token * UNIT + main, given, 0.0)
        v = tl.load(value + asked[:, None] * value_token * UNIT + main, given, 0.0)
        dv = tl.load(value_rate + asked[:, None] * value_rate_token * UNIT + main, given, 0.0)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        rates = tl.dot(dq, k.T, input_precision=PRECISION)
        rates = tl.dot(q, dk.T, rates, input_precision=PRECISION)
        if REST:
            given_rest = known[:, None] & inside_rest
            k_rest = tl.load(key + asked[:, None] * key_token * UNIT + rest, given_rest, 0.0)
            dk_rest = tl.load(key_rate + asked[:, None] * key_rate_token * UNIT + rest, given_rest, 0.0)
            v_rest = tl.load(value + asked[:, None] * value_token * UNIT + rest, given_rest, 0.0)
            dv_rest = tl.load(value_rate + asked[:, None] * value_rate_token * UNIT + rest, given_rest, 0.0)
            scores = tl.dot(q_rest, k_rest.T, scores, input_precision=PRECISION)
            rates = tl.dot(dq_rest, k_rest.T, rates, input_precision=PRECISION)
            rates = tl.dot(q_rest, dk_rest.T, rates, input_precision=PRECISION)

        scores = tl.where(known[None, :], scores * (scale * LOG2_E), float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp2(highest - higher)
        highest = higher
        p = tl.exp2(scores - higher[:, None])
        w = p * (rates * scale)
        total = total * shrink + tl.sum(p, 1)
        weighted = weighted * shrink + tl.sum(w, 1)
        p = p.to(v.dtype)
        w = w.to(v.dtype)
        output = tl.dot(p, v, output * shrink[:, None], input_precision=PRECISION)
        both = tl.dot(p, dv, both * shrink[:, None], input_precision=PRECISION)
        both = tl.dot(w, v, both, input_precision=PRECISION)
        if REST:
            output_rest = tl.dot(p, v_rest, output_rest * shrink[:, None], input_precision=PRECISION)
            both_rest = tl.dot(p, dv_rest, both_rest * shrink[:, None], input_precision=PRECISION)
            both_rest = tl.dot(w, v_rest, both_rest, input_precision=PRECISION)

    mean = (weighted / total)[:, None]
    found = (both - mean * output) / total[:, None]
    tl.store(tangent + asking[:, None] * tangent_token * UNIT + main, found.to(tangent.dtype.element_ty), asks & inside)
    if REST:
        found = (both_rest - mean * output_rest) / total[:, None]
        tl.store(
            tangent + asking[:, None] * tangent_token * UNIT + rest,
            found.to(tangent.dtype.element_ty),
            asks & inside_rest,
        )


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How the work is cut: queries and keys of a tile, the warps that share it, and the key tiles in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


# Registers decide: 150 a thread at 64 columns for sm_90, so that three groups of 4 warps share a multiprocessor, where
# 64 keys would take 230 (on sm_80, 80 columns with 32 keys take all 255). Float32 takes twice the room, and without
# tensor cores most of it for the products' factors.
TILES = {
    "half": Tiles(queries=64, keys=32, warps=4, stages=3),
    "tf32": Tiles(queries=32, keys=16, warps=8, stages=2),
    "ieee": Tiles(queries=32, keys=32, warps=8, stages=2),
}


def parts_of_width(width: int) -> tuple[int, int]:
    """The main part and the rest of a head, as powers of two from 16; a rest of 0 where there is none."""
    main = max(16, 1 << (width.bit_length() - 1))
    return main, 0 if width <= main else max(16, triton.next_power_of_2(width - main))


def precision_of_products(dtype: torch.dtype) -> str:
    """A row of TILES; of float32 it is TF32 where torch's own products may be."""
    if dtype != torch.float32:
        return "half"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def launch(primals: Sequence[Tensor], rates: Sequence[Tensor], tangent: Tensor, tiles: Tiles | None = None) -> None:
    """Write the tangent of attention.

    Args:
        primals: query, key and value: (K, heads, T, d) of one dtype, which is bfloat16, float16 or float32, and of any
            strides but in the last dimension.
        rates: their tangents, of the same shape and dtype, with strides of their own.
        tangent: of the same shape; it is overwritten.
        tiles: None takes those of the dtype.
    """
    query = primals[0]
    inputs = [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (*primals, *rates)]
    strides = [stride for tensor in (*inputs, tangent) for stride in tensor.stride()[:-1]]
    unit = ALIGNED if all(stride % ALIGNED == 0 for stride in strides) else 1
    rows, heads, tokens, width = query.shape
    main, rest = parts_of_width(width)
    precision = precision_of_products(query.dtype)
    tiles = tiles or TILES[precision]
    attention_tangent_kernel[(triton.cdiv(tokens, tiles.queries) * heads * rows,)](
        *inputs,
        tangent,
        *(stride // unit for stride in strides),
        heads,
        width**-0.5,
        UNIT=unit,
        TOKENS=tokens,
        WIDTH=width,
        MAIN=main,
        REST=rest,
        QUERIES=tiles.queries,
        KEYS=tiles.keys,
        PRECISION="tf32" if precision == "tf32" else "ieee",
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
