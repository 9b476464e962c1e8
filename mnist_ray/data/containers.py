"""Checks image files before any pixel is decoded: format, completeness and declared size."""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

MOST_FIELDS = 4096
"""Fields of a JPEG's header that are looked at."""
MAX_PIXELS = 1 << 24
"""Images that declare more pixels are not decoded: 16 megapixels."""
MAX_BYTES = 64 << 20
"""Larger files are rejected: 64 MiB."""

HEAD_BYTES = 256
"""Bytes at the start of a file that are enough to recognise its format."""


class Reason(StrEnum):
    """Why an input has no prediction. This list is complete."""

    MISSING = "missing"
    """There is no such file, or the cell is null."""
    UNREADABLE = "unreadable"
    """The storage denies access, or the path is no file."""
    EMPTY = "empty"
    """The file has no bytes."""
    NOT_AN_IMAGE = "not_an_image"
    """The bytes do not begin like a PNG, JPEG, GIF, BMP, TIFF, WebP, HEIF or AVIF file."""
    UNSUPPORTED = "unsupported"
    """The machine lacks the package that decodes this format. The detail says what to install."""
    TRUNCATED = "truncated"
    """The file ends too early."""
    CORRUPT = "corrupt"
    """The image or the Parquet file is damaged."""
    TOO_LARGE = "too_large"
    """The image has more than 16 megapixels, or the file more than 64 MiB."""
    WRONG_SHAPE = "wrong_shape"
    """The pixel values do not form an image, such as a list of 783."""
    BAD_PIXELS = "bad_pixels"
    """The pixels are no numbers from 0 to 255."""
    BLANK_IMAGE = "blank_image"
    """The image has no ink that could be a digit."""
    SEVERAL_DIGITS = "several_digits"
    """The image shows two or more digits apart from each other. Cut it into images of one digit."""
    CHANGED = "changed"
    """The file is not the one that the job listed: its size differs, or for a table also its version."""
    CRASHED_READER = "crashed_reader"
    """The process that reads it crashes. This happened twice."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one input has no prediction. `detail` depends only on the input, so that a table has the same bytes every time."""

    reason: Reason
    detail: str


_CHUNK = struct.Struct(">I4s").unpack_from
_NUMBER = struct.Struct(">I").unpack_from
_SIDES = struct.Struct(">II").unpack_from
_BOX_OF_SIDES = re.compile(rb"ispe\0{4}(.{8})", re.DOTALL)
"""Declares the size of a HEIF or AVIF image."""


def _check_png(data: bytes) -> Rejection | None:
    """Check every chunk of a PNG file.

    libpng prints to standard error and does not distinguish truncated files from damaged ones.
    """
    position, size = 8, len(data)
    while position + 12 <= size:
        length, kind = _CHUNK(data, position)
        end = position + 12 + length
        if end > size:
            break
        if zlib.crc32(data[position + 4 : end - 4]) != _NUMBER(data, end - 4)[0]:
            return Rejection(Reason.CORRUPT, f"PNG checksum of chunk {kind!r} at byte {position} does not match")
        if kind == b"IHDR" and length == 13:
            width, height = _SIDES(data, position + 8)
            if width * height > MAX_PIXELS:
                return Rejection(Reason.TOO_LARGE, f"declares {width} x {height} pixels; at most {MAX_PIXELS} are decoded")
        if kind == b"IEND":
            return None
        position = end
    return Rejection(Reason.TRUNCATED, f"PNG ends after {len(data)} bytes without its end chunk")


def _check_jpeg(data: bytes) -> Rejection | None:
    if b"\xff\xd9" in data:
        return None
    return Rejection(Reason.TRUNCATED, f"JPEG ends after {len(data)} bytes without its end marker")


def scan_end(data: bytes) -> int:
    """Where the pixels of a JPEG end: at the first end marker after its header, which may hold a thumbnail."""
    position = 2
    for _ in range(MOST_FIELDS):
        if position >= len(data) or data[position : position + 2] == b"\xff\xda":
            break
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.find(b"\xff\xd9", position)


def _check_boxes(data: bytes) -> Rejection | None:
    """Check that the boxes of a HEIF or AVIF file are all there. Bytes that are no box may follow them."""
    position = 0
    while position + 8 <= len(data) and data[position + 4 : position + 8].isalnum():
        size, kind = _CHUNK(data, position)
        if size == 1 and position + 16 <= len(data):
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size == 0:  # up to the end of the file
            return None
        if size < 8:
            return Rejection(Reason.CORRUPT, f"box {kind!r} at byte {position} declares {size} bytes")
        position += size
        if position > len(data):
            return Rejection(Reason.TRUNCATED, f"ends after {len(data)} bytes inside box {kind!r}")
    return None


_AVIF, _HEIF = (
    frozenset((b"avif", b"avis")),
    frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")),
)


def _brands(data: bytes) -> frozenset[bytes]:
    """The brands that a file of boxes declares, such as HEIF, AVIF and MP4 files; empty for other files."""
    if data[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(data[:4], "big"), len(data), HEAD_BYTES)
    return frozenset(data[start : start + 4] for start in (8, *range(16, end, 4)))


def is_avif(data: bytes) -> bool:
    """Whether the bytes begin like an AVIF file."""
    return bool(_brands(data) & _AVIF)


def is_heif(data: bytes) -> bool:
    """Whether the bytes begin like a HEIF file, such as HEIC, but not AVIF."""
    brands = _brands(data)
    return bool(brands & _HEIF) and not brands & _AVIF


_SIGNATURES: dict[bytes, Callable[[bytes], Rejection | None] | None] = {
    b"\x89PNG\r\n\x1a\n": _check_png,
    b"\xff\xd8\xff": _check_jpeg,
    **dict.fromkeys((b"GIF87a", b"GIF89a", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
}


def has_signature(data: bytes) -> bool:
    """Whether the bytes start with the signature of a supported image format."""
    return data.startswith(tuple(_SIGNATURES)) or is_heif(data) or is_avif(data)


def check(data: bytes) -> Rejection | None:
    """The reason to reject a file before decoding it, or None if the decoder should try it."""
    if not data:
        return Rejection(Reason.EMPTY, "0 bytes")
    if len(data) > MAX_BYTES:
        return Rejection(Reason.TOO_LARGE, f"more than {MAX_BYTES} bytes")
    for signature, check_content in _SIGNATURES.items():
        if data.startswith(signature) and (signature != b"RIFF" or data[8:12] == b"WEBP"):
            return check_content(data) if check_content else None
    if is_heif(data) or is_avif(data):
        return _check_boxes(data)
    if any(signature.startswith(data) for signature in _SIGNATURES):
        return Rejection(Reason.TRUNCATED, f"ends inside the signature, after {len(data)} bytes")
    return Rejection(
        Reason.NOT_AN_IMAGE, f"begins with {data[:12]!r}, no signature of PNG, JPEG, GIF, BMP, TIFF, WebP, HEIF or AVIF"
    )


def require_memory(data: bytes) -> None:
    """Raise MemoryError if a lack of memory may be why the decoder refused a file: most decoders do not tell it from damage.

    Decoders of HEIF and AVIF take up to 40 bytes for a pixel. The others take up to 10 besides the array that OpenCV makes.
    """
    declared = [width * height for width, height in map(_SIDES, _BOX_OF_SIDES.findall(data))]
    np.empty(40 * min(max(declared), MAX_PIXELS) if declared else 10 * MAX_PIXELS, np.uint8)  # never touched: it takes no time


def explain(data: bytes) -> Rejection:
    """Why the decoder refused a file that passed `check`: the file is truncated, or else damaged."""
    declared = len(data)
    if data.startswith(b"RIFF"):
        declared = 8 + int.from_bytes(data[4:8], "little")
    elif data.startswith(b"BM"):
        declared = int.from_bytes(data[2:6], "little")
    if declared > len(data):
        return Rejection(Reason.TRUNCATED, f"declares {declared} bytes and has {len(data)}")
    if data.startswith(b"GIF8") and not data.rstrip(b"\0").endswith(b"\x3b"):
        return Rejection(Reason.TRUNCATED, f"GIF ends after {len(data)} bytes without its trailer")
    return Rejection(Reason.CORRUPT, "the decoder found damaged data")
