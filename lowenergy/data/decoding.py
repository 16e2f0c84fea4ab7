"""Decode image files to the 8-bit pixels that a viewer shows: upright, on white, 16 bits and floats as 0..255."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lowenergy.base.errors import one_line
from lowenergy.data.images import DataError

if TYPE_CHECKING:
    from PIL import Image as Pillow

# Formats whose suffix Pillow knows, but which it cannot draw without help from elsewhere.
NOT_DRAWN = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}

# Values that may mean white in pixels of more than 8 bits. With 16 bits there is only one; otherwise the brightest
# pixel of the whole folder decides, so that a dark image stays darker than its neighbours.
WHITES = {
    "16-bit": (65535.0,),
    "signed 16-bit": (32767.0,),
    "32-bit integer": (255.0, 65535.0),
    "float": (1.0, 255.0, 65535.0),
}
DARKEST = 1 / 16  # fraction of white that the brightest pixel must reach: below it, less than 4 of 8 bits are left

LONGEST = 16  # longer side of a picture that is resized as a whole, in multiples of the shorter one

# Tags of Exif and of TIFF.
ORIENTATION, PHOTOMETRIC, BITS, SIGNED, PLANES = 0x0112, 0x0106, 0x0102, 0x0153, 0x011C
TURNS = {  # by orientation. ImageOps.exif_transpose also rewrites the metadata, and fails if they are odd
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of the files that Pillow can draw, in lower case."""
    from PIL import Image

    Image.init()
    drawn = (Image.OPEN.keys() - NOT_DRAWN) | {"MPO"}  # which is opened as the JPEG that it begins with
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in drawn)


@contextmanager
def opened(path: str) -> Iterator["Pillow.Image"]:
    """Open the image in a file.

    Raises:
        DataError: it is not a readable image or takes too much memory, here or in the body of the `with`.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            _check_tags(getattr(image, "tag_v2", {}), image.mode, path)
            yield image
    except (DataError, PermissionError):
        raise
    except MemoryError:
        raise DataError(f"{path}: takes more memory than there is; make it smaller, or remove it") from None
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise DataError(f"{path}: not a readable image ({one_line(error)}); repair, convert or remove it") from None


def _check_tags(tags: Mapping[int, Any], mode: str, path: str) -> None:
    """Check that a TIFF is none of those that Pillow reads as something else.

    Raises:
        DataError: its colours of 16 bits lie in planes of their own, or its 8 bits are signed.
    """
    bits = tags.get(BITS, ())
    if 16 in bits and len(bits) > 1 and tags.get(PLANES) == 2:
        raise DataError(f"{path}: colours of 16 bits in planes of their own, which Pillow misreads; convert to 8 bits")
    if 2 in tags.get(SIGNED, ()) and mode not in ("I", "F") and not mode.startswith("I;16"):
        raise DataError(f"{path}: signed pixels of {bits[0] if bits else 1} bits; convert the folder to unsigned ones")


def depth(image: "Pillow.Image") -> str | None:
    """The kind of an image's pixels of more than 8 bits, a key of WHITES; None if Pillow converts them correctly."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return "16-bit"
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(BITS) == (16,) and tags.get(SIGNED) == (2,):
        return "signed 16-bit"
    return {"I": "32-bit integer", "F": "float"}.get(image.mode)


@dataclass(frozen=True)
class Survey:
    """What must be known about all files of a folder before any of them is converted."""

    whites: dict[str, float]  # the value of white, by depth
    remarks: list[str]


def survey(paths: Sequence[str]) -> Survey:
    """Open every file; decode those with more than 8 bits.

    Raises:
        DataError: files are not images, or nobody can say which value of their pixels is white; the message names one.
    """
    brightest: dict[str, tuple[float, str]] = {}
    unreadable: list[DataError] = []
    moving = transparent = 0
    for path in paths:
        try:
            with opened(path) as image:
                # An MPO is one photo and its previews.
                moving += image.format != "MPO" and bool(getattr(image, "is_animated", False))
                transparent += image.has_transparency_data
                kind = depth(image)
                if kind is not None:
                    brightest[kind] = max(brightest.get(kind, (0.0, path)), (_brightest(image, kind, path), path))
        except DataError as error:
            unreadable.append(error)
    if unreadable:
        more = f" ({len(unreadable) - 1} more files are like it)" if len(unreadable) > 1 else ""
        raise DataError(f"{unreadable[0]}{more}")
    remarks = [f"{moving} files of several frames: the first is used"] * (moving > 0)
    remarks += [f"{transparent} with an alpha channel: put on white"] * (transparent > 0)
    whites = {kind: _white(kind, *value_and_path) for kind, value_and_path in brightest.items()}
    remarks += [f"{kind} pixels: {white:g} is white" for kind, white in whites.items()]
    return Survey(whites, remarks)


def _brightest(image: "Pillow.Image", kind: str, path: str) -> float:
    pixels = np.asarray(image)
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= max(WHITES[kind])):  # also true of NaN
        known = " or ".join(f"0..{white:g}" for white in WHITES[kind])
        raise DataError(f"{path}: {kind} pixels from {low:g} to {high:g}, not {known}; convert the folder to 8 bits")
    return high


def _white(kind: str, high: float, path: str) -> float:
    for white in WHITES[kind]:
        if white * DARKEST <= high <= white:
            return white
    known = " or ".join(f"{white:g}" for white in WHITES[kind])
    raise DataError(
        f"{path}: no {kind} pixel of the folder is brighter than {high:g}, and white is {known}; convert the folder to "
        "8 bits, all files by the same factor"
    )


def eight_bit(image: "Pillow.Image", channels: int, whites: Mapping[str, float]) -> "Pillow.Image":
    """Convert an image to mode L or RGB, upright, with white where it is transparent.

    Args:
        whites: see survey.
    """
    from PIL import Image

    hole = _hole(image)
    image.load()  # Pillow turns a TIFF upright here
    turn = TURNS.get(_orientation(image))
    kind = depth(image)
    if kind is not None:
        pixels = np.asarray(image) * (255 / whites[kind])
        if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:  # 0 is white, which Pillow heeds only in 8 bits
            pixels = 255 - pixels
        if isinstance(hole, int):
            pixels[np.asarray(image) == hole] = 255
        image = Image.fromarray(np.round(pixels).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        if hole is not None:
            image.info["transparency"] = hole
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "LAB":
        image = image.convert("RGB")  # the only way from LAB to grey
    if turn is not None:
        image = image.transpose(Image.Transpose[turn])
    return image.convert("L" if channels == 1 else "RGB")


def _hole(image: "Pillow.Image") -> Any:
    """The one value that a PNG leaves transparent, in the pixels that Pillow makes of it; None if there is none.

    Pillow stretches grey of 1, 2 and 4 bits to 8, and keeps the upper 8 bits of colours of 16, but not here.
    """
    hole = image.info.get("transparency")
    tiles = getattr(image, "tile", None)  # not of images in memory
    raw = str(tiles[0][3]) if image.format == "PNG" and tiles else ""
    if isinstance(hole, int) and (raw == "1" or raw.startswith("L;")):
        return hole * 255 // (2 ** int(raw.removeprefix("L;")) - 1)
    return tuple(value >> 8 for value in hole) if isinstance(hole, tuple) and raw.startswith("RGB;16") else hole


def _orientation(image: "Pillow.Image") -> int:
    """As Exif says it; 1, upright, if that is damaged."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises nearly anything on damaged metadata, of some formats alone
        return 1


def square(image: "Pillow.Image", size: int) -> Tensor:
    """Resize an image of mode L or RGB to a shorter side of `size`, and crop its centre: (c, size, size) uint8."""
    from torchvision.transforms.v2 import functional as V

    short = min(image.size)
    if max(image.size) > LONGEST * short:  # its ends lie outside the square, and would be resized to gigabytes
        image = V.center_crop(image, [min(side, LONGEST * short) for side in reversed(image.size)])
    cut = V.center_crop(V.resize(image, [size], antialias=True), [size])
    pixels: Tensor = V.pil_to_tensor(cut)
    return pixels
