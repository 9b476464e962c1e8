"""What a digit is written on, what lights it, and what takes the picture. Images are float32[H, W, 3], BGR, from 0 to 1."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Colour = tuple[float, float, float]
Random = np.random.Generator

WHITE: Colour = (0.93, 0.94, 0.95)


def smooth_noise(shape: tuple[int, int], size: float, random: Random) -> Field:
    """Noise of variance 1 whose blobs have about this size in pixels."""
    step = max(1.0, size / 2)
    small = random.normal(0, 1, (math.ceil(shape[0] / step) + 2, math.ceil(shape[1] / step) + 2)).astype(np.float32)
    large = cv2.resize(cv2.GaussianBlur(small, (0, 0), 0.8), (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(large / max(float(large.std()), 1e-6), np.float32)


def sheet(shape: tuple[int, int], colour: Colour, unit: float, texture: str, strength: float, random: Random) -> Field:
    """A sheet of paper. `unit` is the height of the digit in pixels."""
    shade = np.ones(shape, np.float32)
    if texture == "coarse":
        shade += strength * (0.6 * smooth_noise(shape, unit * 0.05, random) + 0.4 * smooth_noise(shape, 2, random))
    elif texture == "laid":
        waves = np.sin(np.arange(shape[0]) * 2 * np.pi / max(3.0, unit * 0.06)).astype(np.float32)
        shade += strength * (0.7 * waves[:, None] + 0.6 * smooth_noise(shape, 3, random))
    elif texture == "crumpled":
        shade += strength * smooth_noise(shape, unit * 0.6, random) + strength * 0.5 * np.abs(
            smooth_noise(shape, unit * 0.3, random)
        )
    elif texture in ("flecks", "fibres"):
        shade += 0.3 * strength * smooth_noise(shape, 3, random)
        for _ in range(int(shape[0] * shape[1] / unit**2 * 14)):
            row, column = random.uniform(0, shape[0]), random.uniform(0, shape[1])
            length = unit * (random.uniform(0.005, 0.02) if texture == "flecks" else random.uniform(0.03, 0.12))
            angle = random.uniform(0, np.pi)
            end = (int(column + length * np.cos(angle)), int(row + length * np.sin(angle)))
            level = 1 - strength * random.uniform(0.5, 3.5)
            cv2.line(shade, (int(column), int(row)), end, float(level), max(1, round(unit * 0.006)), cv2.LINE_AA)
    return np.asarray(shade[..., None] * np.array(colour, np.float32), np.float32)


def _stripe(length: int, spacing: float, width: float, offset: float) -> Field:
    """The coverage of parallel lines, along the axis across them."""
    distance = np.abs((np.arange(length) - offset + spacing / 2) % spacing - spacing / 2)
    return np.asarray(np.clip(width / 2 + 0.5 - distance, 0, min(1.0, width)), np.float32)


@dataclass(frozen=True)
class Ruling:
    """Printed lines. Lengths are in heights of the digit."""

    rows: float = 0.0
    """Space between horizontal lines; 0 for none."""
    columns: float = 0.0
    width: float = 0.025
    opacity: float = 0.6
    colour: Colour = (0.75, 0.6, 0.5)
    dots: bool = False
    frame: str = ""
    """box, comb or underline."""
    margin: bool = False


def rule(paper: Field, ruling: Ruling, unit: float, middle: tuple[float, float], random: Random) -> Field:
    """Print lines, dots or a frame on the paper. `middle` is where the digit will be."""
    height, width = paper.shape[:2]
    thick = max(0.8, ruling.width * unit)
    rows, columns = np.zeros(height, np.float32), np.zeros(width, np.float32)
    if ruling.rows:
        rows = _stripe(height, ruling.rows * unit, thick, random.uniform(0, ruling.rows * unit))
    if ruling.columns:
        columns = _stripe(width, ruling.columns * unit, thick, random.uniform(0, ruling.columns * unit))
    cover = np.minimum(rows[:, None], columns[None]) if ruling.dots else np.maximum(rows[:, None], columns[None])
    if ruling.frame:
        _frame(cover, ruling.frame, unit, middle, thick, random)
    cover = cover[..., None] * ruling.opacity
    ruled = paper * (1 - cover) + np.array(ruling.colour, np.float32) * cover
    if ruling.margin:
        column = int(max(1.0, middle[1] - unit * random.uniform(0.6, 1.1)))
        cv2.line(ruled, (column, 0), (column, height), (0.45, 0.4, 0.85), max(1, round(thick)))
    return np.asarray(ruled, np.float32)


def _frame(cover: Field, frame: str, unit: float, middle: tuple[float, float], thick: float, random: Random) -> None:
    half_y, half_x = unit * random.uniform(0.62, 0.9), unit * random.uniform(0.55, 0.85)
    row, column = middle[0] + unit * random.uniform(-0.08, 0.08), middle[1] + unit * random.uniform(-0.06, 0.06)
    top, bottom, pen = int(row - half_y), int(row + half_y), max(1, round(thick))
    if frame == "underline":
        cv2.line(cover, (int(column - 2.2 * half_x), bottom), (int(column + 2.2 * half_x), bottom), 1.0, pen)
        return
    for cell in range(-3, 4) if frame == "comb" else (0,):
        left, right = int(column + (2 * cell - 1) * half_x), int(column + (2 * cell + 1) * half_x)
        cv2.rectangle(cover, (left, top), (right, bottom), 1.0, pen)


def light(shape: tuple[int, int], kind: str, depth: float, share: float, random: Random) -> Field:
    """The light that falls on the page, mostly from 0 to 1. `depth` is how dark it gets, `share` how much of the page is."""
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y / height - 0.5, x / width - 0.5
    angle = random.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == "gradient":
        return np.asarray(1 - depth * (along - along.min()) / np.ptp(along), np.float32)
    if kind in ("soft", "hard"):
        bend = random.uniform(-0.3, 0.3) * (y * np.cos(angle) - x * np.sin(angle)) ** 2
        edge = along + bend
        edge -= np.quantile(edge, share)
        softness = random.uniform(0.06, 0.2) if kind == "soft" else random.uniform(0.0015, 0.006)
        return np.asarray(1 - depth / (1 + np.exp(np.clip(edge / softness * 3, -50, 50))), np.float32)
    if kind == "stripe":
        return np.asarray(1 - depth * (np.abs(along - random.uniform(-0.1, 0.1)) < share / 2), np.float32)
    if kind == "hand":
        field = smooth_noise(shape, max(shape) * 0.35, random) + 3 * (along + 0.1)
        field -= np.quantile(field, share)
        return np.asarray(1 - depth / (1 + np.exp(np.clip(field / 0.05, -50, 50))), np.float32)
    if kind == "fold":
        away = np.abs(along - random.uniform(-0.15, 0.15))
        return np.asarray(1 - depth * np.exp(-away / 0.02) - 0.2 * depth * (along > 0), np.float32)
    if kind == "band":  # a highlighter, level with the digit
        return np.asarray(
            1 - depth * (np.abs(y + 0.1 * x - random.uniform(-0.1, 0.1)) < random.uniform(0.05, 0.12)), np.float32
        )
    centre_y, centre_x = random.uniform(-0.25, 0.25, 2)
    radius = np.sqrt((y - centre_y) ** 2 + (x - centre_x) ** 2)
    if kind == "ring":  # of a cup
        ring = np.exp(-(((radius - random.uniform(0.15, 0.3)) / random.uniform(0.01, 0.02)) ** 2))
        return np.asarray(1 - depth * np.maximum(ring, 0.3 * (radius < 0.2)), np.float32)
    if kind == "spot":
        return np.asarray(1 - depth + depth * np.exp(-((radius / 0.35) ** 2)), np.float32)
    if kind == "vignette":
        return np.asarray(1 - depth * (np.sqrt(x**2 + y**2) / 0.7) ** 2, np.float32)
    return np.ones(shape, np.float32)


def glare(picture: Field, strength: float, middle: tuple[float, float], unit: float, random: Random) -> Field:
    """A reflection beside the digit."""
    y, x = np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]].astype(np.float32)
    angle, away = random.uniform(0, 2 * np.pi), unit * random.uniform(0.4, 0.9)
    row, column = middle[0] + away * np.sin(angle), middle[1] + away * np.cos(angle)
    bright = np.exp(-(((y - row) ** 2 + (x - column) ** 2) / (unit * random.uniform(0.3, 0.6)) ** 2))
    return np.asarray(picture + strength * bright[..., None] * (1 - picture), np.float32)


def table_edge(picture: Field, sides: int, share: tuple[float, float], colour: Colour, random: Random) -> Field:
    """The page ends inside the picture on some sides, and the table is visible beyond. Its edges are not quite straight."""
    height, width = picture.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    for side in random.permutation(4)[:sides]:
        move = random.uniform(*share) * np.array([height, -width, -height, width], np.float32)[side]
        axis = 1 if side in (0, 2) else 0
        corners[[side, (side + 1) % 4], axis] += move * random.uniform(0.85, 1.15, 2)
    outside = np.ones((height, width), np.float32)
    cv2.fillConvexPoly(outside, np.round(corners * 16).astype(np.int32), 0.0, cv2.LINE_AA, 4)
    table = np.array(colour, np.float32) * (1 + 0.06 * smooth_noise((height, width), max(4, width * 0.03), random)[..., None])
    return np.asarray(picture * (1 - outside[..., None]) + table * outside[..., None], np.float32)


def specks(picture: Field, count: float, size: float, level: float, random: Random) -> Field:
    """Dust: `count` specks; `size` is their greatest radius in pixels."""
    for _ in range(int(count)):
        at = (int(random.uniform(0, picture.shape[1])), int(random.uniform(0, picture.shape[0])))
        cv2.circle(picture, at, max(0, round(random.uniform(0.2, 1) * size)), (level, level, level), -1, cv2.LINE_AA)
    return picture


def turn(picture: Field, degrees: float, perspective: float, random: Random) -> Field:
    """Rotate and tilt the camera. The picture is enlarged a little so that no corner is empty."""
    height, width = picture.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    middle = corners.mean(axis=0)
    angle = math.radians(degrees)
    spin = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], np.float32)
    zoom = 1 + abs(math.sin(angle)) + perspective
    moved = (corners - middle) @ spin.T * zoom + middle
    moved += random.uniform(-perspective, perspective, (4, 2)).astype(np.float32) * min(height, width) * 0.5
    matrix = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    return np.asarray(cv2.warpPerspective(picture, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE), np.float32)


def blur(picture: Field, sigma: float, motion: float, random: Random) -> Field:
    """Out of focus by `sigma` pixels, and shaken by `motion` pixels."""
    if sigma > 0:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32)
    if motion > 1:
        length = round(motion)
        kernel = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
        angle = random.uniform(0, np.pi)
        reach = length / 2 * np.array([np.cos(angle), np.sin(angle)])
        start, end = (tuple(np.round(length + sign * reach).astype(int).tolist()) for sign in (-1, 1))
        cv2.line(kernel, start, end, 1.0)
        picture = np.asarray(cv2.filter2D(picture, -1, kernel / kernel.sum()), np.float32)
    return picture
