"""The fast form of a network predicts like the network itself."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_ray.artifact.bundle import ModelBundle, load
from mnist_ray.artifact.predictor import Predictor, folded
from mnist_ray.data.digits import Splits
from mnist_ray.learn.model import DigitCNN
from mnist_ray.recipes import RECIPES, RecipeName

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundle(run_dir: Path) -> ModelBundle:
    return load(str(run_dir))


def test_the_fast_form_predicts_like_the_network(bundle: ModelBundle, splits: Splits) -> None:
    predictor = Predictor.ready(bundle, CPU)
    fast = predictor(splits.test.images)
    with torch.inference_mode():
        logits = bundle.model(torch.tensor(splits.test.images))
    assert (predictor.outputs(torch.tensor(splits.test.images))[0] - logits).abs().max() < 1e-4
    assert np.array_equal(fast.labels, logits.argmax(1).numpy())
    plain = torch.softmax(logits / bundle.card["confidence"]["temperature"], 1).numpy()
    assert np.abs(fast.probabilities - plain).max() < 1e-4
    assert np.array_equal(fast.confidence, fast.probabilities.max(1))


def test_in_bfloat16_few_labels_differ(bundle: ModelBundle, splits: Splits) -> None:
    exact, rounded = (Predictor.ready(bundle, CPU, precision)(splits.test.images) for precision in ("float32", "bfloat16"))
    assert (exact.labels != rounded.labels).mean() < 0.002
    assert 0 < np.abs(exact.probabilities - rounded.probabilities).max() < 0.5
    assert rounded.probabilities.dtype == np.float32


@pytest.fixture
def splits(mnist5k: Splits, request: pytest.FixtureRequest) -> Splits:
    """The full MNIST if this machine has it, else the small one."""
    try:
        return request.getfixturevalue("mnist")  # type: ignore[no-any-return]
    except pytest.skip.Exception:
        return mnist5k


def test_predictions_do_not_depend_on_the_batch_or_the_thread(bundle: ModelBundle, mnist5k: Splits) -> None:
    predict, images = Predictor.ready(bundle, CPU), mnist5k.test.images[:200]
    together = predict(images).probabilities
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda i: predict(images[i : i + 1]).probabilities[0], range(200)))
    assert np.abs(together - np.stack(alone)).max() < 1e-4
    assert len(predict(images[:0]).labels) == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_folding_keeps_the_function_for_weights_of_either_sign(recipe: RecipeName) -> None:
    torch.manual_seed(0)
    model = DigitCNN(RECIPES[recipe].layers).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    images = torch.randint(0, 256, (50, 28, 28), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.allclose(folded(model)(images), model(images), atol=1e-4)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.abs_()
        fast = folded(model)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
        assert torch.allclose(fast(images), model(images), atol=1e-4)
