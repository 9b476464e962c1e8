"""The settings of each command as frozen, validated dataclasses. A field is a flag, and its docstring is the help text."""

from mnist_ray.config.others import EvaluateConfig, PredictConfig, VerifyConfig
from mnist_ray.config.score import ScoreConfig
from mnist_ray.config.train import TrainConfig
from mnist_ray.flags import Device

__all__ = ["Device", "EvaluateConfig", "PredictConfig", "ScoreConfig", "TrainConfig", "VerifyConfig"]
