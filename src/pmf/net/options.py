"""Which network: the model section."""

from __future__ import annotations

from pmf.options import Section


class ModelConfig(Section):
    """Which network."""

    name: str = "pmf_b_16"
    """A row of the table in pmf/net/sizes.py."""
