"""What a job is told: frozen, checked data. Every field of these classes is a command-line flag."""

from mnist_ray.config.base import Device
from mnist_ray.config.others import EvaluateConfig, PredictConfig, VerifyConfig
from mnist_ray.config.score import ScoreConfig
from mnist_ray.config.train import TrainConfig

__all__ = ["Device", "EvaluateConfig", "PredictConfig", "ScoreConfig", "TrainConfig", "VerifyConfig"]
