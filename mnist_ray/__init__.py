"""Distributed training and batch scoring of handwritten digits on Ray."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
