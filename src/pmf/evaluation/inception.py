"""torch-fidelity's InceptionV3, the network behind FID as the field reports it; its weights are loaded as data only."""

from __future__ import annotations

import io
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from pmf.distributed.world import World
from pmf.errors import UserError
from pmf.evaluation.extractors import Extractor, freeze
from pmf.files import file_sha256, storage_advice, storage_reason
from pmf.tensors import download_once, hub_path

NAME = "inception-v3-compat"
"""torch-fidelity's own name for it."""
LAYERS = ("2048", "logits_unbiased")
FILE = URL_INCEPTION_V3.rpartition("/")[2]
SHA256_START = Path(FILE).stem.rpartition("-")[2]


class InceptionFeatures(nn.Module):
    """uint8 (B, 1 or 3, H, W) of any size to pooled features (B, 2048) and logits (B, 1008) without bias.

    It resizes inside, as TensorFlow 1 did: images must not be resized before.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        # Its constructor unpickles whatever file it is given, so it gets one that holds nothing but these tensors.
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        buffer.seek(0)
        self.network = FeatureExtractorInceptionV3(NAME, list(LAYERS), feature_extractor_weights_path=buffer)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        features, logits = self.network(images.expand(-1, 3, -1, -1))  # (B, 3, H, W): grey becomes three equal channels
        return features, logits


def load_inception(weights: Path | None, world: World) -> Extractor:
    """The network, with weights from a file that the main process hashes; called by all processes.

    Args:
        weights: the file; None looks in ``$TORCH_HOME``/hub/checkpoints and else downloads it there (95.7 MB).

    Raises:
        UserError: no weights, or a file that does not hold them.
    """
    path = weights or _find_or_download(world)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        module = InceptionFeatures(tensors)
    except OSError as error:
        advice = storage_advice(error, "correct the path")
        raise UserError(f"{path}: the Inception weights cannot be read ({storage_reason(error)}); {advice}") from None
    except Exception:  # what a damaged or foreign pickle asks for may fail in any way
        raise UserError(
            f"{path}: does not hold torch-fidelity's InceptionV3 weights as plain tensors; get {URL_INCEPTION_V3}"
        ) from None
    return freeze(NAME, world.ask_main(lambda: file_sha256(path)), module, world.device)


def _find_or_download(world: World) -> Path:
    path = hub_path(FILE)
    problem = ""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0 and not path.exists():
        try:
            download_once(URL_INCEPTION_V3, FILE, sha256_start=SHA256_START, progress=world.is_main)
        except (OSError, RuntimeError) as error:
            problem = f" ({' '.join(str(error).split())})"
    world.barrier()
    if not path.exists():
        raise UserError(
            f"{path}: the Inception weights are not there and cannot be downloaded{problem}; get "
            f"{URL_INCEPTION_V3} and give it with --extractor-weights, or choose another --extractor"
        )
    return path
