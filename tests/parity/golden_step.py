"""What the comparisons of a whole golden training step share: raw draws, every field, and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pmf.flow.draws import StandardDraws
from tests.parity.golden import Golden, relative_error

# float32 through a network and back, in another summation order: measured 1e-6 on fields, 4e-7 (relative L2 over
# all) on gradients, against these limits of INDEX.md.
FIELD = 1e-5
GRADIENT = 1e-4


def standard_draws(golden: Golden, prefix: str = "draw/", **replacements: Tensor) -> StandardDraws:
    """The stored raw numbers; what a case does not draw is filled with ones, which never passes a threshold."""
    rows = golden.scalar(f"{prefix}n_t").shape[0]
    names = {
        "normal_t": "n_t",
        "normal_r": "n_r",
        "uniform_mask": "u_mask",
        "uniform_t": "u_t",
        "uniform_r": "u_r",
        "uniform_t_min": "u_tmin",
        "uniform_t_max": "u_tmax",
        "uniform_omega": "u_omega",
        "uniform_drop": "u_drop",
    }
    stored = {
        ours: golden.scalar(prefix + theirs) if prefix + theirs in golden else torch.ones(rows)
        for ours, theirs in names.items()
    }
    noise = golden.image(f"{prefix}n_e") if f"{prefix}n_e" in golden else torch.zeros(rows, 1, 1, 1)
    unused = torch.ones(rows, 4)  # the stand-ins of the distances look at the whole image
    return StandardDraws(**{**stored, "normal_e": noise, "uniform_crop": unused, **replacements})


def compare_gradients(network: nn.Module, name_of: Callable[[str], str], gradients: Golden) -> None:
    """Every stored gradient against the ``grad`` of our parameter, by its largest difference and by its norm."""
    ours = {name_of(key): parameter.grad for key, parameter in network.named_parameters()}
    stored = gradients.group("grad/")
    assert stored and stored.keys() <= ours.keys()
    for key, theirs in stored.items():
        difference = ours[key].view(theirs.shape) - theirs
        assert float(difference.norm() / theirs.norm().clamp_min(1e-30)) < GRADIENT, key
        assert float(difference.abs().max() / theirs.abs().max().clamp_min(1e-30)) < GRADIENT, key
    for key, norm in gradients.group("grad_l2norm/").items():
        torch.testing.assert_close(ours[key].norm(), norm.reshape(()), rtol=GRADIENT, atol=1e-12, msg=key)


def compare_fields(step: Any, draws: Any, golden: Golden) -> None:
    """Every field of a step of pMF or iMF is the official one; v_c and du/dt of the rows that are not flow matching."""
    first, rows = draws.num_flow_matching, draws.unconditional_rows
    fields = {
        "z_t": (step.z, golden.image("mid/z_t")),
        "v_t": (step.v_t, golden.image("mid/v_t")),
        "v_c": (step.v_c[first:], golden.image("mid/v_c")[first:]),
        "v_u": (step.v_u, golden.image("mid/v_u")[rows]),
        "v_g": (step.v_g, golden.image("mid/v_g")),
        "u": (step.u, golden.image("mid/u")),
        "v": (step.v, golden.image("mid/v")),
        "du_dt": (step.du_dt, golden.image("mid/du_dt")[first:]),
        "V": (step.V, golden.image("mid/V")),
    }
    for field, (ours, theirs) in fields.items():
        assert relative_error(ours, theirs) < FIELD, field
