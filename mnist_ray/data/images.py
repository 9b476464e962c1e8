"""Converts the bytes of an image file to a 28x28 digit with light ink on a dark background, or to a Rejection.

The preprocessing rule, in order:

1. Decode PNG, JPEG, GIF, BMP, TIFF, WebP, AVIF or HEIF. The content decides the format, not the name. Take the
   first frame of an animation.
2. Convert to grey levels by luminance. Scale 10, 12 or 16 bits to 8. Lay a transparent image over a shade that contrasts with
   its ink.
3. If most border pixels of a 28x28 image are brighter than the middle of its range, invert the image.
4. If it is now 28x28 with bright ink on a black background, as in MNIST, take it without change.
5. Find the ink of an image of another size (`paper.py`): remove light, shadows, lines, frames, specks and what lies beyond the
   page, and make hairlines as wide as strokes of MNIST. An image without ink, or with several digits, is refused.
6. Cut the image to its ink, stretch the ink to the full range, fit it into 20x20 with its proportions kept, and place it
   so that its centre of mass is at row and column 14 of the 28x28 field. MNIST was made in this way (LeCun et al., 1998).
"""

import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.data.containers import MAX_PIXELS, Reason, Rejection, check, explain, is_avif, is_heif, require_memory, scan_end
from mnist_ray.data.digits import CLASSES
from mnist_ray.data.heif import decode_heif

os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_PIXELS)  # OpenCV reads this at import
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
import cv2

from mnist_ray.data import paper

cv2.setNumThreads(0)  # images are small, and one process runs per core

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".heic", ".heif")
SIDE = 28
DIGIT_SIDE = 20
MIDDLE = 14
"""Row and column of the centre of mass. It is 14.0 in MNIST, measured over its training images, and not 13.5."""
NEAR_BLACK = 32
"""Border pixels of a 28x28 image up to this level count as black background."""
FULL_INK = 128
"""A 28x28 image needs a pixel of at least this level to be taken without change."""
FLAT_INK = 64
"""If the visible grey levels of a transparent image differ by no more than this, all visible pixels are ink."""
UNKNOWN = 128
"""The decoder of JPEG paints pixels in this level if their data are lacking."""
PIXELS_AT_ONCE = 1 << 22
"""Decoded pixels that `normalise` holds in memory before it converts them."""
_ORIENTATION = 0x112
"""Exif's tag for the side of the image at which its first row is: 1 to 8."""
BLANK = np.zeros((SIDE, SIDE), np.uint8)
_ENDS_EARLY = Rejection(Reason.CORRUPT, "the JPEG lacks the data of its last pixels")
_NO_AVIF = Rejection(Reason.UNSUPPORTED, "an AVIF image; to read it, pip install -U opencv-python-headless on every machine")
SINGLE_GLYPHS = all(len(name) == 1 and name.isdecimal() for name in CLASSES)
"""Whether an image of several digits shows no class."""
_LABELS = {name: label for label, name in enumerate(CLASSES)}

Grey = NDArray[np.uint8]
"""Grey levels, uint8[H, W]."""
Digits = NDArray[np.uint8]
"""Light-on-dark digits, uint8[N, 28, 28]."""


def label_of(name: str) -> int | None:
    """The label of the class with this name; None if there is none."""
    return _LABELS.get(name)


def digit_of(path: str) -> int | None:
    """The true label of an image file whose folder is named after a class; None for other paths."""
    folder, _, name = path.rpartition("/")
    return label_of(folder.rpartition("/")[2]) if name.lower().endswith(IMAGE_SUFFIXES) else None


def decode(data: bytes) -> Grey | Rejection:
    """Steps 1 and 2 of the rule: convert the bytes of an image file to grey levels, uint8[H, W], or to a Rejection.

    Raises MemoryError if the decoder lacks memory.
    """
    if (rejection := check(data)) is not None:
        return rejection
    # IMREAD_GRAYSCALE applies a JPEG's rotation tag. Other formats may have transparency, which only IMREAD_UNCHANGED keeps.
    is_png, is_jpeg = data.startswith(b"\x89PNG"), data.startswith(b"\xff\xd8")
    try:
        if not is_png and is_heif(data):
            decoded = decode_heif(data)
            return decoded if isinstance(decoded, Rejection) else grey_levels(decoded)
        flags = cv2.IMREAD_GRAYSCALE if is_jpeg else cv2.IMREAD_UNCHANGED
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if pixels is not None and pixels.size:
            if not is_jpeg:
                turned = b"eXIf" in data if is_png else data.startswith(b"RIFF") and b"EXIF" in data
                return grey_levels(_upright(pixels, data) if turned else pixels, data)
            return _ENDS_EARLY if UNKNOWN in (pixels.item(0), pixels.item(-1)) and _ends_early(data, pixels) else pixels
    except cv2.error as error:
        _report_memory(error)
        if "CV_IO_MAX_IMAGE" in str(error):
            return Rejection(Reason.TOO_LARGE, f"declares more than {MAX_PIXELS} pixels")
        return Rejection(Reason.CORRUPT, f"the decoder stopped: {error.err}")
    if is_avif(data) and _lacks_avif():
        return _NO_AVIF
    require_memory(data)
    return explain(data)


def _upright(pixels: NDArray[Any], data: bytes) -> NDArray[Any]:
    """The pixels of a PNG or WebP image, turned as its Exif data say. OpenCV does that only for JPEG and TIFF."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged data raise errors of many kinds
        return pixels
    if turn in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1])


def _ends_early(data: bytes, pixels: Grey) -> bool:
    """Whether a JPEG lacks the data of its last pixels, which its decoder paints `UNKNOWN`. A rotation puts them at any edge.

    If it lacks none, zeros before its end marker change no pixel. Without the marker the decoder does not complain of them, but
    cannot decode an image in several passes.
    """
    if not any((corner == UNKNOWN).all() for corner in (pixels[:8, :8], pixels[-8:, -8:])):
        return False
    longer = data[: scan_end(data)] + bytes(4096)
    for marker in (b"", b"\xff\xd9"):
        again = cv2.imdecode(np.frombuffer(longer + marker, np.uint8), cv2.IMREAD_GRAYSCALE)
        if again is not None:
            return not np.array_equal(again, pixels)
    return False


def _sample_bits(file: bytes) -> int:
    """How many bits of 16 the pixels of a file use. AVIF has a flag for it. OpenCV stretches other formats to all 16."""
    if not is_avif(file):
        return 16
    return 12 if file[file.find(b"av1C") + 6] & 0x20 else 10


def _report_memory(error: cv2.error) -> None:
    """Raise MemoryError if OpenCV lacked memory."""
    if error.code == cv2.Error.StsNoMem:
        raise MemoryError(error.err) from error


def _lacks_avif() -> bool:
    return re.search(r"\bAVIF:\s+NO\b", cv2.getBuildInformation()) is not None


def grey_levels(pixels: NDArray[Any], file: bytes = b"") -> Grey | Rejection:
    """Step 2 of the rule: convert pixels, [H, W] or [H, W, 1|3|4] in OpenCV's channel order (BGR), to uint8[H, W].

    The content of the file that they come from says how many levels 16-bit pixels have.
    """
    if pixels.ndim == 2 and pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        pixels = (pixels // (2 ** _sample_bits(file) // 255)).astype(np.uint8)
    elif pixels.dtype.kind == "f":
        top = float(np.nanmax(pixels, initial=0.0))
        if not np.isfinite(pixels).all() or float(pixels.min()) < 0 or top > 255:
            return Rejection(Reason.BAD_PIXELS, "floating-point pixels outside 0 to 255")
        pixels = np.round(pixels * (255 if top <= 1 else 1)).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        return Rejection(Reason.BAD_PIXELS, f"pixels of type {pixels.dtype}; expected 8 or 16 bits or floating point")
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.asarray(pixels.reshape(pixels.shape[:2]), np.uint8)
    if pixels.shape[2] == 3:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)
    return _flatten_alpha(np.asarray(cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2GRAY), np.float32), pixels[..., 3])


def _flatten_alpha(grey: NDArray[np.float32], alpha: NDArray[np.generic]) -> Grey:
    """Lay a transparent image over a uniform background.

    If the visible pixels show paper and ink, the background has the shade of the paper. If all are ink, it contrasts with them.
    """
    weight = alpha.astype(np.float32) / 255
    visible = grey[weight > 0.5]
    if visible.size == 0:
        return np.zeros(grey.shape, np.uint8)
    paper = float(np.median(visible))
    backdrop = paper if np.ptp(visible) > FLAT_INK else 0.0 if paper > 127 else 255.0
    return np.round(grey * weight + backdrop * (1 - weight)).astype(np.uint8)


def normalise(decoded: Iterable[Grey | Rejection] | Grey, *, refuse: bool = True) -> tuple[Digits, dict[int, Rejection]]:
    """Steps 3 to 6 of the rule for N decoded images of any sizes (an array is uint8[N, H, W]).

    Returns digits, uint8[N, 28, 28], and the Rejections by position; a rejected image gives a blank digit. Without `refuse`,
    the largest of several digits is taken. Images are converted in lots of about `PIXELS_AT_ONCE`, so that large ones do not
    fill the memory. Raises MemoryError.
    """
    if isinstance(decoded, np.ndarray):
        return _convert(decoded, refuse)
    rejected: dict[int, Rejection] = {}
    digits: list[Digits] = []
    lot: list[Grey | Rejection] = []
    pixels = done = 0

    def convert() -> None:
        nonlocal pixels, done
        converted, refused = _convert(lot, refuse)
        digits.append(converted)
        rejected.update({done + position: rejection for position, rejection in refused.items()})
        done += len(lot)
        lot.clear()
        pixels = 0

    for image in decoded:
        lot.append(image)
        pixels += BLANK.size if isinstance(image, Rejection) else image.size
        if pixels > PIXELS_AT_ONCE:
            convert()
    convert()
    return np.concatenate(digits), rejected


def _border(images: Grey) -> Grey:
    """The outermost pixels of images, uint8[N, H, W] to uint8[N, border]."""
    return np.concatenate([images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1)


def _light_on_dark(images: Grey) -> Grey:
    """Step 3 for images, uint8[N, H, W]."""
    middle = (images.min(axis=(1, 2)).astype(np.uint16) + images.max(axis=(1, 2))) // 2
    dark_ink = (_border(images) > middle[:, None]).mean(axis=1) > 0.5
    return np.where(dark_ink[:, None, None], 255 - images, images) if dark_ink.any() else images


def _like_mnist(images: Grey) -> NDArray[np.bool_]:
    """Which of the images, uint8[N, 28, 28], satisfy the condition of step 4.

    Step 3 inverts none of these: the middle of their range is above 63, and at least half of their border is darker than that.
    """
    flat = images.reshape(len(images), SIDE * SIDE)
    black = (_border(images) <= NEAR_BLACK).mean(axis=1) >= 0.5
    return np.asarray(black & (flat.max(axis=1) >= FULL_INK))


def to_digits(greys: Iterable[Grey] | Grey) -> Digits:
    """Steps 3 to 6 of the rule: convert grey images, uint8[H, W] of any sizes, to digits, uint8[N, 28, 28].

    No image is refused: one without ink gives a blank digit, and of several digits the largest is taken.
    """
    return normalise(greys, refuse=False)[0]


def _convert(greys: Sequence[Grey | Rejection] | Grey, refuse: bool) -> tuple[Digits, dict[int, Rejection]]:
    """Steps 3 to 6 for images of any sizes. Returns the digits and, by position, the Rejections."""
    if isinstance(greys, np.ndarray) and greys.shape[1:] == (SIDE, SIDE):
        return _convert_28x28(greys)
    if all(not isinstance(grey, Rejection) and grey.shape == (SIDE, SIDE) for grey in greys):
        return _convert_28x28(np.array(greys, np.uint8).reshape(-1, SIDE, SIDE))
    rejected = {i: grey for i, grey in enumerate(greys) if isinstance(grey, Rejection)}
    images = {i: grey for i, grey in enumerate(greys) if not isinstance(grey, Rejection)}
    plain = [i for i, image in images.items() if image.shape == (SIDE, SIDE)]
    digits = np.zeros((len(greys), SIDE, SIDE), np.uint8)
    digits[plain], blank = _convert_28x28(np.array([images[i] for i in plain], np.uint8).reshape(-1, SIDE, SIDE))
    rejected |= {plain[i]: rejection for i, rejection in blank.items()}
    for i in sorted(images.keys() - set(plain)):
        try:
            ink = paper.read(images[i], one_digit=refuse and SINGLE_GLYPHS)
        except cv2.error as error:
            _report_memory(error)
            raise
        if isinstance(ink, Rejection):
            rejected[i] = ink
        else:
            digits[i] = _centre(ink)
    return digits, rejected


def _convert_28x28(images: Digits) -> tuple[Digits, dict[int, Rejection]]:
    """Steps 3 to 6 for images that are 28x28 already: most look like MNIST and stay unchanged."""
    odd = np.flatnonzero(~_like_mnist(images))
    if not odd.size:
        return images, {}
    images, blank = images.copy(), Rejection(Reason.BLANK_IMAGE, "all pixels have the same level")
    images[odd] = _light_on_dark(images[odd])
    unlike = odd[~_like_mnist(images[odd])]
    for i in unlike:
        images[i] = _fit(images[i][None])
    return images, {int(i): blank for i in unlike if not images[i].any()}


def _fit(light: Grey) -> Grey:
    """Step 6 for one image with light ink, uint8[1, H, W] to uint8[28, 28]."""
    ink = np.clip(light[0].astype(np.float32) - np.median(_border(light)), 0, None)
    return _centre(ink * (255 / peak)) if (peak := float(ink.max())) > 0 else np.zeros((SIDE, SIDE), np.uint8)


def _centre(ink: NDArray[np.float32]) -> Grey:
    """Fit ink, float32[H, W] from 0 to 255, into 20x20 and place its centre of mass at row and column `MIDDLE` of 28x28."""
    rows, columns = np.nonzero(ink > 64)  # a quarter of full ink: paper grain and compression noise do not widen the box
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = DIGIT_SIDE / max(ink.shape)
    size = (max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale)))
    small = np.asarray(cv2.resize(ink, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR))
    mass = max(float(small.sum()), 1e-6)
    centre_row = float((small.sum(axis=1) * np.arange(small.shape[0])).sum()) / mass
    centre_column = float((small.sum(axis=0) * np.arange(small.shape[1])).sum()) / mass
    top = min(max(round(MIDDLE - centre_row), 0), SIDE - small.shape[0])
    left = min(max(round(MIDDLE - centre_column), 0), SIDE - small.shape[1])
    digit = np.zeros((SIDE, SIDE), np.uint8)
    digit[top : top + small.shape[0], left : left + small.shape[1]] = np.clip(np.round(small), 0, 255)
    return digit


def encode_png(image: Grey) -> bytes:
    """A grey image, uint8[H, W], as the bytes of a PNG file."""
    return bytes(cv2.imencode(".png", image)[1])
