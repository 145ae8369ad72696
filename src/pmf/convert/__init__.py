"""Official checkpoints, from and to ours."""

from pmf.convert.names import from_official, official_name
from pmf.convert.official import load_official

__all__ = ["from_official", "load_official", "official_name"]
