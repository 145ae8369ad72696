"""The one component of the diffusers pipeline: the folder that diffusers has found or downloaded.

diffusers tells a pipeline only the name that it was asked for; a component is told where its files lie, whatever
``revision``, ``cache_dir`` or ``token`` brought them there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import SchedulerMixin


class WeightsLocation(SchedulerMixin):
    """Where the weights lie. A scheduler by its class alone: that is the kind of component that has no weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def from_pretrained(cls, path: str, **_: Any) -> WeightsLocation:
        """Called by diffusers with the folder of this file, or with the one above where there is no such folder."""
        here = Path(path).absolute()
        return cls(here if (here / "model.safetensors").is_file() else here.parent)
