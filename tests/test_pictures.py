"""Pictures as people have them: of any depth and orientation, in folders with other things, in data sets of
torchvision, as arrays of other programs. They are read as a viewer shows them, or one line says what is in the way."""

import hashlib
import os
import struct
import sys
import unicodedata
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from ruamel.yaml import YAML
from torchvision import datasets

import lowenergy
from lowenergy import cli, data, params
from lowenergy.base import UserError, files
from lowenergy.data import DataError, decoding, images, preparing, torchvision
from lowenergy.data.images import Floats
from lowenergy.networks import Spec, of_params
from lowenergy.runtimes import loading
from lowenergy.scoring import generation
from lowenergy.storage import artifact
from lowenergy.targets import classifier
from lowenergy.training import Run

GRADIENT = np.tile(np.linspace(0, 65535, 16), (16, 1))  # as 8 bits: 0, 17, … 255


def section(values: Any, **changes: Any) -> params.Data:
    return params.check({**values, "data": {**values["data"], **changes}}).data


@pytest.fixture
def folder(values: Any, tmp_path: Path) -> "Folder":
    return Folder(values, tmp_path / "imgs")


class Folder:
    """Classes a and b, of four small grey images each; what else there is, tests add."""

    def __init__(self, values: Any, path: Path) -> None:
        self.values, self.path = values, path

    def add(self, name: str, picture: Any = 100, **options: Any) -> Path:
        """A file of an image, an array, or one shade."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, int):
            picture = np.full((16, 16), picture, np.uint8)
        (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
        return path

    def fill(self, *classes: str, count: int = 4) -> None:
        for place, name in enumerate(classes):
            for i in range(count):
                self.add(f"{name}/{i}.png", 20 + 40 * place + i)

    def all_of(self, picture: Any, suffix: str, **options: Any) -> torch.Tensor:
        """How every image is read when all are this one."""
        for name in ("a", "b"):
            for i in range(3):
                self.add(f"{name}/{i}{suffix}", picture, **options)
        return self.prepared().train.images[0]

    def of_png(self, bits: int, colour_type: int, rows: bytes, **chunks: bytes) -> torch.Tensor:
        """All pictures are this PNG of 16 pixels a side; Pillow reads more kinds of them than it writes."""
        content = b"\x89PNG\r\n\x1a\n"
        head = struct.pack(">IIBBBBB", 16, 16, bits, colour_type, 0, 0, 0)
        for name, body in {"IHDR": head, **chunks, "IDAT": zlib.compress(rows), "IEND": b""}.items():
            chunk = name.encode() + body
            content += struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        self.fill("a", "b")
        for path in self.path.rglob("*.png"):
            path.write_bytes(content)
        return self.prepared().train.images[0]

    def prepared(self, **changes: Any) -> data.Splits:
        given = {"source": "folder", "folder": str(self.path), "image_size": 16, **changes}
        return data.prepare(section(self.values, **given), seed=0).read()

    def refused(self, **changes: Any) -> str:
        with pytest.raises(DataError) as error:
            self.prepared(**changes)
        assert "\n" not in str(error.value)
        return str(error.value)


def white_is_zero(pixels: np.ndarray) -> tuple[Image.Image, dict[str, Any]]:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0106] = 0
    return Image.fromarray(pixels), {"tiffinfo": tags}


@pytest.mark.parametrize(
    ("pixels", "suffix"),
    [
        (GRADIENT.astype(np.uint16), ".png"),
        (GRADIENT.astype(np.uint16), ".tif"),
        (GRADIENT.astype(">u2"), ".tif"),
        (GRADIENT.astype(np.int32), ".tif"),
        (GRADIENT.astype(np.int32), ".pgm"),
        ((GRADIENT / 257).astype(np.int32), ".tif"),
        ((GRADIENT / 65535).astype(np.float32), ".tif"),
        ((GRADIENT / 257).astype(np.float32), ".tif"),
        (GRADIENT.astype(np.float32), ".tif"),
        ((GRADIENT / 257).astype(np.uint8), ".png"),
        ((GRADIENT / 257).astype(np.uint8), ".tif"),
    ],
)
def test_a_gradient_of_any_depth_is_the_same_gradient(folder: Folder, pixels: np.ndarray, suffix: str) -> None:
    assert folder.all_of(pixels, suffix)[0, 0].tolist() == list(range(0, 256, 17))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_colour(folder: Folder, colour_type: int, channels: int) -> None:
    """RGB, grey with alpha, RGB with alpha: PNGs that Pillow reads and does not write."""
    pixels = np.repeat(GRADIENT[:, :, None], channels, 2).astype(">u2")
    if colour_type > 2:
        pixels[:, :, -1] = 65535
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    assert folder.of_png(16, colour_type, rows)[0, 0].tolist() == list(range(0, 256, 17))


def test_a_colour_of_sixteen_bits_can_be_the_hole(folder: Folder) -> None:
    pixels = np.repeat(GRADIENT[:, :, None], 3, 2).astype(">u2")
    rows, hole = b"".join(b"\0" + row.tobytes() for row in pixels), pixels[0, 2].tobytes()
    assert folder.of_png(16, 2, rows, tRNS=hole)[0, 0].tolist() == [0, 17, 255, *range(51, 256, 17)]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_grey_of_few_bits_can_be_the_hole(folder: Folder, bits: int) -> None:
    """Viewers show white there, whatever grey it is; the other greys fill all of black to white."""
    most, hole = 2**bits - 1, (2**bits - 1) // 3
    shades = [x * most // 15 for x in range(16)]
    row = int("".join(f"{shade:0{bits}b}" for shade in shades), 2).to_bytes(2 * bits, "big")
    seen = [255 if shade == hole else shade * 255 // most for shade in shades]
    assert folder.of_png(bits, 0, (b"\0" + row) * 16, tRNS=struct.pack(">H", hole))[0, 0].tolist() == seen


def test_sixteen_bits_with_a_sign(folder: Folder) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0153] = 2
    image = Image.fromarray((GRADIENT / 65535 * 32767).round().astype(np.uint16))
    assert folder.all_of(image, ".tif", tiffinfo=tags)[0, 0].tolist() == list(range(0, 256, 17))


def test_what_pillow_reads_as_something_else_is_refused(folder: Folder) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0153] = 2
    folder.fill("a", "b")
    path = folder.add("a/signed.tif", tiffinfo=tags)
    assert f"{path}: signed pixels of 8 bits" in folder.refused()
    with pytest.raises(DataError, match=r"x.tif: colours of 16 bits in planes of their own"):
        decoding._check_tags({0x0102: (16, 16, 16), 0x011C: 2}, "RGB", "x.tif")


def test_sixteen_bits_where_zero_is_white(folder: Folder) -> None:
    image, options = white_is_zero(GRADIENT.astype(np.uint16))
    assert folder.all_of(image, ".tif", **options)[0, 0].tolist() == list(range(255, -1, -17))


def test_sixteen_bits_with_a_hole_show_white(folder: Folder) -> None:
    read = folder.all_of(GRADIENT.astype(np.uint16), ".png", transparency=0)
    assert read[0, 0].tolist() == [255, *range(17, 256, 17)]


def test_what_is_white_is_the_same_for_the_whole_folder(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """A dark picture stays dark beside brighter ones, whatever its own brightest pixel is."""
    for name, scale in (("dark", 0.1), ("light", 1.0)):
        for i in range(4):
            folder.add(f"{name}/{i}.tif", (GRADIENT / 65535 * scale).astype(np.float32))
    prepared = folder.prepared()
    means = [float(prepared.train.images[prepared.train.labels == label].float().mean()) for label in (0, 1)]
    assert means == pytest.approx([12.75, 127.5], abs=0.5)
    assert "float pixels: 1 is white" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ((GRADIENT / 16).astype(np.uint16) & 4095, "no 16-bit pixel of the folder is brighter than 4095, and white is"),
        ((GRADIENT / 65535 * 1.2).astype(np.float32), "no float pixel of the folder is brighter than 1.2"),
        ((GRADIENT / 65535 - 0.5).astype(np.float32), "float pixels from -0.5 to 0.5, not 0..1 or 0..255 or 0..65535"),
        (np.full((16, 16), np.nan, np.float32), "float pixels from nan to nan"),
        ((GRADIENT * 30000).astype(np.int32), "32-bit integer pixels from 0 to 1.96605e+09, not"),
    ],
)
def test_pixels_of_which_white_is_unknown_are_refused(folder: Folder, pixels: np.ndarray, message: str) -> None:
    folder.fill("a", "b")
    folder.add("b/strange.tif", pixels)
    refusal = folder.refused()
    assert f"b/strange.tif: {message}" in refusal and "convert the folder to 8 bits" in refusal


def colours(*shades: int) -> np.ndarray:
    return np.tile(np.array(shades, np.uint8), (16, 16, 1))


def palette_with_a_hole() -> Image.Image:
    image = Image.fromarray(np.zeros((16, 16), np.uint8), "P")
    image.putpalette([10, 20, 30])
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "seen"),
    [
        (Image.new("1", (16, 16), 1), ".png", (255, 255, 255)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), ".tif", (255, 0, 0)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), ".jpg", (255, 0, 0)),
        (Image.new("LAB", (16, 16), (200, 30, 100)), ".tif", (0, 235, 243)),
        (colours(200, 100, 50), ".webp", (200, 100, 50)),
        (colours(200, 100, 50), ".bmp", (200, 100, 50)),
        (colours(200, 100, 50), ".ppm", (200, 100, 50)),
        (colours(200, 100, 50), ".tga", (200, 100, 50)),
        (colours(200, 100, 50), ".GIF", (200, 100, 50)),
        (colours(200, 100, 50, 255), ".png", (200, 100, 50)),
        (colours(200, 100, 50, 0), ".png", (255, 255, 255)),
        (colours(0, 0, 0, 102), ".png", (153, 153, 153)),
        (colours(0, 102), ".png", (153, 153, 153)),
        (palette_with_a_hole(), ".png", (255, 255, 255)),
    ],
)
def test_colours_are_those_of_a_viewer_on_white(folder: Folder, image: Any, suffix: str, seen: Any) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    for channels in (3, 1):
        folder.all_of(image, suffix, **options)
        read = folder.prepared(channels=channels).train.images[0].float().mean((1, 2))
        wanted = seen if channels == 3 else [Image.new("RGB", (1, 1), seen).convert("L").getpixel((0, 0))]
        assert read.tolist() == pytest.approx(list(wanted), abs=2), "JPEG is not exact"


def test_images_are_upright(folder: Folder) -> None:
    """As Pillow turns them for every orientation of Exif, in the formats that have one."""
    corner = np.zeros((16, 16), np.uint8)
    corner[:8, :4], corner[:8, 4:8] = 250, 120
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = {1: corner, 2: corner[:, ::-1], 3: corner[::-1, ::-1], 4: corner[::-1], 5: corner.T,
                  6: np.rot90(corner, -1), 7: corner[::-1, ::-1].T, 8: np.rot90(corner)}[orientation]  # fmt: skip
        for suffix, options in ((".png", {}), (".webp", {"lossless": True}), (".tif", {})):
            read = folder.all_of(corner, suffix, exif=exif, **options)
            assert np.array_equal(read[0], turned), (orientation, suffix)
            for path in folder.path.rglob("*.*"):
                path.unlink()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_damaged_exif_is_no_damaged_picture(folder: Folder, suffix: str) -> None:
    read = folder.all_of(100, suffix, exif=b"Exif\0\0garbage that is no tiff")
    assert read.unique().tolist() == [100]


def test_what_is_no_picture_of_a_class_is_left_out_and_counted(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.fill("a", "b")
    for hidden in (".ipynb_checkpoints", "__MACOSX/a", "a/.thumbnails", "b/@eaDir"):
        folder.fill(hidden)
    for name in ("a/._0.png", ".DS_Store", "b/Thumbs.db", "a/notes.txt", "b/more.txt", "a/raw.heic", "LICENSE"):
        (folder.path / name).write_bytes(b"?")
    folder.add("stray.jpg")
    assert folder.prepared().classes == ["a", "b"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"data.folder {folder.path}: left out: 7 hidden files and folders (")
    assert "2 .txt" in line and "1 .heic" in line and "1 without suffix" in line
    assert "1 images directly in imgs/ are of no class" in line


def test_all_that_pillow_reads_is_read(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["0.PNG", "1.gif", "2.jfif", "3.jpe", "4.JPEG", "5.webp", "6.bmp", "7.tiff", "8.pgm", "9.pcx", "10.jp2"]
    names += ["11.mpo"]
    for i, name in enumerate(names):
        options = {"format": "JPEG"} if name.endswith(("jfif", "jpe")) else {}
        folder.add(f"a/{name}", np.full((16, 16), 20 * i, np.uint8), **options)
        folder.add(f"b/sub/deeper/{name}", np.full((16, 16), 255 - 20 * i, np.uint8), **options)
    prepared = folder.prepared()
    parts = (prepared.train, prepared.validation, prepared.test)
    assert sum(map(len, parts)) == 24
    shades = torch.cat([part.images for part in parts]).float().mean((1, 2, 3)).round().int()
    assert sorted(shades.tolist()) == sorted([20 * i for i in range(12)] + [255 - 20 * i for i in range(12)])
    assert capsys.readouterr().out.endswith(": sub-folders count for their class: b/sub\n")


def test_the_first_frame_of_what_moves_is_used(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.new("L", (16, 16), shade) for shade in (50, 150, 250)]
    read = folder.all_of(frames[0], ".gif", save_all=True, append_images=frames[1:])
    assert read.float().mean() == 50
    assert "6 files of several frames: the first is used" in capsys.readouterr().out


@pytest.mark.parametrize("test", ["test", "Testing", None])
@pytest.mark.parametrize("validation", ["val", "valid", "Validation", None])
def test_a_folder_with_train_and_test_is_split_so(folder: Folder, test: str | None, validation: str | None) -> None:
    train = "Training" if test == "Testing" else "train"
    folder.fill(f"{train}/a", f"{train}/b", count=10)
    for part, shade in ((test, 200), (validation, 240)):
        for i in range(3):
            for name in ("a", "b") if part else ():
                folder.add(f"{part}/{name}/{i}.png", shade)
    prepared = folder.prepared()
    assert prepared.classes == ["a", "b"]
    shade = {"test": 200 if test else 240 if validation else None, "validation": 240 if test and validation else None}
    for role, wanted in shade.items():
        found = set(getattr(prepared, role).images.flatten().tolist())
        assert found == {wanted} if wanted else max(found) < 100, "none of its own: some of those to train on"
    assert max(prepared.train.images.flatten().tolist()) < 100


def test_parts_that_do_not_fit_together_are_refused(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.fill("train/a", "train/b")
    folder.fill("test/a", "test/c")
    assert "test has images of c, training has none" in folder.refused()
    folder.path = folder.path.with_name("flat")
    folder.fill("train", "val")
    assert "train: 4 images, and no folders of classes; put the images of each class in" in folder.refused()
    folder.path = folder.path.with_name("twice")
    folder.fill("train/a", "training/a", "test/a")
    assert "train and training are both train" in folder.refused()
    folder.path = folder.path.with_name("inside")
    folder.fill("a/train", "a/test", "b/train", "b/test")
    assert "a: train and test below a class; put the classes below train and test" in folder.refused()
    folder.path = folder.path.with_name("headless")
    folder.fill("val/a", "test/a")
    assert "test, val, but no train" in folder.refused()
    folder.path = folder.path.with_name("vehicles")  # a class may be called train
    folder.fill("train", "bus")
    assert folder.prepared().classes == ["bus", "train"]
    folder.path = folder.path.with_name("unlabelled")  # as competitions have it
    folder.fill("train/a", "train/b", "test", "extra")
    capsys.readouterr()
    assert len(folder.prepared().test) == 2
    said = capsys.readouterr().out
    assert "test/ holds no folders of classes, so its 4 images are not used" in said
    assert "beside train/, not used: extra" in said


@pytest.mark.parametrize(
    "parts", [("train_set", "val_set"), ("seg_train/seg_train", "seg_test/seg_test"), ("train", "eval")]
)
def test_parts_of_other_names_are_not_taken_for_classes(folder: Folder, parts: tuple[str, str]) -> None:
    folder.fill(*(f"{part}/{name}" for part in parts for name in "ab"))
    said = folder.refused()
    assert "hold the same folders (a, b), as parts of the images do; call them train, val and test" in said
    assert all(part.partition("/")[0] in said for part in parts)


def test_folders_within_classes_belong_to_them(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.fill(*(f"{kind}/{place}" for kind in ("cat", "dog") for place in ("indoors", "outdoors")))
    folder.fill("train/electric", "train/steam", "test tube/glass", "test tube/plastic")
    assert folder.prepared().classes == ["cat", "dog", "test tube", "train"]
    said = capsys.readouterr().out
    assert "sub-folders count for their class: cat/indoors, cat/outdoors, dog/indoors and 5 more" in said
    folder.path = folder.path.with_name("beside")
    folder.fill("train/cat", "train/dog", "unlabelled")
    assert "train holds folders (cat, dog), as a part of the images does, and unlabelled does not" in folder.refused()


def test_what_is_no_file_is_left_out(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.fill("a", "b")
    os.mkfifo(folder.path / "a/never.png")  # whoever opens it waits for ever
    assert folder.prepared().classes == ["a", "b"]
    assert "left out: 1 .png" in capsys.readouterr().out


def test_the_class_that_is_too_small_is_named(folder: Folder) -> None:
    folder.fill("a", "b")
    folder.fill("few", count=1)
    assert "class few has 1 image; each needs at least 3" in folder.refused()
    folder.fill("a2", "b2", count=0)
    (folder.path / "empty").mkdir()
    assert "class empty has no image that can be read; remove it" in folder.refused()
    (folder.path / "empty/0.heic").write_bytes(b"?")
    assert "class empty has no image that can be read (left out: 1 .heic); remove it" in folder.refused()
    folder.path = folder.path.with_name("official")
    folder.fill("train/a", "train/b", "test/a", "test/b")
    folder.fill("train/few", "test/few", count=1)
    assert "class few has 1 image to train on; each needs at least 2" in folder.refused()
    folder.path = folder.path.with_name("none")
    folder.path.mkdir()
    assert "0 images, and no folders of classes" in folder.refused()
    folder.path = folder.path.with_name("file")
    folder.path.write_text("")
    assert "file: not a directory" in folder.refused()


def test_files_that_are_no_images_are_named(folder: Folder, tmp_path: Path) -> None:
    folder.fill("a", "b")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    for suffix in ("jpg", "png", "gif", "webp", "tif"):
        path = folder.add(f"a/cut.{suffix}", noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert f"a/cut.{suffix}: not a readable image (" in folder.refused()
        path.unlink()
    (folder.path / "a/nothing.jpg").touch()
    (folder.path / "b/text.png").write_text("no picture")
    (folder.path / "b/gone.png").symlink_to(tmp_path / "gone.png")
    refusal = folder.refused()
    assert "a/nothing.jpg: not a readable image (" in refusal and "(2 more files are like it)" in refusal


def test_a_long_strip_takes_no_more_memory_than_its_middle(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, resize = [], Image.Image.resize

    def noted(image: Image.Image, size: tuple[int, int], *given: Any, **more: Any) -> Image.Image:
        sizes.append(size)
        return resize(image, size, *given, **more)

    monkeypatch.setattr(Image.Image, "resize", noted)
    strip = np.zeros((1, 4000), np.uint8)
    strip[:, 1998:2002] = 200  # all that the square shows
    for picture in (strip, strip.T):
        assert folder.all_of(picture, ".png")[0, 8, 8] == 200
    assert max(wide * high for wide, high in sizes) <= 16 * 16 * 17

    def full(*given: Any, **more: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", full)
    assert "takes more memory than there is; make it smaller, or remove it" in folder.refused()


def test_names_of_all_kinds(folder: Folder) -> None:
    folder.fill("zwölf", "Äpfel")
    assert folder.prepared().classes == ["zwölf", "Äpfel"]
    folder.path = folder.path.with_name("normal")
    for part, form in (("train", "NFC"), ("test", "NFD")):
        folder.fill(*(f"{part}/{unicodedata.normalize(form, name)}" for name in ("é", "e")))
    assert folder.prepared().classes == ["e", "é"]
    written = [unicodedata.normalize("NFD", "é"), "e"]
    assert folder.prepared(classes=written).classes == ["é", "e"]
    for name in (b"caf\xe9", b"caf\xe8"):  # Latin-1, which would both be caf?
        folder.fill(f"train/{os.fsdecode(name)}")
    assert r"caf\udce8': its name is not UTF-8; rename it" in folder.refused()


def test_links_are_followed_where_dvc_follows_them(folder: Folder, tmp_path: Path) -> None:
    folder.fill("a", "b")
    (tmp_path / "link").symlink_to(folder.path)
    (folder.path / "a/linked.png").symlink_to(folder.path / "b/0.png")
    folder.path = tmp_path / "link"
    prepared = folder.prepared()
    assert sum(len(part) for part in (prepared.train, prepared.validation, prepared.test)) == 9
    for place in ("c", "a/within"):
        (folder.path / place).symlink_to(folder.path / "b")
        assert f"{place}: a link to a folder, and DVC would not see its images change; copy" in folder.refused()
        (folder.path / place).unlink()


def test_a_limit_leaves_every_class_its_share(values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(12).repeat_interleave(torch.tensor([150, 40] + 10 * [4]))
    source = images.Source(
        data.Split(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels), None, list("abcdefghijkl")
    )
    monkeypatch.setattr(preparing.sources, "read", lambda p: source)
    prepared = data.prepare(section(values, limit=100), seed=0).read()
    counts = torch.bincount(prepared.train.labels) + torch.bincount(prepared.validation.labels)
    assert counts.sum() == 100 and torch.bincount(prepared.train.labels).min() >= 1
    assert 60 <= counts[0] <= 68 and 15 <= counts[1] <= 18
    assert (torch.bincount(prepared.validation.labels, minlength=12) >= 1).all()
    too_few = section(values).model_copy(update={"limit": 20})
    with pytest.raises(DataError, match="data.limit 20: give at least 24, for there are 12 classes"):
        data.prepare(too_few, seed=0)


@pytest.mark.parametrize("counts", [[5, 5, 5], [100, 1, 1], [7, 0, 3], [1, 2, 3, 4, 5]])
def test_quotas_add_up(counts: list[int]) -> None:
    for limit in range(2 * len(counts), sum(counts) + 2):
        quotas = preparing._quotas(counts, limit, 2)
        assert sum(quotas) == min(limit, sum(counts))
        for quota, count in zip(quotas, counts, strict=True):
            assert min(2, count) <= quota <= count


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torchvision root where nothing can be downloaded."""

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    return tmp_path / "raw"


def of_torchvision(values: Any, root: Path, name: str, **changes: Any) -> data.Splits:
    given = {"source": f"torchvision.datasets.{name}", "root": str(root), "image_size": 16, "channels": 3, **changes}
    return data.prepare(section(values, **given), seed=0).read()


def idx(path: Path, array: np.ndarray, kind: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, kind, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(head + array.tobytes())


def photos(place: Path, suffix: str, count: int, shade: int) -> None:
    place.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (20 + i, 24), (shade, shade, shade)).save(place / f"{i}{suffix}", format="JPEG")


def shades(part: data.Split) -> set[int]:
    return set(part.images.flatten().tolist())


def test_emnist_needs_a_name_of_its_split(values: Any, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, count in (("train", 260), ("test", 52)):
        raw = root / "EMNIST/raw"
        idx(raw / f"emnist-letters-{part}-images-idx3-ubyte", np.zeros((count, 28, 28), np.uint8))
        idx(raw / f"emnist-letters-{part}-labels-idx1-ubyte", (np.arange(count) % 26 + 1).astype(np.uint8))
    needs = (
        r"EMNIST: needs split; set data.arguments: \{split: byclass\}; it is one of byclass, .*, letters, digits, mnist"
    )
    with pytest.raises(DataError, match=needs):
        of_torchvision(values, root, "EMNIST")
    prepared = of_torchvision(values, root, "EMNIST", arguments={"split": "letters"})
    assert prepared.classes == list("abcdefghijklmnopqrstuvwxyz") and len(prepared.test) == 52
    assert "there are no images of N/A: left out" in capsys.readouterr().out
    every = ["N/A", *prepared.classes]
    assert of_torchvision(values, root, "EMNIST", arguments={"split": "letters"}, classes=every).test.labels.min() == 1


def test_qmnist(values: Any, root: Path) -> None:
    for part, count in (("train", 100), ("test", 40)):
        labels = np.zeros((count, 8), ">i4")
        labels[:, 0], labels[:, 1] = np.arange(count) % 10, 77  # the digit, and who wrote it
        idx(root / f"QMNIST/raw/qmnist-{part}-images-idx3-ubyte", np.zeros((count, 28, 28), np.uint8))
        idx(root / f"QMNIST/raw/qmnist-{part}-labels-idx2-int", labels, kind=12)
    prepared = of_torchvision(values, root, "QMNIST")
    assert len(prepared.test) == 40 and prepared.test.labels.tolist() == [i % 10 for i in range(40)]
    whole = of_torchvision(values, root, "QMNIST", arguments={"what": "test"})
    assert sum(map(len, (whole.train, whole.validation, whole.test))) == 40, "no image is in two parts"


def test_a_download_that_failed_is_tried_again(values: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(self: Any) -> None:
        asked.append(self.root)
        (Path(self.root) / "MNIST/raw").mkdir(parents=True, exist_ok=True)
        raise RuntimeError("no network:\n- mirror one\n- mirror two")

    monkeypatch.setattr(datasets.MNIST, "download", download)
    for tries in (1, 2):
        with pytest.raises(DataError, match=r"when downloading: no network: - mirror one - mirror two\); point"):
            preparing.prepare(section(values, source="mnist", root=str(root / "new")), 0)
        assert len(asked) == tries


def test_imagenette_is_tested_on_its_validation_images(
    values: Any, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count, shade in (("train", 6, 50), ("val", 3, 200)):
        for name in ("n01440764", "n02102040"):
            photos(root / f"imagenette2-160/{part}/{name}", ".JPEG", count, shade)
    with pytest.raises(DataError, match=r"Imagenette: the files under .* cannot be used \(Dataset not found; when"):
        of_torchvision(values, root, "Imagenette")
    prepared = of_torchvision(values, root, "Imagenette", arguments={"size": "160px"})
    assert prepared.classes == ["tench", "English springer"]
    assert shades(prepared.test) == {200} and shades(prepared.train) == shades(prepared.validation) == {50}
    assert "train to train on, val to test on" in capsys.readouterr().out
    with pytest.raises(DataError, match="data.arguments: Unknown value '5px' for argument size. Valid values are"):
        of_torchvision(values, root, "Imagenette", arguments={"size": "5px"})


@pytest.mark.parametrize(
    ("arguments", "classes"), [({}, ["Bengal", "Beagle"]), ({"target_types": "binary-category"}, ["0", "1"])]
)
def test_pets(values: Any, root: Path, arguments: Any, classes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    place = root / "oxford-iiit-pet"
    photos(place / "images", ".jpg", 0, 0)
    (place / "annotations").mkdir()
    for part, count, shade in (("trainval", 6, 50), ("test", 3, 200)):
        lines = []
        for number, breed in ((1, "Bengal"), (2, "beagle")):
            for i in range(count):
                Image.new("RGB", (30, 20), (shade,) * 3).save(place / f"images/{breed}_{part}{i}.jpg")
                lines.append(f"{breed}_{part}{i} {number} {number} 1")
        (place / f"annotations/{part}.txt").write_text("\n".join(lines))
    prepared = of_torchvision(values, root, "OxfordIIITPet", arguments=arguments)
    assert prepared.classes == classes
    assert shades(prepared.test) == {200} and shades(prepared.train) == shades(prepared.validation) == {50}
    assert "trainval to train on, test to test on" in capsys.readouterr().out


def test_data_sets_with_validation_images_of_their_own(values: Any, root: Path) -> None:
    for part, shade in (("train", 50), ("valid", 120), ("test", 200)):
        for name in ("AD", "AE"):
            photos(root / f"country211/{part}/{name}", ".jpg", 3, shade)
    prepared = of_torchvision(values, root, "Country211")
    assert [shades(getattr(prepared, part)) for part in ("train", "validation", "test")] == [{50}, {120}, {200}]
    whole = of_torchvision(values, root, "Country211", arguments={"split": "valid"})
    assert all(shades(getattr(whole, part)) == {120} for part in ("train", "validation", "test"))


def test_data_sets_without_parts_are_split(values: Any, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shade in (("Forest", 50), ("River", 120)):
        photos(root / f"eurosat/2750/{name}", ".jpg", 10, shade)
    prepared = of_torchvision(values, root, "EuroSAT")
    assert prepared.classes == ["Forest", "River"] and len(prepared.test) == 4
    assert shades(prepared.test) == {50, 120} and not prepared.official
    assert "all images to train on, 20% of them to test on" in capsys.readouterr().out


def test_test_images_without_labels_are_passed_over(values: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    place = root / "stl10_binary"
    place.mkdir(parents=True)
    for part, shade in (("train", 50), ("test", 200)):
        np.full((20, 3, 96, 96), shade, np.uint8).tofile(place / f"{part}_X.bin")
        (np.arange(20, dtype=np.uint8) % 2 + 1).tofile(place / f"{part}_y.bin")
    np.full((5, 3, 96, 96), 9, np.uint8).tofile(place / "unlabeled_X.bin")
    assert shades(of_torchvision(values, root, "STL10").test) == {200}
    with pytest.raises(DataError, match="STL10: there are images without labels in the part to train on"):
        of_torchvision(values, root, "STL10", arguments={"split": "unlabeled"})

    class Clevr(datasets.VisionDataset):  # as CLEVRClassification: the labels of the test part are secret
        def __init__(self, root: str, split: str = "train") -> None:
            self.shade = {"train": 50, "val": 120, "test": 200}[split]

        def __len__(self) -> int:
            return 12

        def __getitem__(self, i: int) -> Any:
            return Image.new("RGB", (30, 20), (self.shade,) * 3), None if self.shade == 200 else i % 2 + 3

    monkeypatch.setattr(datasets, "Clevr", Clevr, raising=False)
    monkeypatch.setattr(torchvision, "_values", lambda *args: ["train", "val", "test"])
    prepared = of_torchvision(values, root, "Clevr")
    assert prepared.classes == ["3", "4"], "no image shows fewer things"
    assert shades(prepared.test) == {120} and shades(prepared.validation) == {50}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("CIFAR10", {"split": "train"}, "data.arguments: split: not to be set; CIFAR10 takes none"),
        ("CIFAR10", {"train": True}, "data.arguments: train: not to be set"),
        ("ImageFolder", {}, "give data.source: folder, and data.folder"),
        ("FakeData", {}, "no data set of torchvision with labelled images in files"),
        ("ImageNet", {}, r"cannot be used \(The archive ILSVRC2012_devkit_t12.tar.gz is not present"),
        ("USPS", {}, r"cannot be used \(.*No such file .*; when downloading: <urlopen error no network>\)"),
        ("StanfordCars", {}, r"cannot be used \(Dataset not found; when downloading: The original URL is broken"),
        ("LSUN", {}, "a package is missing: .*lmdb"),
        ("UCF101", {}, "needs annotation_path; set data.arguments"),
        ("CocoDetection", {}, "needs annFile; set data.arguments"),
    ],
)
def test_what_to_set_is_said_in_one_line(
    values: Any, root: Path, name: str, arguments: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DataError, match=message) as error:
        of_torchvision(values, root, name, arguments=arguments)
    assert "\n" not in str(error.value) and "elete" not in str(error.value)


def test_labels_that_are_no_classes_are_refused(values: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faces(datasets.VisionDataset):
        def __init__(self, root: str, train: bool = True, target_type: str = "attr") -> None:
            self.label = torch.zeros(40) if target_type == "attr" else 1

        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> Any:
            return Image.new("L", (30, 20)), self.label

    monkeypatch.setattr(datasets, "Faces", Faces, raising=False)
    with pytest.raises(DataError, match="its labels are not numbers of classes; set target_type in data.arguments"):
        of_torchvision(values, root, "Faces")
    with pytest.raises(DataError, match=r"one class \(1\) only"):
        of_torchvision(values, root, "Faces", arguments={"target_type": "identity"})
    with pytest.raises(params.ParamsError, match="data.arguments are for torchvision.datasets"):
        section(values, arguments={"split": "letters"})


DIGITS = [str(digit) for digit in range(10)]


class Workspace:
    """params.yaml, what `prepare` makes by it, and a model; the shade of an MNIST image is 25 times its class."""

    def __init__(self, values: Any, path: Path) -> None:
        self.values, self.path = values, path
        labels = np.arange(400) % 10
        for part in ("train", "t10k"):
            pixels = np.broadcast_to((labels * 25).astype(np.uint8)[:, None, None], (400, 28, 28))
            idx(path / f"data/raw/MNIST/raw/{part}-images-idx3-ubyte", pixels)
            idx(path / f"data/raw/MNIST/raw/{part}-labels-idx1-ubyte", labels.astype(np.uint8))

    def prepare(self, seed: int = 0, **changes: Any) -> data.Splits:
        """As the stage does."""
        values = {**self.values, "seed": seed, "data": {**self.values["data"], **changes}}
        YAML().dump(values, self.path / "params.yaml")
        data.save(data.prepare(params.load().data, seed), data.SPLITS)
        return data.load(data.SPLITS)

    def model(self, shape: tuple[int, int, int], provenance: Any, outputs: int = 10) -> Path:
        architecture = params.check(self.values).scorer.architecture.model_copy(update={"name": "shallow", "width": 2})
        spec = Spec.of(architecture, shape, outputs)
        network = of_params(architecture, spec, seed=0, where="scorer.architecture")
        artifact.save(artifact.dense(network, "classifier"), self.path / "model.safetensors", provenance)
        return self.path / "model.safetensors"


@pytest.fixture
def workspace(values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    return Workspace(values, tmp_path)


def scored(
    model: Path, order: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str
) -> str:
    """What `lowenergy score` says of a network that sees the shade, and has its outputs in this order of the digits."""

    def predict(network: Any, images: torch.Tensor, batch_size: int) -> torch.Tensor:
        digits = (images.float().mean((1, 2, 3)) / 25).round().long()
        return torch.eye(10)[torch.tensor([order.index(name) for name in DIGITS])[digits]]

    monkeypatch.setattr("lowenergy.scoring.accuracy.predict", predict)
    capsys.readouterr()
    code = cli.main(["score", str(model), *more])
    out, err = capsys.readouterr()
    assert code == (0 if out else 2) and err.count("\n") <= 1
    return out or err


def test_score_takes_the_classes_in_the_order_of_the_data(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = datasets.MNIST.classes[::-1]
    held = workspace.prepare(source="mnist", classes=names)
    model = workspace.model((1, 28, 28), {**held.provenance, "seed": 0})
    backwards = DIGITS[::-1]
    assert "accuracy 1.0000" in scored(model, backwards, monkeypatch, capsys)
    assert "accuracy 0.0000" in scored(model, DIGITS, monkeypatch, capsys)
    Path(data.SPLITS).unlink()
    for more in ([], ["--root", "data/raw"]):
        assert "accuracy 1.0000" in scored(model, backwards, monkeypatch, capsys, *more)
        for changes in ({"source": "mnist"}, {"source": "mnist", "classes": [*names[1:], names[0]]}, {}):
            workspace.prepare(**changes)
            refusal = scored(model, backwards, monkeypatch, capsys, *more)
            assert "data.source mnist: not the classes of the model, or not in its order; set data.classes" in refusal
        workspace.prepare(source="mnist", classes=names)
    older = workspace.model((1, 28, 28), {"data": "mnist", "seed": 0})  # of before models knew: what is prepared
    workspace.prepare(source="mnist", classes=names)
    assert "accuracy 1.0000" in scored(older, backwards, monkeypatch, capsys)
    Path("params.yaml").unlink()
    assert "accuracy 1.0000" in scored(older, DIGITS, monkeypatch, capsys, "--root", "data/raw"), "a stranger's"


def test_score_looks_at_the_images_that_the_pipeline_does(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = workspace.prepare(source="mnist", image_size=16, channels=3, limit=100)
    model = workspace.model((3, 16, 16), {**held.provenance, "seed": 0})
    assert "100 test images of mnist\naccuracy 1.0000" in scored(model, DIGITS, monkeypatch, capsys)
    Path(data.SPLITS).unlink()
    assert "100 test images of mnist\naccuracy 1.0000" in scored(model, DIGITS, monkeypatch, capsys)
    workspace.prepare(source="digits")
    assert "400 test images of mnist\naccuracy 1.0000" in scored(model, DIGITS, monkeypatch, capsys)


def test_score_by_a_root_that_has_no_test_images(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = workspace.model((1, 8, 8), {"data": "digits", "seed": 0})
    said = scored(model, DIGITS, monkeypatch, capsys, "--root", "data/raw")
    assert "data.source digits: has no test images of its own, at no root; without one" in said
    Path("params.yaml").unlink(missing_ok=True)
    assert scored(model, DIGITS, monkeypatch, capsys, "--root", "data/raw") == said


def test_score_says_what_it_cannot_look_at(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(provenance: Any, **model: Any) -> str:
        return scored(workspace.model((1, 8, 8), provenance, **model), DIGITS, monkeypatch, capsys)

    held = workspace.prepare(seed=0)
    assert "test images of digits" in refusal({"data": "digits", "seed": 0})
    assert "split with seed 0, the model's data with seed 1: it may have been trained on" in refusal(
        {"data": "digits", "seed": 1}
    )
    assert "test images of digits" in refusal({**held.provenance, "seed": 1}), "the same test images, by their mark"
    assert "not the test images that the model's training left out" in refusal({**held.provenance, "test": "12345678"})
    assert "has 5 outputs, too few for the classes" in refusal({"data": "digits", "seed": 0}, outputs=5)
    assert "does not say which data it was trained on" in refusal({})
    assert "data.source nothing: " in refusal({"data": "nothing", "seed": 0})
    assert "digits: not the classes of the model" in refusal({"data": "digits", "seed": 0, "classes": "12345678"})
    workspace.prepare(source="mnist")
    assert "splits.safetensors: holds mnist" in refusal({"data": "digits", "seed": 0})


@pytest.mark.parametrize("others", [False, True])
def test_a_model_made_of_another_says_which_test_images_both_left_out(workspace: Workspace, others: bool) -> None:
    held = workspace.prepare()
    left_out = "12345678" if others else held.test_mark
    start = workspace.model((1, 8, 8), {**held.provenance, "seed": 0, "test": left_out})
    nothing = {"epochs": 0}
    options: Any = {"amount": 0.3, "scan_images": 0, "finetune": nothing, "retrain": nothing, "accept_chance": True}
    made = lowenergy.compress(start, "prune", images=held, device="cpu", **options)
    assert made.provenance["test"] == ("mixed" if others else held.test_mark)


@pytest.fixture
def scorer(workspace: Workspace) -> Workspace:
    held = workspace.prepare()
    architecture = params.load().scorer.architecture.model_copy(update={"width": 4})
    network = of_params(architecture, Spec.of(architecture, (1, 8, 8), 10), seed=0, where="scorer.architecture").eval()
    artifact.save(artifact.dense(network, "scorer"), "models/scorer.safetensors", held.provenance)
    real = {"train": held.train.images, "validation": held.validation.images}
    generation.write_reference(network, real, "models/reference.safetensors")
    return workspace


def test_fid_reads_arrays_as_programs_write_them(scorer: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    images = data.load(data.SPLITS).test.images.numpy()
    np.savez("plain.npz", images=images)
    np.savez_compressed("squeezed.npz", images=images[:, 0], labels=np.arange(3))
    np.savez("unnamed.npz", images)
    np.save("array.npy", images)
    np.save("last.npy", images.transpose(0, 2, 3, 1))
    np.save("fortran.npy", np.asfortranarray(images))
    shown = []
    for name in ("plain.npz", "squeezed.npz", "unnamed.npz", "array.npy", "last.npy", "fortran.npy"):
        assert cli.main(["fid", name]) == 0
        shown.append(capsys.readouterr().out.partition(": ")[2])
    assert len(set(shown)) == 1 and f"{len(images)} images\nfid " in shown[0]


def test_fid_of_what_is_no_images_is_one_line(scorer: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.zeros((20, 8, 8), np.uint8)
    arrays = {
        "one.npy": images[:1],
        "none.npy": images[:0],
        "float.npy": images / 255,
        "nan.npy": np.full((20, 8, 8), np.nan, np.float32),
        "wide.npy": images.astype(np.int64),
        "bool.npy": images > 0,
        "words.npy": np.array(["a"]),
        "number.npy": np.uint8(3),
        "flat.npy": images.reshape(20, 64),
        "single.npy": images[0],
        "colour.npy": np.zeros((20, 3, 8, 8), np.uint8),
        "large.npy": np.zeros((20, 9, 8), np.uint8),
        "many.npy": np.zeros((20, 1, 1, 8, 8), np.uint8),
    }
    for name, array in arrays.items():
        np.save(name, array)
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    np.savez("others.npz", a=images, b=images)
    np.savez("nothing.npz")
    whole = Path("others.npz").read_bytes()
    with zipfile.ZipFile("foreign.zip", "w") as archive:
        archive.writestr("images", "no array")
    files = {
        "cut.npz": whole[: len(whole) // 2],
        "empty.npz": b"",
        "text.npz": b"no archive",
        "pickle.npy": b"\x80\x04.",
    }
    files["cut.npy"] = Path("wide.npy").read_bytes()[:-1]
    for name, content in files.items():
        Path(name).write_bytes(content)
    Path("folder").mkdir()
    for name in (*arrays, *files, "objects.npy", "others.npz", "nothing.npz", "foreign.zip", "folder", "missing.npz"):
        assert cli.main(["fid", name]) == 2, name
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"{name}: ") and err.count("\n") == 1 and "pickle=" not in err, err
        if name in ("one.npy", "none.npy"):
            assert "FID needs at least 2" in err
        if "float" in name or name == "wide.npy":
            assert "where uint8 is needed, 0 for black and 255 for white" in err


def test_fid_wants_the_statistics_of_its_scorer(scorer: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("images.npy", np.zeros((20, 8, 8), np.uint8))
    architecture = params.load().scorer.architecture.model_copy(update={"width": 4})
    another = of_params(architecture, Spec.of(architecture, (1, 8, 8), 10), seed=1, where="scorer.architecture").eval()
    reference = Path("models/reference.safetensors")
    wider = {f"train.{name}": torch.zeros(shape) for name, shape in (("sum", 3), ("cov_sum", (3, 3)))}
    files.write_safetensors(reference, {**wider, "train.num_samples": torch.tensor(9)}, {})
    assert cli.main(["fid", "images.npy"]) == 2
    assert "statistics of other features than the scorer's" in capsys.readouterr().err
    generation.write_reference(another, {"train": data.load(data.SPLITS).train.images}, reference)
    assert cli.main(["fid", "images.npy"]) == 2
    assert "statistics of other features than the scorer's" in capsys.readouterr().err
    reference.unlink()
    assert cli.main(["fid", "images.npy"]) == 2
    assert "reference.safetensors: no such file" in capsys.readouterr().err
    with pytest.raises(UserError, match="1 images: FID needs at least 2"):
        network = loading.dense_network(artifact.read("models/scorer.safetensors")[0])
        generation.measure(network, reference, torch.zeros(1, 1, 8, 8), 0)


def test_the_digest_of_splits_covers_all_that_is_trained_on(workspace: Workspace, tmp_path: Path) -> None:
    held = workspace.prepare()
    assert held.digest == data.prepare(params.load().data, 0).read().digest, "of the file, and computed"
    content = Path(data.SPLITS).read_bytes()
    assert content[-32:].hex() == held.digest == hashlib.sha256(content[:-32]).hexdigest()
    pixel = held.train.images.clone()
    pixel[0, 0, 0, 0] += 1
    label = held.train.labels.clone()
    label[0] = (label[0] + 1) % 10
    others = {
        "pixel": replace(held, train=data.Split(pixel, held.train.labels)),
        "label": replace(held, train=data.Split(held.train.images, label)),
        "classes": replace(held, classes=held.classes[::-1]),
        "normalisation": replace(held, normalisation=([0.5], [0.5])),
    }
    assert len({held.digest, *(other.digest for other in others.values())}) == 5
    for name, other in others.items():
        data.save(other, tmp_path / name)
        assert data.load(tmp_path / name).digest == other.digest
    tensors, header = files.read_safetensors(data.SPLITS)  # a file of before there were digests
    del tensors["digest"]
    files.write_safetensors(tmp_path / "older", tensors, {key: header[key] for key in ("classes", "source")})
    assert data.load(tmp_path / "older").digest == replace(held, seed=None, official=True).digest


def test_more_images_than_a_device_holds_stay_where_they_are(
    small: params.Params, splits: data.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are moved instead, and what is trained is the same bit for bit."""
    moved = splits.train.to(torch.device("meta"))
    assert moved.images.is_meta
    monkeypatch.setattr(images, "fits", lambda *args: False)
    kept = splits.train.to(torch.device("meta"))
    assert kept.images is splits.train.images and kept.device.type == "meta"
    for index in (torch.tensor([1, 2]), slice(0, 2)):
        assert Floats(kept, torch.arange(9))[index].is_meta
    batch = kept.take(torch.tensor([1, 2]))
    assert batch.images.is_meta and batch.labels.is_meta
    train = small.classifier.train.model_copy(update={"epochs": 1})
    p = small.classifier.model_copy(update={"train": train})
    networks = []
    for fits in (True, False):
        monkeypatch.setattr(images, "fits", lambda *args, fits=fits: fits)
        run = Run("classifier", 0, [], root=tmp_path / str(fits))
        networks.append(classifier.train(splits, p, run))
    for one, other in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert torch.equal(one, other)


def test_what_a_gpu_holds_is_a_share_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        total_memory = 4 * 1000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Small)
    device = torch.device("cuda")
    for count, fits in ((1000, True), (1001, False)):
        assert images.fits(torch.zeros(count, dtype=torch.uint8), device) is fits
    assert images.fits(torch.zeros(10**6, dtype=torch.uint8), torch.device("cpu"))
