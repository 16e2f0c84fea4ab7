"""Your own images: one sub-directory per class, below train/ and test/ if there is an official split.

Files are read when the splits are written, so that memory holds only a few.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lowenergy.data import decoding
from lowenergy.data.images import DataError, Files, Source
from lowenergy.params import Data

ROLES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# What systems and programs leave beside images. Like names that begin with a dot, these are no classes or pictures.
HIDDEN = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
HIDDEN |= {"thumbs.db", "ehthumbs.db", "desktop.ini"}

Classes = dict[str, list[str]]  # paths of images by class


@dataclass
class _Left:
    """What is in the folder but is not read."""

    hidden: Counter[str] = field(default_factory=Counter)  # by name
    suffixes: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = []
        if self.hidden:
            names = ", ".join(name for name, _ in self.hidden.most_common(3))
            parts.append(f"{self.hidden.total()} hidden files and folders ({names})")
        if self.suffixes:
            parts.append(", ".join(f"{count} {suffix}" for suffix, count in self.suffixes.most_common()))
        return "; ".join([*([f"left out: {' and '.join(parts)}"] if parts else []), *self.remarks])


def read(p: Data) -> Source:
    size, root = p.image_size, Path(p.folder)
    assert size is not None  # the schema requires it
    _check_name(root)
    if not root.is_dir():
        what = "not a directory" if root.exists() else "no such directory"
        raise DataError(f"data.folder {root}: {what}; give one with a sub-directory of images per class")
    left = _Left()
    parts = _parts(_innermost(root, left), left)
    names = sorted(parts["train"])
    for role, classes in parts.items():
        if strange := sorted(classes.keys() - set(names)):
            raise DataError(f"data.folder {root}: {role} has images of {', '.join(strange[:3])}, training has none")
    survey = decoding.survey([path for classes in parts.values() for paths in classes.values() for path in paths])
    left.remarks += survey.remarks
    if said := str(left):
        print(f"data.folder {root}: {said}", flush=True)

    def files(classes: Classes) -> Files:
        paths = [path for name in names for path in classes.get(name, [])]
        labels = [label for label, name in enumerate(names) for _ in classes.get(name, [])]
        return Files(paths, torch.tensor(labels), p.channels, size, survey.whites)

    by_role = {role: files(classes) for role, classes in parts.items()}
    return Source(by_role["train"], by_role.get("test"), names, by_role.get("validation"))


def _innermost(root: Path, left: _Left) -> Path:
    """Enter the only folder in `root`, as archives have it, while it holds folders and is not called like a part."""
    while True:
        folders, loose = _listed(root, _Left())
        if loose or len(folders) != 1 or folders[0].name.lower() in ROLES or not _listed(folders[0], _Left())[0]:
            return root
        root = folders[0]
        left.remarks.append(f"the classes are in {root.name}/")


def _parts(root: Path, left: _Left) -> dict[str, Classes]:
    """The images by part (train, and test or validation if the folder has them) and class.

    Raises:
        DataError: the parts are not clear, the images do not lie in folders of classes, or a class has none.
    """
    folders, loose = _listed(root, left)
    places: dict[str, Path] = {}
    for folder in folders:
        if role := ROLES.get(folder.name.lower()):
            if role in places:
                raise DataError(f"data.folder {root}: {places[role].name} and {folder.name} are both {role}; keep one")
            places[role] = folder
    split = "train" in places and (len(places) > 1 or len(folders) == 1)
    if len(places) == len(folders) > 1 and not split:
        raise DataError(f"data.folder {root}: {', '.join(f.name for f in folders)}, but no train; add it")
    if not split:
        _check_no_parts(root, folders)
        return {"train": _classes(root, folders, loose, left)}
    parts = {}
    for role, place in places.items():
        below, images = _listed(place, left)
        if not below and role != "train":
            left.remarks.append(f"{place.name}/ holds no folders of classes, so its {len(images)} images are not used")
            continue
        parts[role] = _classes(place, below, images, left)
    if others := [folder.name for folder in folders if folder not in places.values()]:
        left.remarks.append(f"beside {places['train'].name}/, not used: {', '.join(others)}")
    if "validation" in parts and "test" not in parts:
        left.remarks.append(f"{places['validation'].name}/ is the test set")
        parts["test"] = parts.pop("validation")
    return parts


def _check_no_parts(root: Path, folders: list[Path]) -> None:
    """Check that folders are not parts, such as seg_train and seg_test with the same folders in each, but classes.

    Raises:
        DataError: they look like parts.
    """
    inside = {folder.name: _listed(folder, _Left()) for folder in folders}
    flat = [name for name, (below, images) in inside.items() if images and not below]
    for name, (below, images) in inside.items():
        if ROLES.get(name.lower()) == "train" and len(below) > max(1, len(images)) and flat:
            raise DataError(
                f"data.folder {root}: {name} holds folders ({', '.join(b.name for b in below[:3])}), as a part of the "
                f"images does, and {flat[0]} does not, as a class; put all classes into {name} and move {flat[0]} "
                f"away, or, if {name} is a class, put its images directly into it"
            )
    roles = {ROLES.get(word) for folder in folders for word in re.split("[^a-z]+", folder.name.lower())}
    if "train" not in roles or len(folders) < 2:
        return
    within = [{below.name for below in _folders_of(folder)} for folder in folders]
    if len(both := sorted(set.intersection(*within))) > 1:
        names = " and ".join(folder.name for folder in folders)
        raise DataError(
            f"data.folder {root}: {names} hold the same folders ({', '.join(both[:3])}), as parts of the images do; "
            "call them train, val and test, or put the images of each class directly in its folder"
        )


def _folders_of(folder: Path) -> list[Path]:
    """The sub-directories of a folder; if it has only one, the sub-directories of that."""
    below = _listed(folder, _Left())[0]
    return _listed(below[0], _Left())[0] if len(below) == 1 else below


def _classes(root: Path, folders: list[Path], loose: list[str], left: _Left) -> Classes:
    """The images of each class, those in sub-folders of its folder included.

    Raises:
        DataError: there are no folders of classes, or one has no images.
    """
    advice = "put the images of each class in a sub-directory of their own"
    if not folders:
        raise DataError(f"data.folder {root}: {len(loose)} images, and no folders of classes; {advice}")
    if loose:
        left.remarks.append(f"{len(loose)} images directly in {root.name}/ are of no class")
    classes: Classes = {}
    merged = [f"{folder.name}/{below.name}" for folder in folders for below in _listed(folder, _Left())[0]]
    if merged:
        more = f" and {len(merged) - 3} more" if len(merged) > 3 else ""
        left.remarks.append(f"sub-folders count for their class: {', '.join(merged[:3])}{more}")
    for folder in folders:
        inside = _Left()
        images = sorted(_images(folder, inside))
        if not images:
            why = f" ({inside})" if str(inside) else ""
            raise DataError(f"data.folder {root}: class {folder.name} has no image that can be read{why}; remove it")
        left.hidden += inside.hidden
        left.suffixes += inside.suffixes
        name = unicodedata.normalize("NFC", folder.name)  # systems differ in how they write é
        classes.setdefault(name, []).extend(f"{place}/{file}" for place, file in images)
    return classes


def _images(folder: Path, left: _Left) -> Iterator[tuple[str, str]]:
    """Yield (folder, file) of the images below a folder.

    Raises:
        DataError: it has parts such as train and test.
    """
    folders, images = _listed(folder, left)
    roles = {ROLES.get(below.name.lower()) for below in folders}
    if "train" in roles and len(roles - {None}) > 1:
        raise DataError(f"{folder}: train and test below a class; put the classes below train and test")
    yield from ((str(folder), Path(path).name) for path in images)
    for below in folders:
        yield from _images(below, left)


def _listed(folder: Path, left: _Left) -> tuple[list[Path], list[str]]:
    """The sub-directories and images in a folder, in order; anything else is counted in `left`.

    Raises:
        DataError: a name is not UTF-8, or a sub-directory is a link.
    """
    folders, images = [], []
    for entry in sorted(folder.iterdir()):
        _check_name(entry)
        if entry.name.startswith(".") or entry.name.lower() in HIDDEN:
            left.hidden[entry.name] += 1
        elif entry.is_dir():
            if entry.is_symlink():  # DVC follows links to files, but does not look into linked folders
                raise DataError(
                    f"{entry}: a link to a folder, and DVC would not see its images change; copy the folder there, or "
                    "let data.folder itself be the link"
                )
            folders.append(entry)
        elif entry.suffix.lower() in decoding.suffixes() and (entry.is_file() or entry.is_symlink()):  # or broken link
            images.append(str(entry))
        else:
            left.suffixes[entry.suffix.lower() or "without suffix"] += 1
    return folders, images


def _check_name(path: Path) -> None:
    """Check that a name is text, since names become classes and lines of output.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!a}: its name is not UTF-8; rename it") from None
