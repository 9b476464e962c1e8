"""The model bundle: a folder that describes itself, has checksums, and contains no executable code.

Its files are `weights.safetensors` (the state dict, and the basis of the features), `card.json` (architecture, input contract,
classes, data, accuracy, confidence, versions), `selftest.safetensors` (a few digits and their expected logits) and
`digest.json` (the SHA-256 of each file), which is written last.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mnist_ray.artifact import seal
from mnist_ray.artifact.confidence import basis
from mnist_ray.data import storage
from mnist_ray.data.digits import CLASSES
from mnist_ray.errors import ModelError
from mnist_ray.learn.model import ARCHITECTURE, DigitCNN, seeded
from mnist_ray.recipes import Conv

FORMAT = 2
INPUT_CONTRACT = {
    "shape": ["N", 28, 28],
    "dtype": "uint8",
    "range": "0 (background) to 255 (ink), light on dark, as in MNIST",
    "normalisation": "inside the network",
    "other images": "first through mnist_ray.data.images: decode, then to_digits",
}
_BASIS = "confidence.basis"
SELF_TEST_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Largest allowed difference of a logit. Other processors differ by about 1e-5, bfloat16 by 0.1, wrong weights by more."""


@dataclass(frozen=True)
class ModelBundle:
    """A trained network with its card (a description) and its self-test (digits and expected logits)."""

    model: DigitCNN
    card: dict[str, Any]
    selftest: dict[str, Tensor]
    basis: Tensor
    """Directions float32[F, B] that hold most of the features of digits (see `artifact.confidence`)."""
    digest: str = ""
    """SHA-256 of `digest.json`'s list of files; empty until saved."""

    def check_logits(self, logits: Tensor, precision: str = "float32") -> None:
        """Raise ModelError if logits float32[N, C] differ from those expected for the self-test's digits."""
        difference, most = float((logits - self.selftest["logits"]).abs().max()), SELF_TEST_TOLERANCE[precision]
        if not difference <= most:
            raise ModelError(f"model {self.digest[:12]}: its self-test differs by {difference:.2g}; expected at most {most}")

    def save(self, uri: str) -> str:
        """Write the bundle to a folder and return its digest."""
        tensors = {**self.model.state_dict(), _BASIS: self.basis}
        weights = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        parts = (save_tensors(weights), storage.to_json(self.card), save_tensors(self.selftest))
        return seal.write(uri, dict(zip(seal.FILES, parts, strict=True)))


def make_bundle(model: DigitCNN, card: dict[str, Any], examples: Tensor, digits: Tensor) -> ModelBundle:
    """A bundle of a trained network in eval mode, with `examples` for its self-test, and `digits` that it has learned.

    Both are uint8[N, 28, 28].
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = model(examples.to(device)).cpu()
        directions = basis(torch.cat([model.embed(batch.to(device)) for batch in digits.split(256)]).float().cpu())
    fixed = {
        "format": FORMAT,
        "architecture": ARCHITECTURE,
        "layers": [asdict(layer) for layer in model.layers],
        "input": INPUT_CONTRACT,
        "classes": list(CLASSES),
    }
    return ModelBundle(model, {**fixed, **card}, {"images": examples, "logits": logits}, directions)


def load(uri: str) -> ModelBundle:
    """Load the bundle of a run directory or bundle folder, and check its digest and its classes. Raises ModelError."""
    place = seal.find(uri)
    files, digest = seal.read(place)
    card = json.loads(files["card.json"])
    if card.get("format") != FORMAT or card.get("architecture") != ARCHITECTURE:
        raise ModelError(
            f"{place}/card.json: format {card.get('format')} and architecture {card.get('architecture')!r}; "
            f"this version reads format {FORMAT} and {ARCHITECTURE!r}"
        )
    if card.get("classes") != list(CLASSES):
        raise ModelError(
            f"{place}/card.json: the classes of this model are {card.get('classes')}; "
            f"this program has {list(CLASSES)} (CLASSES in mnist_ray/data/digits.py)"
        )
    try:
        with seeded(0):
            model = DigitCNN([Conv(**layer) for layer in card["layers"]])
        weights = load_tensors(files["weights.safetensors"])
        directions = weights.pop(_BASIS)
        model.load_state_dict(weights)
        selftest = load_tensors(files["selftest.safetensors"])
    except (SafetensorError, RuntimeError, TypeError, KeyError) as error:
        raise ModelError(f"{place}: its tensors do not match the architecture {ARCHITECTURE!r}: {error}") from None
    return ModelBundle(model.eval(), card, selftest, directions, digest)
