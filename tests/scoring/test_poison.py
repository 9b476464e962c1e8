"""Inputs that end the process that decodes them."""

import os
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.scoring.verify import verify
from tests.conftest import start_cli
from tests.scoring.conftest import rows

DECODER = """
import os, cv2
decode = cv2.imdecode
def decode_or_die(data, flags):
    return os.abort() if b"POISON" in data.tobytes() else decode(data, flags)
cv2.imdecode = decode_or_die
"""
"""A decoder with a fault, as Python loads it at the start of every process."""


def poison(path: Path) -> bytes:
    """A PNG file with a chunk of text that the decoder does not survive."""
    whole = path.read_bytes()
    kind, text = b"tEXt", b"Comment\0POISON"
    chunk = struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text))
    return whole[:33] + chunk + whole[33:]  # after the signature and IHDR


@pytest.fixture
def faulty_decoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DECODER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.slow
@pytest.mark.usefixtures("faulty_decoder")
@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.long)])
def test_an_input_that_ends_its_process_is_quarantined(
    workers: str, run_dir: Path, digit_folder: Path, tmp_path: Path, out: Path
) -> None:
    images = sorted(digit_folder.rglob("*.png"))[:60]
    folder = tmp_path / "in"
    folder.mkdir()
    for position, path in enumerate(images):
        (folder / f"{position:02d}.png").write_bytes(poison(path) if position in (7, 8, 41) else path.read_bytes())
    cells = [poison(path) if position == 5 else path.read_bytes() for position, path in enumerate(images[:20])]
    pq.write_table(pa.table({"image": cells}), folder / "table.parquet")
    job = start_cli("score", str(folder), "--model", str(run_dir), "--out", str(out), "--workers", workers, "--unit-rows", "25")
    said, errors = job.communicate(timeout=240)
    assert job.returncode == 0, said + errors
    proof = verify(str(out))
    assert (proof.predicted, proof.quarantined) == (76, 4)
    found = {(Path(row["source"]).name, row["row"]): row["reason"] for row in rows(out, "quarantine")}
    guilty: list[tuple[str, int | None]] = [("07.png", None), ("08.png", None), ("41.png", None), ("table.parquet", 5)]
    assert found == dict.fromkeys(guilty, "crashed_reader")
    assert "a scoring process ended unexpectedly" in said + errors or workers == "2"
