import errno
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.data import patience
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import encode_png
from mnist_ray.data.listing import FileEntry, ImageFile
from mnist_ray.errors import DataError, StorageError, UsageError
from mnist_ray.scoring import inputs
from mnist_ray.scoring.ignored import Ignored, Why
from mnist_ray.scoring.inputs import Listing
from mnist_ray.scoring.tables import Kept
from tests.conftest import write_pickled_table


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two images in folders named after digits, one elsewhere, a Parquet file, and a text file."""
    for name in ("3/a.png", "7/b.JPG", "other/c.webp", "notes.txt", "deep/er/t.parquet"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "tree"


def listed(*inputs: object) -> tuple[list[ImageFile], Listing]:
    return listed_with("auto", *inputs)


def listed_with(truth: str, *inputs: object) -> tuple[list[ImageFile], Listing]:
    listing = Listing(tuple(str(item) for item in inputs), truth, "/nowhere/out", Kept())
    return list(listing.images()), listing


def shown(*inputs: object, truth: str = "folder") -> list[tuple[str, int | None]]:
    return [(Path(image.entry.uri).name, image.truth) for image in listed_with(truth, *inputs)[0]]


@pytest.mark.parametrize("nested", [[], ["2024/5/7/x.png"], ["more/x.png"], ["train/3/x.png", "test/7/x.png"]])
def test_folders_are_truths_only_if_all_of_the_first_level_are_digits(nested: list[str], tmp_path: Path) -> None:
    for name in ("3/a.png", "7/deep/b.png", "LICENSE", "README.md", "0.png", *nested):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for item in (tmp_path, f"{tmp_path}/"):
        known = {name: truth for name, truth in shown(item, truth="auto") if truth is not None}
        assert known == ({} if nested else {"a.png": 3, "b.png": 7})
    images, listing = listed(tmp_path)
    assert listing.truths == (set() if nested else {"folder names"})
    assert {image.truth for image in listed_with("none", tmp_path)[0]} == {None}
    assert ("a.png", 3) in shown(tmp_path)
    assert len(images) == 3 + len(nested)


def test_a_path_alone_is_no_truth(tree: Path) -> None:
    """The day of a month is no digit. A manifest and a glob need --truth folder."""
    (tree / "list.txt").write_text("3/a.png\n")
    (tree / "list.csv").write_text("path,label\n3/a.png,5\n")
    for item, expected in (("list.txt", None), ("list.csv", 5), ("3/a.png", None), ("[37]/*.png", None)):
        assert shown(tree / item, truth="auto") == [("a.png", expected)], item
    assert listed(tree / "list.csv")[1].truths == {"column label"}


def test_a_folder_is_listed_to_its_depths(tree: Path) -> None:
    _, listing = listed(tree)
    assert shown(tree) == [("a.png", 3), ("b.JPG", 7), ("c.webp", None)]
    assert [Path(entry.uri).name for entry in listing.tables] == ["t.parquet"]
    assert listing.ignored.count == 1


def test_hidden_files_are_ignored(tree: Path) -> None:
    for name in ("3/._a.png", ".trash/7/x.png", ".DS_Store", "7/.ipynb_checkpoints/b.png"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"x")
    for item in (tree, f"{tree}/", f"{tree}/**"):
        assert [Path(image.entry.uri).name for image in listed(item)[0]] == ["a.png", "b.JPG", "c.webp"], item
    assert listed(tree)[1].ignored.count == 1 + 4
    assert shown(tree / ".trash") == [("x.png", 7)], "a folder that is named is not hidden"


def test_images_are_found_by_name_or_by_content(tree: Path, small: Splits) -> None:
    """A file without a suffix is looked into. What is ignored is named with the reason."""
    png = encode_png(small.test.images[0])
    for name in ("3/scan", "7/whatsapp.JFIF", "7/phone.heic", "7/IMG.0001", "README", "a.b/scan", ".hidden/scan"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes(png if name.endswith("scan") else b"x")
    found, listing = listed_with("folder", tree)
    assert [(Path(image.entry.uri).name, image.truth) for image in found] == [
        *[
            ("a.png", 3),
            ("scan", None),
            ("b.JPG", 7),
            ("phone.heic", 7),
            ("whatsapp.JFIF", 7),
            ("scan", None),
            ("c.webp", None),
        ],
    ]
    rows = pq.read_table(pa.BufferReader(listing.ignored.to_parquet())).to_pylist()
    assert {row["source"].removeprefix(f"{tree}/"): row["why"] for row in rows} == {
        ".hidden/scan": "hidden",
        "7/IMG.0001": "other_suffix",
        "README": "no_image",
        "notes.txt": "other_suffix",
    }
    assert {row["size_bytes"] for row in rows} == {1, len(png)}


def test_a_file_without_a_suffix_that_cannot_be_read_is_an_input(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be an image. So the table must account for it."""
    (tree / "scan").write_bytes(b"x")
    monkeypatch.setattr(inputs, "read_many", lambda uris, _: iter([PermissionError(uri) for uri in uris]))
    images, listing = listed(tree)
    assert f"{tree}/scan" in {image.entry.uri for image in images}
    assert listing.ignored.count == 1, "notes.txt"


def test_the_output_folder_is_no_input_by_any_name(tree: Path) -> None:
    (tree / "out" / "plan").mkdir(parents=True)
    (tree / "out" / "plan" / "00000.parquet").write_bytes(b"x")
    (tree.parent / "link").symlink_to(tree)
    for item, out in ((tree, tree.parent / "link" / "out"), (tree.parent / "link", tree / "out")):
        listing = Listing((str(item),), "auto", str(out), Kept())
        assert {Path(image.entry.uri).name for image in listing.images()} == {"a.png", "b.JPG", "c.webp"}
        assert [Path(table.uri).name for table in listing.tables] == ["t.parquet"]
    with pytest.raises(UsageError, match="lies in the output folder"):
        Listing((str(tree.parent / "link" / "out" / "plan"),), "auto", str(tree / "out"), Kept())


def test_many_ignored_files_are_all_listed() -> None:
    ignored = Ignored()
    for number in range(40_000):
        ignored.add(FileEntry(f"/data/{number}.txt", number, ""), Why.OTHER_SUFFIX)
    table = pq.read_table(pa.BufferReader(ignored.to_parquet()))
    assert (ignored.count, table["size_bytes"].to_pylist()) == (40_000, list(range(40_000)))


def test_what_is_found_twice_is_listed_once(tree: Path) -> None:
    assert shown(tree, tree / "3", tree / "3" / "a.png", f"{tree}/*/*.png") == shown(tree)


def test_globs(tree: Path) -> None:
    assert shown(f"{tree}/[37]/*") == [("a.png", 3), ("b.JPG", 7)]
    assert shown(f"{tree}/**/c.*") == [("c.webp", None)]
    assert shown(f"{tree}/[37]") == [("a.png", 3), ("b.JPG", 7)]
    assert shown(f"{tree}/[37]/**") == [("a.png", 3), ("b.JPG", 7)]
    (tree / "broken").symlink_to("nowhere")
    assert shown(f"{tree}/*/**/*.png") == [("a.png", 3)]
    with pytest.raises(DataError, match="holds nothing to score"):
        shown(f"{tree}/nix/**/*.png")
    assert shown(f"{tree}/?/a**") == shown(f"{tree}/**/a**") == [("a.png", 3)]


def test_a_link_to_a_folder_above_is_not_followed_in_a_glob(tree: Path) -> None:
    (tree / "3" / "loop").symlink_to(tree)
    assert shown(f"{tree}/**/a.png") == [("a.png", 3)]


def test_a_glob_lists_all_files_or_none(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be listed stops the job: its files would be missing in the table."""
    listdir = os.listdir

    def fail(folder: str) -> list[str]:
        if folder.endswith("/7"):
            raise OSError(errno.EIO, "Input/output error")
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", fail)
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    with pytest.raises(StorageError, match=r"7: cannot be listed: Input/output error"):
        shown(f"{tree}/*/*.png")


def test_a_file_is_an_image_whatever_its_name(tree: Path) -> None:
    (tree / "scan").write_bytes(b"x")
    (tree / "odd[1].png").write_bytes(b"x")
    assert shown(tree / "scan", tree / "odd[1].png") == [("odd[1].png", None), ("scan", None)]


def test_manifests_keep_order_and_repetition(tree: Path) -> None:
    (tree / "list.txt").write_text("7/b.JPG\n\n3/a.png\n7/b.JPG\ngone.png\n")
    images, _ = listed(tree / "list.txt")
    assert shown(tree / "list.txt") == [("b.JPG", 7), ("a.png", 3), ("b.JPG", 7), ("gone.png", None)]
    assert images[-1].entry.size == -1
    (tree / "list.csv").write_text(f"path,label\n{tree}/3/a.png,5\n7/b.JPG,77\n")
    assert shown(tree / "list.csv", truth="auto") == [("a.png", 5), ("b.JPG", None)]
    pq.write_table(pa.table({"source": ["3/a.png"], "other": [1]}), tree / "list.parquet")
    assert shown(tree / "list.parquet") == [("a.png", 3)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty/x.doc", "", "holds nothing to score: .* 1 other files were ignored"),
        ("m.csv", "a,b\n1,2\n", r"m.csv: holds neither images nor paths; .*; its columns: a \(string\), b \(string\)"),
        ("m.csv", "5,0,0\n1,2,3\n", "m.csv: its first line holds only numbers; add a line before it"),
        ("m.csv", ",".join(f"c{i}" for i in range(785)) + "\n" + "0," * 784 + "0\n", r"c11 \(string\), and 773 more$"),
        ("m.csv", "path,label\nx.png\n", "m.csv: cannot be read as a manifest"),
        ("none.txt", "\n", "none.txt: holds nothing to score"),
    ],
)
def test_an_input_that_cannot_be_used_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        listed(tmp_path / name if not name.startswith("empty") else tmp_path / "empty")


def test_all_lines_of_a_csv_manifest_are_read_alike(tree: Path) -> None:
    """pyarrow would choose the types of all columns by the first megabyte."""
    more = "x" * 1000
    lines = [f"3/a.png,3,,{more}"] * 1500 + ["3/a.png,?,blurred,"]
    (tree / "list.csv").write_text("\n".join(["path,label,note,more", *lines]))
    assert [truth for _, truth in shown(tree / "list.csv", truth="auto")] == [3] * 1500 + [None]


def test_a_parquet_file_whose_column_names_are_not_utf8_is_no_manifest(tree: Path) -> None:
    pq.write_table(pa.table({"path": ["3/a.png"], "label": [3]}), tree / "list.parquet")
    data = (tree / "list.parquet").read_bytes()
    (tree / "list.parquet").write_bytes(data.replace(b"label", b"lab\xff\xfe"))
    images, listing = listed(tree / "list.parquet")
    assert (images, len(listing.tables)) == ([], 1)


def test_manifests_of_other_programs(tree: Path) -> None:
    import pandas as pd

    pd.DataFrame({"path": ["3/a.png"]}).to_parquet(tree / "pandas.parquet")
    assert shown(tree / "pandas.parquet") == [("a.png", 3)]
    (tree / "windows.txt").write_bytes(b"\xef\xbb\xbf3/a.png\r\n7/b.JPG\r\n")
    assert shown(tree / "windows.txt") == [("a.png", 3), ("b.JPG", 7)]
    (tree / "numbers.csv").write_text("path\n1\n2\n")
    assert shown(tree / "numbers.csv") == [("1", None), ("2", None)]
    (tree / "url.txt").write_text(f"file://{tree}/3/a.png\n")
    assert listed(tree / "url.txt")[0][0].entry.size == 1
    (tree / "utf16.txt").write_text("3/a.png\n", "utf-16")
    with pytest.raises(DataError, match="in UTF-8"):
        listed(tree / "utf16.txt")
    (tree / "tables.txt").write_text("deep/er/t.parquet\n")
    with pytest.raises(DataError, match="expected the path of an image file"):
        listed(tree / "tables.txt")


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_a_manifest_whose_storage_fails_is_named(suffix: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "connection lost")

    (tree / f"list.{suffix}").write_text("path\na.png\n")
    monkeypatch.setattr(patience, "PATIENCE_S", 0)
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(StorageError, match=rf"list.{suffix}: cannot be read: .*connection lost"):
        listed(tree / f"list.{suffix}")


def test_an_input_that_is_not_there_is_named(tmp_path: Path) -> None:
    for item in (tmp_path / "no", f"{tmp_path}/*.png"):
        with pytest.raises(DataError, match=r"there is no such file or folder|holds nothing to score"):
            listed(item)


def test_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    assert len(shown(tmp_path)) == 1


def test_a_folder_is_listed_as_it_is_asked_for(tree: Path) -> None:
    images = Listing((str(tree),), "auto", "/nowhere/out", Kept()).images()
    assert Path(next(images).entry.uri).name == "a.png"
    (tree / "7" / "b.JPG").unlink()
    assert [Path(image.entry.uri).name for image in images] == ["c.webp"], (
        "what is gone before its folder is read is not listed"
    )


def test_a_manifest_is_read_without_its_other_columns(digit_folder: Path, small: Splits, tmp_path: Path) -> None:
    """Pickled objects beside the paths are not read. A table with pickled objects inside its images is not a manifest."""
    paths = [str(path) for path in sorted(digit_folder.rglob("*.png"))[:100]]
    write_pickled_table(tmp_path / "t.parquet", small.test, tmp_path / "it-ran", path=paths)
    table = pq.read_table(tmp_path / "t.parquet")
    pq.write_table(table.drop_columns(["image"]), tmp_path / "list.parquet")
    found = list(Listing((str(tmp_path / "list.parquet"),), "auto", "out", Kept()).images())
    assert [image.entry.uri for image in found] == paths
    both = Listing((str(tmp_path / "t.parquet"),), "auto", "out", Kept())
    assert (list(both.images()), len(both.tables)) == ([], 1)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("last", ["", "\n"])
@pytest.mark.parametrize("broken", [[3], [3, 900], [1499]])
def test_a_quotation_mark_that_is_not_closed_swallows_no_lines_of_a_manifest(broken: list[int], last: str, tree: Path) -> None:
    lines = [f'{number}.png,"unclosed' if number in broken else f'{number}.png,"a, b"' for number in range(1500)]
    (tree / "list.csv").write_text("\n".join(["path,note", *lines]) + last)
    assert [name for name, _ in shown(tree / "list.csv")] == [f"{number}.png" for number in range(1500)]


def test_a_row_of_a_manifest_that_cannot_be_read_is_named(tree: Path) -> None:
    (tree / "list.csv").write_text('path,note\n3/a.png,one\n7/b.JPG,"two\nlines"\n')
    with pytest.raises(DataError, match=r"list\.csv: cannot be read as a manifest: row 2: .*each row in one line"):
        listed(tree / "list.csv")
    (tree / "list.csv").write_text("path,note\n3/a.png,one\n,two\n")
    with pytest.raises(DataError, match=r"list\.csv: row 1 of column 'path' is empty or null"):
        listed(tree / "list.csv")


@pytest.mark.parametrize(
    "beside",
    [
        pa.array([[0, 1] * 32] * 3),
        pa.array([[0.5] * 512] * 3),
        pa.array([[1, 2, 3, 4], None, [1]]),
        pa.array([b"0" * 32] * 3, pa.binary(32)),
        pa.array([[[1, 2], [3, 4]]] * 3),
    ],
    ids=["hash", "embedding", "box", "digest", "nested"],
)
def test_other_lists_beside_paths_are_no_images(beside: pa.Array, tree: Path) -> None:
    pq.write_table(pa.table({"path": ["3/a.png"] * 3, "other": beside}), tree / "list.parquet")
    assert [name for name, _ in shown(tree / "list.parquet")] == ["a.png"] * 3
    named = Listing((str(tree / "list.parquet"),), "auto", "/nowhere/out", Kept(), "other")
    assert (list(named.images()), len(named.tables)) == ([], 1)


@pytest.mark.parametrize(
    "images",
    [
        pa.array([[0] * 784, [1] * 784, None]),
        pa.array([[[0] * 28] * 28] * 3),
        pa.array([b"0" * 784] * 3, pa.binary(784)),
        pa.array([b"png"] * 3),
    ],
    ids=["list", "rows", "bytes", "file"],
)
def test_images_beside_paths_are_images(images: pa.Array, tree: Path) -> None:
    pq.write_table(pa.table({"path": ["3/a.png"] * 3, "other": images}), tree / "images.parquet")
    found, listing = listed(tree / "images.parquet")
    assert (found, len(listing.tables)) == ([], 1)


def test_text_of_a_manifest_that_is_not_utf8_is_named(tree: Path) -> None:
    wrong = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"path": wrong}), tree / "list.parquet")
    with pytest.raises(DataError, match=r"list\.parquet: cannot be read as a manifest"):
        listed(tree / "list.parquet")


def test_the_output_folder_is_left_out_when_it_is_listed_through_a_link(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    listing = Listing((f"{tmp_path}/link/**",), "auto", str(tree / "deep"), Kept())
    assert len(list(listing.images())) == 3
    assert not listing.tables
