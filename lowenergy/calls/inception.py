"""FID and Inception Score as in papers: through Inception v3, with the usual weights from a file of the user's.

The figures are those that pytorch-fid gives for the same images and weights. This module is here rather than in
scoring/, on which every evaluation depends, because no stage uses it.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowenergy import data
from lowenergy.base.device import measured
from lowenergy.base.errors import UserError
from lowenergy.base.files import LARGEST_HEADER, MOST_TENSORS, FileError
from lowenergy.base.progress import Progress
from lowenergy.calls.images import Images, read
from lowenergy.data import DataError, decoding
from lowenergy.scoring.generation import FEWEST, Generation, score_surely
from lowenergy.scoring.intervals import RESAMPLES, around, resampled

if TYPE_CHECKING:
    from torch.fx import GraphModule

SIDE = 299  # pixels that every image is resized to
BATCH = 32  # images at a time: each takes 5.5 MB as 64 channels of 147x147 pixels
WIDTH = 2048  # features
OUTPUTS = 1008, 1000  # with the weights of 2015-12-05, which papers use; with torchvision's own
CHANNELS = 1, 3  # grey is repeated three times
POOLS = 9  # average pools in torchvision's network
FLOATS = "F16", "BF16", "F32", "F64"
TURNED = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file(torch.load('{}', weights_only=True), 'inception.safetensors')\""
)

Pixels = Tensor | Sequence[Tensor]  # uint8, (n, c, h, w), or n images (c, h, w) of any sizes; c is 1 or 3


def measure(path: str | Path, images: Images, real: Images, seed: int) -> Generation:
    """FID and Inception Score of images, through the Inception network in a file.

    Raises:
        UserError: one line that says what, where, and what to do. The file's names and shapes are checked before
            anything is computed.
    """
    if real is None:
        raise UserError("real: Inception has no statistics beside it; give the images to compare with")
    network, answer = read_network(path)
    drawn, true = pixels_of(images, "images"), pixels_of(real, "real")
    features, wanted = features_of(network, drawn, "images"), features_of(network, true, "real images")
    if not (features.isfinite().all() and wanted.isfinite().all()):
        raise FileError(f"{path}: features are not finite; give the weights of a trained Inception")
    value, *again = distances(wanted, features, seed)
    return Generation(around(value, again, 0.0), score_surely(features @ answer.T, seed), len(drawn))


# -- the network ------------------------------------------------------------------------------------------------------


def read_network(path: str | Path) -> "tuple[GraphModule, Tensor]":
    """Inception v3 as FID uses it, and the weights of its last layer, (outputs, WIDTH), both from a file.

    The tensors have torchvision's names, as they also have in the FID weights of torch-fidelity and pytorch-fid.
    `AuxLogits`, which only feeds the loss in training, may be there.

    Raises:
        FileError: it is not a safetensors file, or a tensor is missing, unknown, or of another shape or type.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with Path(path).open("rb") as plain:
            head = plain.read(8)
        if int.from_bytes(head, "little") > 4 * LARGEST_HEADER:
            if head.startswith((b"PK", b"\x80")):
                raise FileError(f"{path}: written by torch.save; turn it into safetensors: {TURNED.format(path)}")
            raise SafetensorError("no list of tensors, or one that is far too long")
        with safe_open(str(path), framework="pt") as file:
            names = [name for name in file.keys() if not name.startswith("AuxLogits.")]  # noqa: SIM118 not a dict
            if len(names) > MOST_TENSORS:
                raise FileError(f"{path}: {len(names):,} tensors, of at most {MOST_TENSORS:,}")
            slices = {name: file.get_slice(name) for name in names}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            outputs = next((n for n in OUTPUTS if shapes.get("fc.weight") == (n, WIDTH)), OUTPUTS[0])
            network = _network(outputs)
            _check(path, network, shapes, {name: part.get_dtype() for name, part in slices.items()})
            state = {name: file.get_tensor(name).float() for name in names if not name.endswith(".num_batches_tracked")}
    except FileNotFoundError:
        raise FileError(f"{path}: no such file; give the weights of Inception v3 as safetensors") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise FileError(f"{path}: truncated or not a safetensors file ({error})") from None
    if outputs != OUTPUTS[0]:
        print(f"{path}: {outputs:,} outputs: torchvision's weights, whose figures compare with no paper's", flush=True)
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith(".num_batches_tracked")}
    network.load_state_dict(state | counters, assign=True)
    network.requires_grad_(False)
    answer: Tensor = network.fc.weight.detach()  # type: ignore[union-attr, operator]
    network.fc = nn.Identity()
    return network, answer


def _network(outputs: int) -> "GraphModule":
    """torchvision's network without values, but with the pooling that the weights were trained with.

    In TensorFlow's graph, averages leave out the zeros at the border, and the last block takes the maximum instead.
    """
    from torch import fx
    from torchvision.models.inception import Inception3

    with torch.device("meta"):
        plain = Inception3(num_classes=outputs, aux_logits=False, transform_input=False, init_weights=False).eval()
    network = fx.symbolic_trace(plain)
    pools = [node for node in network.graph.nodes if node.target is F.avg_pool2d]
    assert len(pools) == POOLS, "this torchvision has another Inception"
    for pool in pools[:-1]:
        pool.update_kwarg("count_include_pad", False)
    pools[-1].target = F.max_pool2d
    network.recompile()
    return network.eval()


def _check(path: str | Path, network: nn.Module, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str]) -> None:
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    counters = {name for name in wanted if name.endswith(".num_batches_tracked")}  # nothing reads these
    advice = "give a state dict of Inception v3 by torchvision's names"
    if missing := sorted(wanted.keys() - counters - shapes.keys()):
        raise FileError(f"{path}: {missing[0]} is missing; {advice}")
    for name, shape in sorted(shapes.items()):
        if name not in wanted:
            raise FileError(f"{path}: {name!r} is no tensor of Inception v3; {advice}")
        if shape != wanted[name]:
            raise FileError(f"{path}: {name} has shape {shape}, where {wanted[name]} is needed; {advice}")
        if name not in counters and dtypes[name] not in FLOATS:
            raise FileError(f"{path}: {name} is of {dtypes[name]}, where one of {', '.join(FLOATS)} is needed")


def features_of(network: nn.Module, pixels: Pixels, name: str = "images") -> Tensor:
    """The features of images, (n, WIDTH) float32."""
    progress = Progress(f"Inception: {name}", total=len(pixels))
    features = []
    with measured(network) as device, torch.inference_mode():
        for first in range(0, len(pixels), BATCH):
            batch = torch.cat([_resized(image) for image in pixels[first : first + BATCH]])
            features.append(network(batch.to(device)).cpu())
            progress(len(batch))
    return torch.cat(features)


def _resized(image: Tensor) -> Tensor:
    """Turn an image, uint8 (c, h, w), into the network's input: (1, 3, SIDE, SIDE) float32 in [-1, 1]."""
    pixels = image[None].float().div(255).expand(1, 3, -1, -1)
    return F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False).mul(2).sub(1)


# -- the images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder(Sequence[Tensor]):
    """The image files of a folder, of any sizes, each read when it is asked for."""

    paths: list[str]
    whites: Any  # what is white in pixels of more than 8 bits, see decoding.survey

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return [self._read(path) for path in self.paths[index]]

    def _read(self, path: str) -> Tensor:
        with decoding.opened(path) as image:
            return torch.from_numpy(np.array(decoding.eight_bit(image, 3, self.whites))).movedim(2, 0)


def pixels_of(images: Images, name: str) -> Pixels:
    """Images as bytes, from anything that the calls take, from the file of an array, or from a folder of image files.

    Raises:
        DataError: there are fewer than two, or they have neither one channel nor three.
    """
    pixels = _opened(images)
    where = f"{images}: " if isinstance(images, str | Path) else f"{name}: "
    if len(pixels) < FEWEST:
        directly = " directly in this folder" if isinstance(pixels, Folder) else ""
        raise DataError(f"{where}{len(pixels)} images{directly}; FID needs at least {FEWEST}")
    if isinstance(pixels, Tensor) and pixels.shape[1] not in CHANNELS:
        raise DataError(f"{where}{pixels.shape[1]} channels; give one, grey, or three, red, green and blue")
    return pixels


def _opened(images: Images) -> Pixels:
    if isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in CHANNELS:
        return images.cpu()  # need not be square
    if not isinstance(images, str | Path):
        return read(images)[0].images
    path = Path(images)
    if not path.is_dir():
        return data.read_array(path, _shape(path))
    files = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    paths = [str(file) for file in files if file.suffix.lower() in decoding.suffixes()]
    survey = decoding.survey(paths)
    for remark in survey.remarks:
        print(f"{path}: {remark}", flush=True)
    return Folder(paths, survey.whites)


def _shape(path: Path) -> tuple[int, int, int]:
    """Channels, height and width of the images in an array's file; arbitrary if read_array will refuse the file.

    Raises:
        DataError: it holds no images.
    """
    shape: tuple[int, ...] = (0, 3, SIDE, SIDE)
    with suppress(Exception):
        saved: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        array = saved if isinstance(saved, np.ndarray) else saved["images" if "images" in saved else saved.files[0]]
        shape = array.shape
    if len(shape) == 3 and 0 not in shape[1:]:  # grey
        return 1, *shape[1:]
    if len(shape) == 4 and 0 not in shape[1:] and {shape[1], shape[3]} & {*CHANNELS}:
        return shape[1:] if shape[1] in CHANNELS else (shape[3], *shape[1:3])
    raise DataError(f"{path}: an array {shape}; give images (n, h, w), or (n, c, h, w) or (n, h, w, c) with c 1 or 3")


# -- the distance -----------------------------------------------------------------------------------------------------


def distances(real: Tensor, found: Tensor, seed: int) -> list[float]:
    """The FID between two sets of features, (n, width), followed by the FIDs of resamples of the second set.

    With C1 = R Rᵀ, tr (C1 C2)^½ is the sum of the singular values of X R / (n - 1)^½, where X is the second set's
    features less their mean. X R is computed once. A resample gives a weight to each image in it. A symmetric matrix
    has the squares of the singular values as eigenvalues; its side is the number of images in the resample, or the
    number of features (columns of R) if these are fewer. With 2,048 features, a resample of 1,000 images takes 0.07 s
    on one core, one of 10,000 images 2.5 s. For the resamples see intervals.resampled.
    """
    mean = real.mean(0, dtype=torch.float64)
    root = _root(real, mean)
    x, n = found.double() - mean, len(found)
    projected, squares = x @ root, x.square().sum(1)
    progress = Progress("Inception: interval of the FID", total=1 + RESAMPLES)

    def distance(index: Tensor) -> float:
        weight = index.bincount(minlength=n).double()
        there = weight.nonzero()[:, 0]
        shift = weight @ x / n
        spread = (weight @ squares - n * shift.square().sum()) / (n - 1)
        rows = (projected[there] - shift @ root) * (weight[there] / (n - 1)).sqrt()[:, None]
        gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
        overlap = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().sum()
        progress(1)
        return float((shift.square().sum() + root.square().sum() + spread - 2 * overlap).clamp_min(0))

    return [distance(torch.arange(n)), *resampled(distance, n, seed=seed)]


def _root(features: Tensor, mean: Tensor) -> Tensor:
    """R, (width, the smaller of n and width), such that R Rᵀ is the covariance of features, (n, width)."""
    n, width = features.shape
    if n <= width:
        return (features.double() - mean).T / (n - 1) ** 0.5
    covariance = torch.zeros(width, width, dtype=torch.float64)
    for part in features.split(1000):  # all of 50,000 images at once would take 800 MB
        centred = part.double() - mean
        covariance += centred.T @ centred / (n - 1)
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()
