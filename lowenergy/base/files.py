"""Read and write files so that a kill leaves either the old file or the new one, never half a file."""

import base64
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zstandard

from lowenergy.base.errors import UserError

if TYPE_CHECKING:  # torch is imported only where tensors are handled, so that everything else starts at once
    from torch import Tensor

HEADER = "lowenergy"  # the only metadata key: a JSON object, or its zstd in base 85
LARGEST_HEADER = 2**22  # bytes of JSON, which take thirty times as many in memory; a thousand tensors need 200 kB
DEEPEST_HEADER = 32  # levels of nested lists and objects
MOST_TENSORS = 2**16
MOST_DIMENSIONS = 8
DTYPES = ("BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64", "C64")
_writes = True


class FileError(UserError):
    """A file is missing, truncated or not what it should be; the message names it and what to do."""


def write_bytes(path: str | Path, content: bytes, check: Callable[[Path], None] | None = None) -> None:
    """Write beside the target, flush to disk, then rename over it.

    Args:
        check: looks at what was written before it takes the target's name; if it raises, no trace is left.
    Raises:
        OSError: the file cannot be written; what was there before still is, and no half-written file is left behind.
        FileError: the target exists and is not a regular file.
    """
    write_pieces(path, [content], check)


def write_pieces(path: str | Path, pieces: Iterable[bytes], check: Callable[[Path], None] | None = None) -> None:
    """Like write_bytes, for content that need not be in memory all at once.

    An error while the pieces are being made leaves no trace either.

    Raises:
        OSError, FileError: see write_bytes.
    """
    path = Path(path)
    if not _writes:
        return
    with _beside(path) as part:
        with part.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(part)
        part.replace(path)


def check_place(path: str | Path) -> None:
    """Check that a file can be written there, before anything is computed for it.

    Raises:
        OSError, FileError: see write_bytes.
    """
    if _writes:
        with _beside(Path(path)) as part:
            part.open("wb").close()
            part.unlink()


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Where to write what is to become `path`. After an error this file is removed; an OSError then names `path`."""
    if not path.name or path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():  # a device, for example, would be replaced by a file
        raise FileError(f"{path}: there is something that is no file; give another name")
    part = path.with_name(f".{path.name}.lowenergy.part")  # a name that nobody else would use
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextmanager
def left_to_another() -> Iterator[None]:
    """Write nothing within the block: if several processes share a stage (team.py), only the first one writes."""
    global _writes
    _writes = False
    try:
        yield
    finally:
        _writes = True


def write_json(path: str | Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_safetensors(path: str | Path, tensors: Mapping[str, "Tensor"], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically."""
    write_bytes(path, safetensors_bytes(tensors, header))


def safetensors_bytes(tensors: Mapping[str, "Tensor"], header: Mapping[str, Any], *, small: bool = False) -> bytes:
    """The content of a safetensors file with these tensors and this JSON header; the same input gives the same bytes.

    Args:
        small: store the header as zstd in base 85; as plain JSON it would be a seventh of a 10 kB model.
    """
    from safetensors.torch import save

    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    if small:
        text = base64.b85encode(zstandard.ZstdCompressor(level=19).compress(text.encode())).decode()
    contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    return save(contiguous, {HEADER: text})


def read_safetensors(path: str | Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """The tensors and the JSON header of a file written by write_safetensors.

    Raises:
        FileError: the file is missing or truncated, lacks the header, has one that was made to fill memory, or has too
            many tensors, or tensors of a type or a number of dimensions that is not allowed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with Path(path).open("rb") as plain:  # for a directory, safe_open would report "no such device"
            if int.from_bytes(plain.read(8), "little") > 4 * LARGEST_HEADER:
                raise SafetensorError("no list of tensors, or one that is far too long")
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
            if text is None:
                raise FileError(f"{path}: a safetensors file, but not one of lowenergy's: its header is missing")
            header = _header(text, path)
            names = file.keys()
            if len(names) > MOST_TENSORS:
                raise FileError(f"{path}: {len(names):,} tensors, of at most {MOST_TENSORS:,}; make it again")
            for name in names:
                dtype, dimensions = file.get_slice(name).get_dtype(), len(file.get_slice(name).get_shape())
                if dtype not in DTYPES or dimensions > MOST_DIMENSIONS:
                    raise FileError(
                        f"{path}: {name!r} has {dimensions} dimensions of {dtype}; a tensor here has at most "
                        f"{MOST_DIMENSIONS}, of {', '.join(DTYPES)}"
                    )
            return {name: file.get_tensor(name) for name in names}, header
    except FileNotFoundError:
        raise FileError(f"{path}: no such file; `dvc repro` makes it, `dvc pull` fetches it from a remote") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise FileError(f"{path}: truncated or not a safetensors file ({error}); make it again") from None


def _header(text: str, path: str | Path) -> dict[str, Any]:
    try:
        if not text.startswith("{"):
            text = unzstd(base64.b85decode(text), LARGEST_HEADER).decode()
        if len(text) > LARGEST_HEADER:
            raise ValueError(f"{len(text):,} characters")
        header = json.loads(text)
        if not isinstance(header, dict) or _depth(header) > DEEPEST_HEADER:
            raise ValueError("no object, or a nest of them")
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"{path}: a safetensors file, but not one of lowenergy's: its header is damaged ({str(error)[:100]!r})"
        ) from None
    return header


def _depth(value: Any) -> int:
    """How many levels of lists and objects are nested, found without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            part
            for whole in level
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, dict | list)
        ]
    return depth


def unzstd(packed: bytes, most: int) -> bytes:
    """Unpack one zstd frame of at most `most` bytes: a frame can declare any size, and take up that much memory.

    Raises:
        ValueError: it is not a zstd frame, or its content is larger.
    """
    try:
        stated = zstandard.frame_content_size(packed)
        if stated > most:
            raise ValueError(f"zstd of {stated:,} bytes, where at most {most:,} were expected")
        content: bytes = zstandard.ZstdDecompressor().decompress(packed, max_output_size=most, allow_extra_data=False)
        return content
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
