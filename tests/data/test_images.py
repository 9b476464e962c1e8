import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from mnist_ray.data import heif
from mnist_ray.data.containers import MAX_BYTES, MAX_PIXELS, Reason, Rejection
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import Grey, decode, encode_png, normalise, to_digits

pillow_heif.register_heif_opener()
FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF"]


def encode(pixels: object, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def orientation(how: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = how
    return exif


def grey(data: bytes) -> Grey:
    found = decode(data)
    assert not isinstance(found, Rejection), found
    return found


def reason(data: bytes) -> Reason:
    found = decode(data)
    assert isinstance(found, Rejection)
    return found.reason


@pytest.fixture(scope="module")
def seven(mnist5k: Splits) -> Grey:
    image: Grey = mnist5k.test.images[np.flatnonzero(mnist5k.test.labels == 7)[0]]
    return image


@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_are_decoded(kind: str, seven: Grey) -> None:
    lossless = kind not in ("JPEG", "WEBP", "AVIF", "HEIF")
    difference = np.abs(grey(encode(seven, kind)).astype(int) - seven)
    assert difference.max() <= (0 if lossless else 60)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files_are_refused_at_every_length(kind: str, seven: Grey) -> None:
    data = encode(seven, kind)
    assert {reason(data[:cut]) for cut in range(1, len(data))} <= {Reason.TRUNCATED, Reason.NOT_AN_IMAGE, Reason.CORRUPT}
    assert reason(data[: len(data) // 2]) in (Reason.TRUNCATED, Reason.CORRUPT)


def test_a_flipped_bit_in_a_png_is_refused_or_changes_no_pixel(seven: Grey) -> None:
    data = encode_png(seven)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        found = decode(bytes(damaged))
        assert isinstance(found, Rejection) or np.array_equal(found, seven), position


def test_damage_anywhere_in_a_heif_file_is_no_defect(seven: Grey) -> None:
    data = encode(seven, "HEIF")
    for position in range(8, len(data)):
        for flips in (1 << position % 8, 255):
            decode(data[:position] + bytes([data[position] ^ flips]) + data[position + 1 :])


@pytest.mark.parametrize(
    "options",
    [{}, {"optimize": True}, {"quality": 30}, {"restart_marker_rows": 1}, *({"exif": orientation(how)} for how in range(2, 9))],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_without_its_last_pixels_is_refused(mode: str, options: dict[str, object], seven: Grey) -> None:
    """Its decoder paints them grey. An image that is grey there is not refused, whatever its encoding."""
    wide = cv2.resize(seven, (240, 320))
    data = encode(Image.fromarray(wide).convert(mode), "JPEG", **options)
    assert reason(data[: len(data) // 2] + b"\xff\xd9") == Reason.CORRUPT
    if not options:
        assert reason(data[:-400] + bytes(398) + b"\xff\xd9") == Reason.CORRUPT
    wide[:32], wide[-32:] = 128, 128
    for progressive in (False, True):
        whole = encode(Image.fromarray(wide).convert(mode), "JPEG", progressive=progressive, **options)
        for extra in (b"", bytes(500), whole):
            assert {grey(whole + extra)[0, 0], grey(whole + extra)[-1, -1]} == {128}


@pytest.mark.parametrize("depth", [8, 10, 12])
def test_avif_has_the_same_levels_at_each_depth(depth: int, seven: Grey) -> None:
    levels = 60 + cv2.resize(seven, (112, 112)) // 4
    ink = np.dstack([np.zeros_like(levels)] * 3 + [cv2.resize(seven, (112, 112))])
    for pixels in (levels, np.dstack([levels] * 3), ink):
        deep = pixels if depth == 8 else pixels.astype(np.uint16) << depth - 8
        data = cv2.imencode(".avif", deep, [cv2.IMWRITE_AVIF_DEPTH, depth])[1].tobytes()
        expected = 255 - ink[..., 3] if pixels is ink else levels
        assert np.abs(grey(data).astype(int) - expected).mean() < 5


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the memory of a process")
def test_a_lack_of_memory_is_no_fault_of_an_image(tmp_path: Path, seven: Grey) -> None:
    """At no limit of memory is a good image refused: it is read, or MemoryError is raised."""
    for kind in FORMATS:
        for side in (28, 600):
            image = Image.fromarray(cv2.resize(seven, (side, side))).convert("L" if kind == "GIF" else "RGB")
            (tmp_path / f"{kind}.{side}").write_bytes(encode(image, kind))
    found = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, tmp_path],
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == sorted(f"{kind}:{answer}" for kind in FORMATS for answer in ("MemoryError", "read")), found


SHORT_OF_MEMORY = """
import re, resource, sys
from pathlib import Path
from typing import Any
from mnist_ray.data.images import decode, normalise

folder, found = Path(sys.argv[1]), set()
_, most = resource.getrlimit(resource.RLIMIT_AS)
for file in folder.glob("*.28"):
    decode(file.read_bytes())  # loads its decoder
    data = file.with_suffix(".600").read_bytes()
    for spare in range(1 << 19, 32 << 20, 1 << 20):
        used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, most))
        try:
            answer = "refused" if normalise([decode(data)])[1] else "read"
        except MemoryError:
            answer = "MemoryError"
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        found.add(f"{file.stem}:{answer}")
print(*sorted(found))
"""


def test_reasons_of_rejections(seven: Grey) -> None:
    png = encode_png(seven)
    flipped = bytearray(png)
    flipped[60] ^= 16
    assert reason(b"") == Reason.EMPTY
    assert reason(b"hello\n") == Reason.NOT_AN_IMAGE
    assert reason(b"<html>") == Reason.NOT_AN_IMAGE
    assert reason(b"RIFF....WAVE") == Reason.NOT_AN_IMAGE
    assert reason(b"\0\0\0\x14ftypisom\0\0\0\0mp41") == Reason.NOT_AN_IMAGE
    assert reason(png[:4]) == Reason.TRUNCATED
    assert reason(png[:100]) == Reason.TRUNCATED
    assert reason(bytes(flipped)) == Reason.CORRUPT
    assert reason(bytes(MAX_BYTES + 1)) == Reason.TOO_LARGE


def test_photos_of_phones_are_upright_and_their_size_is_limited(seven: Grey, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEIC photos lie on their side in the file, with an instruction to turn them."""
    turned = Image.fromarray(np.rot90(np.repeat(np.repeat(seven, 8, 0), 8, 1))).convert("RGB")
    photo = io.BytesIO()
    pillow_heif.from_pillow(turned).save(photo, quality=90, exif=orientation(6).tobytes())
    found = grey(photo.getvalue())
    assert np.abs(found[4::8, 4::8].astype(int) - seven).mean() < 10
    monkeypatch.setattr(heif, "MAX_PIXELS", 100)
    assert reason(encode(seven, "HEIF")) == Reason.TOO_LARGE


def test_what_to_install_is_named(seven: Grey, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(seven, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    found = decode(data)
    assert found == Rejection(
        Reason.UNSUPPORTED, "a HEIF (HEIC) image; to read it, pip install 'mnist-ray[heif]' on every machine"
    )


def png_declaring(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def test_huge_images_are_refused_before_they_are_decoded(capfd: pytest.CaptureFixture[str]) -> None:
    assert reason(png_declaring(50_000, 50_000)) == Reason.TOO_LARGE
    assert reason(encode(Image.new("1", (8192, 4096)), "GIF")) == Reason.TOO_LARGE
    assert MAX_PIXELS < 8192 * 4096
    assert capfd.readouterr().err == ""


def test_the_content_decides_the_format(seven: Grey) -> None:
    assert np.array_equal(grey(encode(seven, "TIFF")), seven)


@pytest.mark.parametrize(
    ("mode", "tolerance"), [("L", 0), ("RGB", 1), ("RGBA", 1), ("LA", 1), ("P", 1), ("CMYK", 3), ("I;16", 0), ("F", 0)]
)
def test_colour_modes_are_converted_to_grey(mode: str, tolerance: int, seven: Grey) -> None:
    image = Image.fromarray(seven)
    if mode == "I;16":
        image = Image.fromarray(seven.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(seven.astype(np.float32) / 255)
    else:
        image = image.convert(mode)
    kind = "TIFF" if mode in ("CMYK", "F") else "PNG"
    assert np.abs(grey(encode(image, kind)).astype(int) - seven).max() <= tolerance


def test_one_bit_images_are_decoded(seven: Grey) -> None:
    assert np.array_equal(grey(encode(Image.fromarray(seven > 127), "PNG")), (seven > 127) * 255)


def test_black_and_white_ink_on_a_transparent_background(seven: Grey) -> None:
    for ink in (0, 255):
        pixels = np.dstack([np.full((28, 28, 3), ink, np.uint8), seven])
        digit = to_digits([grey(encode(Image.fromarray(pixels, "RGBA"), "PNG"))])[0]
        assert np.abs(digit.astype(int) - seven).max() <= 1


def test_a_transparent_rim_around_white_paper_counts_as_paper(seven: Grey) -> None:
    card = np.dstack([np.repeat((255 - seven)[..., None], 3, axis=2), np.full((28, 28), 255, np.uint8)])
    rimmed = np.pad(card, ((3, 3), (3, 3), (0, 0)))
    digit = to_digits([grey(encode(Image.fromarray(rimmed, "RGBA"), "PNG"))])[0]
    opaque = to_digits([np.pad(255 - seven, 3, constant_values=255)])[0]
    assert np.abs(digit.astype(int) - opaque).mean() < 2


def test_faint_ink_is_stretched_to_the_full_range(seven: Grey) -> None:
    assert to_digits([(seven > 127).astype(np.uint8)])[0].max() > 200


@pytest.mark.parametrize("kind", FORMATS)
def test_extra_bytes_after_an_image_are_ignored(kind: str, seven: Grey) -> None:
    assert grey(encode(seven, kind) + bytes(500)).shape == (28, 28)


def test_the_first_frame_of_an_animation_is_used(seven: Grey) -> None:
    frames = [Image.fromarray(seven), Image.fromarray(np.zeros((28, 28), np.uint8))]
    assert np.array_equal(grey(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])), seven)


def test_mnist_images_are_not_changed(mnist5k: Splits) -> None:
    images = mnist5k.train.images
    assert np.array_equal(to_digits(images), images)
    assert np.array_equal(to_digits(255 - images), images), "dark ink on light paper"
    assert np.array_equal(to_digits([grey(encode_png(image)) for image in images[:200]]), images[:200])


def test_no_image_of_full_mnist_is_changed(mnist: Splits) -> None:
    for images in (mnist.train.images, mnist.test.images):
        assert np.array_equal(to_digits(images), images)


@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (28, 28), (3, 2), (1000, 1)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_blank_images_of_any_shape_give_a_digit(shape: tuple[int, int], level: int) -> None:
    digit = to_digits([np.full(shape, level, np.uint8)])
    assert digit.shape == (1, 28, 28)
    assert digit.dtype == np.uint8
    digits, rejected = normalise([np.full(shape, level, np.uint8)])
    assert rejected[0].reason == Reason.BLANK_IMAGE
    assert not digits.any()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_an_image_is_turned_as_its_exif_data_say(kind: str, turn: int) -> None:
    picture = np.kron(np.array([[250, 10, 120], [60, 180, 10]], np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x112] = turn
    file = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    Image.fromarray(picture).save(file, kind, exif=exif, **options)
    with Image.open(file) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("L"))
    found = decode(file.getvalue())
    assert isinstance(found, np.ndarray)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() < 12
