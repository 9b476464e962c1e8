from dataclasses import replace

import numpy as np
import pytest
import torch

from mnist_ray.data.digits import Splits
from mnist_ray.data.order import GROUP_SIZE
from mnist_ray.learn.augment import distort, draw_affine, sampling_grid
from mnist_ray.learn.model import DigitCNN, GroupBatchNorm2d, calibrate
from mnist_ray.learn.optim import Optimizer, learning_rate, orthogonal
from mnist_ray.recipes import RECIPES, Affine

LAYERS = RECIPES["standard"].layers


def test_a_group_is_normalised_independently_of_its_batch() -> None:
    torch.manual_seed(0)
    norm = GroupBatchNorm2d(3).train()
    batch = torch.randn(2 * GROUP_SIZE + 5, 3, 4, 4)
    whole = norm(batch)
    groups = torch.cat([norm(group) for group in batch.split(GROUP_SIZE)])
    assert torch.equal(whole, groups)
    plain = torch.nn.BatchNorm2d(3).train()
    assert torch.allclose(whole[:GROUP_SIZE], plain(batch[:GROUP_SIZE]))


def test_calibration_sets_the_statistics_for_evaluation(small: Splits) -> None:
    torch.manual_seed(0)
    model = DigitCNN(LAYERS)
    calibrate(model, small.train.images)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(model, small.train.images)
    assert not model.training
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
    assert any(float(value.abs().sum()) > 0 for name, value in first.items() if name.endswith("running_mean"))


def test_uint8_and_float_images_give_the_same_logits(small: Splits) -> None:
    model = DigitCNN(LAYERS).eval()
    images = torch.from_numpy(small.test.images.copy())
    logits = model(images)
    assert logits.shape == (100, 10)
    assert torch.equal(logits, model(images.float()))


def test_the_distortion_of_a_sample_does_not_depend_on_the_share(small: Splits) -> None:
    images = torch.from_numpy(small.train.images[:64].copy())
    grid = sampling_grid(draw_affine(np.random.default_rng(0), 64, Affine(10, 0.1, 0.1, 2.0)))
    whole = distort(images, grid)
    assert torch.equal(whole[20:40], distort(images[20:40], grid[20:40]))
    assert whole.shape == images.shape
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 255.001
    identity = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).repeat(64, 1, 1)
    assert torch.allclose(distort(images, sampling_grid(identity)), images.float(), atol=0.01)


def test_the_schedule_rises_and_falls_to_zero() -> None:
    recipe = replace(RECIPES["standard"], lr=0.01, weight_decay=0.05)
    rates = [learning_rate(recipe, step / 100) for step in range(101)]
    assert max(rates) == pytest.approx(0.01)
    assert rates[0] == rates[100] == 0
    assert rates.index(max(rates)) == 20


def test_the_optimizer_is_adamw_and_muon_of_pytorch(small: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW bit by bit; Muon up to rounding. PyTorch's Muon orthogonalises in bfloat16, so here it uses our function."""
    recipe = replace(RECIPES["standard"], weight_decay=0.05)
    ours, theirs = DigitCNN(LAYERS), DigitCNN(LAYERS)
    theirs.load_state_dict(ours.state_dict())
    kernels = [p for p in theirs.parameters() if p.ndim == 4]
    matrices = [torch.nn.Parameter(kernel.detach().reshape(len(kernel), -1).clone()) for kernel in kernels]
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", lambda gradient, *_: orthogonal(gradient))
    muon = torch.optim.Muon(matrices, lr=recipe.lr * recipe.muon_ratio, momentum=recipe.momentum, weight_decay=0.0)
    groups = [
        {"params": [theirs.head.weight], "weight_decay": 0.05},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)
    optimizer = Optimizer(ours, recipe)
    images, labels = torch.tensor(small.train.images[:64]), torch.tensor(small.train.labels[:64], dtype=torch.int64)
    for step in range(6):
        for model in (ours, theirs):
            torch.nn.functional.cross_entropy(model(images), labels).backward()
        for kernel, matrix in zip(kernels, matrices, strict=True):
            assert kernel.grad is not None
            matrix.grad = kernel.grad.reshape(len(kernel), -1)
        for own in (optimizer, muon, adamw):
            own.step()
        own_kernels = [p for p in ours.parameters() if p.ndim == 4]
        for own_kernel, kernel, matrix in zip(own_kernels, kernels, matrices, strict=True):
            torch.testing.assert_close(own_kernel.reshape(matrix.shape), matrix, rtol=1e-4, atol=1e-6)
            kernel.data.copy_(own_kernel.data)  # so that the next gradients are the same
            matrix.data.copy_(own_kernel.data.reshape(matrix.shape))
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        for model in (ours, theirs):
            model.zero_grad()
        if step == 2:
            saved, optimizer = optimizer.state_dict(), Optimizer(ours, recipe)
            optimizer.load_state_dict(saved)


@pytest.mark.parametrize("shape", [(16, 25), (64, 288), (32, 9)])
def test_an_orthogonal_matrix_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = u.T @ orthogonal(matrix) @ v.T
    assert float((values - torch.diag(values.diag())).abs().max()) < 1e-4
    assert 0.6 < float(values.diag().min()) <= float(values.diag().max()) < 1.3
