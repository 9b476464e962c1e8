"""A training step recorded as a CUDA graph learns what the same steps learn one by one."""

from dataclasses import replace

import pytest
import torch

from mnist_ray.config import TrainConfig
from mnist_ray.data.digits import Splits
from mnist_ray.data.order import SampleOrder
from mnist_ray.learn import state
from mnist_ray.learn.graph import RecordedStep
from mnist_ray.learn.step import DeviceDigits, learner, train_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("augment", [True, False])
def test_recorded_steps_learn_the_same(small: Splits, augment: bool) -> None:
    """The last batch of the run is shorter than the others, and the learning rate changes from step to step."""
    losses: list[list[float]] = [[], []]
    for recorded in (False, True):
        config = TrainConfig(workers="0", epochs=4, augment=augment)
        recipe, device = config.settings(), torch.device("cuda")
        training = replace(state.make_state(config, len(small.train), device), precision="float32")
        order = SampleOrder(len(small.train), recipe.global_batch_size, config.seed)
        learn = learner(training.model.train(), training, DeviceDigits.put(small.train, device), recipe)
        learn = RecordedStep(learn, recipe.global_batch_size) if recorded else learn
        while training.samples_seen < training.total:
            training.optimizer.lr = recipe.lr * (1 - training.samples_seen / training.total)
            losses[recorded].append(float(train_step(learn, training, order, recipe)))
        assert training.tally.reduced().count == training.total
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=0.05, atol=0.0)  # a GPU adds numbers in a varying order
    assert losses[1][-1] < 0.8 * losses[1][0]
