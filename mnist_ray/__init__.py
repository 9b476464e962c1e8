"""Distributed training and batch scoring of handwritten digits on Ray."""

__version__ = "0.1.0.dev0"
