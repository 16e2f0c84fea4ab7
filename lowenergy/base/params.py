"""The one schema of params.yaml: every knob, its range and what it means.

`load()` reads and checks the whole file, so that a typo in the last section stops the first stage. Each stage then
reads only the sections that dvc.yaml names for it (tests/test_guards.py compares the two).

What several targets share stands once, in the section of their family: `targets: {ebm: energies, jem: energies}`. A
target's own section is laid over it, so `Params.ebm` has both.

A method or target that is added (docs/extending.md) brings the schema of its section with it: class `Params` of its
module. Sources and networks are known by their files.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lowenergy.base.errors import UserError

FAMILIES = {"classifier": "classifier", "ebm": "energies", "jem": "energies"}  # target -> section it shares
METHODS = ("prune", "quantize", "distill", "pq")
BRANCHES = ("teacher", *METHODS)
PACKAGE = Path(__file__).parents[1]


def _known(room: str, name: str) -> str:
    """A name that is the name of a file of that room, as a validator."""
    names = sorted(path.stem for path in (PACKAGE / room).glob("*.py") if path.stem not in ("__init__", "blocks"))
    if name not in names:
        raise ValueError(f"{name!r} is none of {', '.join(names)}, the files of lowenergy/{room}")
    return name


def is_import_path(name: str) -> bool:
    """torchvision.models.resnet18, mynets.py:Net: not one of the zoo."""
    return "." in name or ":" in name


def _network(name: str) -> str:
    if not is_import_path(name):
        try:
            _known("networks/zoo", name.rstrip("0123456789"))
        except ValueError as error:
            raise ValueError(
                f"{error}, and no import path such as torchvision.models.resnet18 or mynets.py:Net"
            ) from None
    return name


def _source(name: str) -> str:
    return name if name.startswith("torchvision.datasets.") else _known("data/sources", name)


Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Times = Annotated[int, Field(ge=0, le=10**9)]
Epochs = Annotated[int, Field(ge=1, le=10**5)]
SomeEpochs = Annotated[int, Field(ge=0, le=10**5)]
Precision = Literal["32-true", "bf16-mixed"]


class ParamsError(UserError):
    """params.yaml cannot be used; the message names each field, its value and what is allowed."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    source: Annotated[str, AfterValidator(_source)] = Field(
        description="where the images come from: digits, mnist, cifar100, folder, or a data set of torchvision such as "
        "torchvision.datasets.FashionMNIST"
    )
    root: str = Field(description="torchvision root of mnist and cifar100; missing files are downloaded into it")
    folder: str = Field(description="for source folder: a directory with one sub-directory of images per class")
    image_size: Annotated[int, Field(ge=8, le=512)] | None = Field(
        description="side of the square images in pixels; null keeps the size of the source (not for folder)"
    )
    channels: Literal[1, 3] = Field(description="1 for grey, 3 for RGB images")
    validation: Annotated[float, Field(gt=0, lt=0.5)] = Field(description="fraction of training images held out")
    test: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        description="fraction of images tested on; only for sources without an official test set (digits, folder)"
    )
    limit: Annotated[int, Field(ge=100)] | None = Field(
        description="keep at most this many training and as many test images; null keeps all"
    )
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(
        default=None,
        description="of each channel, of pixels from 0 to 1, for networks that want images less this, over data.std; "
        "null for pixels from -1 to 1. Kept in the model files",
    )
    std: list[Annotated[float, Field(gt=0, le=10)]] | None = Field(
        default=None, description="of each channel; see data.mean"
    )
    classes: list[str] | None = Field(
        default=None,
        description="names of the classes in the order of the network's outputs; null for the source's own",
    )

    @property
    def normalisation(self) -> tuple[list[float], list[float]] | None:
        return None if self.mean is None or self.std is None else (self.mean, self.std)

    @model_validator(mode="after")
    def _normalises_every_channel(self) -> Self:
        given = [len(values) for values in (self.mean, self.std) if values is not None]
        if given and given != [self.channels] * 2:
            raise ValueError(f"data.mean and data.std: give both, {self.channels} values each, or neither")
        return self

    @model_validator(mode="after")
    def _folder_needs_a_size(self) -> Self:
        if self.source == "folder" and self.image_size is None:
            raise ValueError("data.image_size must be given for source folder, e.g. 32: files differ in size")
        return self


class Architecture(Section):
    """A network by name; channels of the images and number of classes come from the data."""

    name: Annotated[str, AfterValidator(_network)] = Field(
        description="resnet18, resnet10, resnet20, resnet8, cnn, strided, compact, shallow, residual or unet "
        "(docs/architectures.md), or an import path such as torchvision.models.resnet18 or mynets.py:Net "
        "(docs/networks.md)"
    )
    width: Annotated[int, Field(ge=2, le=1024)] | None = Field(
        default=None, description="channels of the first stage; this and the next three of the zoo's networks only"
    )
    stem: Literal["7x7", "3x3", "3x3-pool"] | None = Field(
        default=None,
        description="7x7: stride 2 and max-pool (ImageNet); 3x3: full resolution; 3x3-pool: max-pool after it",
    )
    activation: Literal["relu", "swish", "gelu", "elu", "leaky_relu"] | None = Field(
        default=None, description="the non-linearity"
    )
    norm: Literal["batch", "none"] | None = Field(
        default=None, description="batch: BatchNorm after each convolution; none: biases"
    )
    arguments: dict[str, Any] = Field(default={}, description="of an import path's constructor: {num_classes: 10}")
    weights: str | None = Field(
        default=None, description="safetensors file or state dict to start from; with train.epochs 0 it is the teacher"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        own = {"width": self.width, "stem": self.stem, "activation": self.activation, "norm": self.norm}
        missing = [name for name, value in own.items() if value is None]
        if missing and not is_import_path(self.name):
            raise ValueError(f"{', '.join(missing)} missing: {self.name} is one of the zoo, which wants them")
        if self.arguments and not is_import_path(self.name):
            raise ValueError(f"arguments are for import paths; {self.name} is one of the zoo")
        return self


class EnergyArchitecture(Architecture):
    head: Literal["mean", "scalar", "logsumexp"] = Field(
        description="the energy E(x): mean of the logits, the single logit, or -logsumexp of the logits (JEM)"
    )
    logits: Count | None = Field(
        default=None, description="outputs of the last layer; 1 for head scalar; of an import path as many as it has"
    )

    @model_validator(mode="after")
    def _has_logits(self) -> Self:
        if is_import_path(self.name):
            return self
        if self.logits is None:
            raise ValueError(f"logits missing: {self.name} is one of the zoo, which wants their number")
        if self.head == "scalar" and self.logits != 1:
            raise ValueError(f"head scalar needs logits = 1, got {self.logits}")
        return self


class ScorerTraining(Section):
    epochs: SomeEpochs = Field(description="passes over the training images; 0 with architecture.weights only")
    batch_size: Count = Field(description="images per step")
    lr: Positive = Field(description="peak of the one-cycle learning rate (SGD with Nesterov momentum 0.9)")
    crop_padding: Times = Field(description="random crops after reflecting this many pixels; 0 for none")
    flip: bool = Field(description="mirror half of the images")
    precision: Precision = Field(description="of the forward and backward passes")

    # Sharp probabilities, which the Inception Score wants, and features of whole images.
    label_smoothing: ClassVar[float] = 0.0
    image_scales: ClassVar[list[float]] = [1.0]


class ClassifierTraining(Section):
    epochs: SomeEpochs = Field(description="passes over the training images; 0 with architecture.weights only")
    batch_size: Count = Field(description="images per step")
    lr: Positive = Field(description="peak of the one-cycle learning rate (SGD with Nesterov momentum 0.9)")
    label_smoothing: Fraction = Field(description="label smoothing of the cross-entropy")
    crop_padding: Times = Field(description="random crops after reflecting this many pixels; 0 for none")
    flip: bool = Field(description="mirror half of the images")
    image_scales: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1,
        description="progressive resizing: the epochs fall into as many parts, each on images shrunk to this share of "
        "their side; [1.0] for full size throughout",
    )
    precision: Precision = Field(description="of the forward and backward passes, in matching as well")


class Sampler(Section):
    """x <- clamp(x - step_size * clamp(grad E, +-gradient_clamp) + noise * N(0, 1), [-1, 1])."""

    step_size: Positive = Field(description="factor of the energy's input gradient in one Langevin step")
    noise: NotNegative = Field(description="standard deviation of the noise in one step; images span [-1, 1]")
    gradient_clamp: Positive = Field(description="each component of the gradient is clamped to +- this")


class EnergyTraining(Section):
    """Flow regression and persistent contrastive divergence, each with its weight.

    The loss is flow_weight * flow + contrastive_weight * contrastive, the second from contrastive_from on. Weights 0
    and 1 are the recipe of persistent contrastive divergence (Tieleman 2008; Du & Mordatch 2019); both together are
    Energy Matching (Balcerak et al. 2025): the flow shapes the way from noise to the data, chains the data's vicinity.
    """

    epochs: SomeEpochs = Field(description="passes over the training images; 0 with architecture.weights only")
    batch_size: Count = Field(description="real images, and as many chains, per step")
    lr: Positive = Field(description="Adam's learning rate")
    lr_decay: Annotated[float, Field(gt=0, le=1)] = Field(description="factor of the learning rate after each epoch")
    beta1: Fraction = Field(description="Adam's first decay rate")
    gradient_norm: Positive | None = Field(description="the weights' gradient is clipped to this norm; null for none")
    weight_average: Fraction = Field(description="decay of the moving average of the weights, the result; 0 for none")
    flow_weight: NotNegative = Field(description="weight of the flow regression; 0 for none")
    flow_rest: Fraction = Field(0.0, description="last share of the way, where the flow slows to rest; may be left out")
    contrastive_weight: NotNegative = Field(description="weight of the contrastive loss; 0 for none: no chains")
    contrastive_from: Fraction = Field(description="share of the epochs trained on the flow alone; then chains join in")
    regularization: NotNegative = Field(description="weight of the mean squared energy, which keeps energies near 0")
    data_noise: NotNegative = Field(description="standard deviation of noise added to real images")
    crop_padding: Times = Field(
        0, description="random crops of the real images after reflecting this many pixels; may be left out"
    )
    flip: bool = Field(False, description="mirror half of the real images; may be left out")
    buffer_size: Count = Field(description="chains kept in the replay buffer")
    fresh_fraction: Annotated[float, Field(ge=0, le=1)] = Field(description="chains restarted from uniform noise")
    chain_steps: Count = Field(description="Langevin steps between two updates of the weights")
    burn_in: Times = Field(description="a chain counts as a sample after so many steps from noise")
    precision: Precision = Field(description="of the forward and backward passes")
    sampler: Sampler = Field(description="the Langevin step: in training, and written into the model file for later")

    @property
    def life(self) -> int:
        """Langevin steps of a chain, on average: how long the chains are that this training makes samples."""
        return round(self.chain_steps / self.fresh_fraction) if self.fresh_fraction else self.chain_steps

    @property
    def recorded_sampler(self) -> dict[str, float]:
        """What a model's file says of how to sample from it: the step's constants and how many steps."""
        return {**self.sampler.model_dump(), "chain_steps": self.life}

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if not (self.flow_weight or self.contrastive_weight):
            raise ValueError("flow_weight and contrastive_weight are both 0; give one of them a weight")
        if self.contrastive_from and not self.flow_weight:
            raise ValueError(f"contrastive_from = {self.contrastive_from} needs a flow_weight to train on until then")
        if self.burn_in * self.fresh_fraction >= self.chain_steps:
            raise ValueError(
                f"burn_in = {self.burn_in} is no less than a chain's mean life of chain_steps / fresh_fraction = "
                f"{self.chain_steps / self.fresh_fraction:.0f} steps"
            )
        return self


class LabelMatching(Section):
    """How a compressed classifier is pulled to its teacher (Hinton et al. 2015)."""

    temperature: Positive = Field(description="of teacher's and student's softmax")
    label_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        description="share of the cross-entropy with the labels; the rest is the divergence from the teacher"
    )
    feature_weight: NotNegative = Field(
        description="weight of the error in which images of a batch look alike to the last layer (Tung & Mori 2019)"
    )


class JemTraining(EnergyTraining):
    classification_weight: Positive = Field(1.0, description="weight of the labels' cross-entropy; may be left out")
    classification_rise: Fraction = Field(
        0.0, description="share of the training in which that weight rises from 0; may be left out"
    )


class EnergyMatching(Section):
    """Where a compressed energy must agree with its teacher (on data, around it, where sampling goes), and in what."""

    images: Count = Field(description="training images to match at, and as many with noise")
    chains: Times = Field(description="chains of the teacher, started at uniform noise, to match along")
    chain_steps: Count = Field(description="their length; their start and four evenly spaced states are kept")
    student_chains: Times = Field(
        description="chains of the compressed network itself, each a step further whenever it is matched; 0 for none"
    )
    energy_weight: NotNegative = Field(description="weight of the energies' squared error (the earlier study's loss)")
    score_weight: NotNegative = Field(
        description="weight of the input gradients' squared error: of what sampling follows"
    )

    @model_validator(mode="after")
    def _matches_something(self) -> Self:
        if not (self.energy_weight or self.score_weight):
            raise ValueError("energy_weight and score_weight are both 0; give one of them a weight")
        return self


class ClassifierEvaluation(Section):
    batch_size: Count = Field(description="images scored at once; does not change the figures")


class EnergyEvaluation(Section):
    samples: Annotated[int, Field(ge=100, le=10**7)] = Field(description="images drawn for FID and Inception Score")
    chain_steps: Count = Field(description="Langevin steps from uniform noise to a sample")
    step_size: Positive | None = Field(None, description="of those steps; may be left out: as in training")


def _trains_what_is_random(section: Any) -> Any:
    if not section.train.epochs and section.architecture.weights is None:
        raise ValueError("train.epochs = 0 leaves random weights; give some, or architecture.weights")
    return section


def _shrinks_only_what_pools(section: Any) -> Any:
    name = section.architecture.name
    if section.train.image_scales != [1.0] and not (name.startswith("resnet") or is_import_path(name)):
        raise ValueError(
            f"train.image_scales = {section.train.image_scales} needs a resnet; a {section.architecture.name} ends "
            "in a layer of fixed size: give [1.0]"
        )
    return section


class Scorer(Section):
    architecture: Architecture = Field(description="the classifier whose features FID and IS look through")
    train: ScorerTraining = Field(description="its training")

    _epochs = model_validator(mode="after")(_trains_what_is_random)


class Classifier(Section):
    architecture: Architecture = Field(description="the teacher's network")
    train: ClassifierTraining = Field(description="the teacher's training")
    matching: LabelMatching = Field(description="the loss that pulls compressed classifiers to their teacher")
    evaluate: ClassifierEvaluation = Field(description="how every branch is measured")

    _sizes = model_validator(mode="after")(_shrinks_only_what_pools)
    _epochs = model_validator(mode="after")(_trains_what_is_random)


class EnergyTarget(Section):
    """What ebm and jem have in common, wherever it stands in the file."""

    train: EnergyTraining = Field(description="the teacher's training")
    matching: EnergyMatching = Field(description="the images and the loss that pull compressed ones to their teacher")
    evaluate: EnergyEvaluation = Field(description="how every branch is measured")


class Ebm(EnergyTarget):
    architecture: EnergyArchitecture = Field(description="the teacher's network")

    _epochs = model_validator(mode="after")(_trains_what_is_random)


class Jem(EnergyTarget):
    architecture: Architecture = Field(description="the teacher's network; its energy is -logsumexp of its logits")
    train: JemTraining = Field(description="the teacher's training")

    _epochs = model_validator(mode="after")(_trains_what_is_random)


class Finetune(Section):
    epochs: SomeEpochs = Field(description="passes over the matching images; 0 leaves the compressed weights alone")
    batch_size: Count = Field(description="images per step")
    lr: Positive = Field(description="peak learning rate (Adam, one cycle)")


class Retrain(Section):
    """Training by the target's own loss and constants, those of <target>.train: no teacher is looked at. Of energies
    chains join in at once."""

    epochs: SomeEpochs = Field(description="passes over the training images; 0 for none")
    lr: Positive = Field(description="learning rate, as a share of <target>.train.lr; it falls to 0")


class StudentRetrain(Retrain):
    """The same of a network that may know little yet."""

    contrastive_from: Fraction = Field(description="of energies: share of these epochs before chains join in")
    precision: Precision = Field(description="of the forward and backward passes")


class Prune(Section):
    source: Literal["teacher", "distill"] = Field(description="the branch to prune")
    kind: Literal["unstructured", "structured", "2of4"] = Field(
        description="unstructured: single weights, stored sparse; structured: whole channels, removed for good; "
        "2of4: two of each four consecutive inputs of a weight, the pattern that GPUs have kernels for"
    )
    scope: Literal["global", "conv"] = Field(description="global: all layers; conv: convolutions only")
    importance: Literal["l1", "l2", "group", "taylor"] = Field(
        description="what goes first: channels whose filter has the smallest L1 or L2 norm; group: the L2 norm of all "
        "weights that go with the channel; single weights by their magnitude, whichever of these is named; taylor: by "
        "how much the target's own loss changes"
    )
    allocation: Literal["ranked", "uniform", "sensitivity"] = Field(
        description="who gives. ranked: all layers' weights or channels compete; uniform: every layer the same share; "
        "sensitivity: layers give what costs each the same in matching loss"
    )
    amount: Annotated[float, Field(gt=0, lt=1)] = Field(description="fraction to remove")
    amount_of: Literal["weights", "macs"] = Field(
        description="what the amount is a fraction of: weights (of kind structured: channels), or multiply-accumulates "
        "(structured only)"
    )
    rounds: Annotated[int, Field(ge=1, le=1000)] = Field(
        description="1: one shot; more: prune a little, finetune, prune more, by equal factors"
    )
    scan_images: Times = Field(
        description="inputs on which each layer's sensitivity is scanned and plotted; 0 for no scan"
    )
    finetune: Finetune = Field(
        description="matching the source after pruning, in all rounds together; zeros stay zeros"
    )
    retrain: Retrain = Field(description="then training by the target's own loss; zeros stay zeros")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.allocation == "sensitivity" and not self.scan_images:
            raise ValueError("prune.allocation = sensitivity needs a scan: give prune.scan_images, e.g. 500")
        if self.kind == "2of4" and (self.amount != 0.5 or self.rounds > 1 or self.allocation != "uniform"):
            raise ValueError(
                "prune.kind = 2of4 halves every layer at once: give prune.amount 0.5, rounds 1, allocation uniform"
            )
        if self.amount_of == "macs" and (self.kind != "structured" or self.allocation != "ranked"):
            raise ValueError("prune.amount_of = macs needs kind structured and allocation ranked")
        return self


def _with_slash(layer: str) -> str:
    if ":" in layer:
        raise ValueError(f"write {layer.replace(':', '/')}; DVC's YAML cannot read [{layer}]")
    return layer


class Quantize(Section):
    source: Literal["teacher", "prune", "distill"] = Field(description="the branch to quantize")
    calibration_images: Count = Field(description="images whose activations set the int8 ranges")
    weight_bits: Annotated[int, Field(ge=2, le=8)] = Field(description="of weights; activations always have 8")
    allocation: Literal["uniform", "sensitivity"] = Field(
        description="uniform: weight_bits in every layer; sensitivity: 2 to 8, more where rounding costs more of the "
        "matching loss, weight_bits of them on average"
    )
    keep_float: list[Annotated[str, AfterValidator(_with_slash)]] = Field(
        description="layers that stay float32, as in `lowenergy show`; ebm/fc is the EBM's alone"
    )
    loss_budget: Positive | None = Field(
        description="keep the most sensitive layers float until rounding adds no more than this to the matching loss; "
        "null for no budget"
    )
    finetune: Finetune = Field(description="training of the rounded network (QAT); 0 epochs for none (PTQ)")
    retrain: Retrain = Field(
        description="then training of the rounded weights and their steps by the target's own loss, activations float"
    )


class Distill(Section):
    source: Literal["teacher", "prune"] = Field(description="the branch to learn from")
    student: Architecture = Field(description="the student's network; its head is the teacher's")
    start: Literal["random", "teacher"] = Field(
        description="the student's first weights; teacher: the teacher's leading channels wherever both have a layer"
    )
    train: Finetune = Field(description="matching the teacher")
    retrain: StudentRetrain = Field(
        description="then training by the target's own loss, which gives an EBM its own negatives"
    )


class LayerFinetune(Section):
    """Codewords of one layer, right after it is coded (SGD, momentum 0.9, mean gradient of a codeword's blocks)."""

    steps: Times = Field(description="steps per layer, of finetune.batch_size images; 0 for none")
    lr: Positive = Field(description="learning rate")


class Pq(Section):
    source: Literal["teacher", "prune", "distill"] = Field(description="the branch to product-quantize")
    codewords: Annotated[int, Field(ge=2, le=65536)] = Field(description="codewords per convolution")
    codewords_fc: Annotated[int, Field(ge=2, le=65536)] = Field(description="codewords of the last layer")
    block_conv: Count = Field(description="block length of k x k convolutions: 9 is a 3x3 kernel, 18 two, 3 a row")
    block_small: Count = Field(description="the same, of convolutions with at most small_weights weights")
    small_weights: Times = Field(description="size up to which a k x k convolution counts as small")
    block_1x1: Count = Field(description="block length of 1x1 convolutions, along the input channels")
    block_fc: Count = Field(description="block length of the last layer, along the inputs")
    vectors_per_codeword: Count = Field(description="codewords are clamped to a power of two <= blocks / this")
    allocation: Literal["uniform", "sensitivity"] = Field(
        description="uniform: blocks and codewords of every layer as above; sensitivity: blocks up to twice as long or "
        "short, and four times as many or few codewords, where they lower the matching loss most in as many bits"
    )
    keep_first: bool = Field(description="leave the first convolution uncoded")
    gram: Literal["covariance", "position", "layer", "none"] = Field(
        description="what weighs a block's error: covariance or second moment of the inputs it meets, the second "
        "moment of all inputs of its layer (as published), or nothing"
    )
    output_weights: bool = Field(description="weigh errors also by what the output channel does to the logits")
    budget_bytes: Annotated[int, Field(ge=1)] | None = Field(
        description="the file's largest size: bits get a price, so that all layers' codes fit; null for no price"
    )
    kmeans_steps: Count = Field(description="iterations of k-means")
    calibration_images: Count = Field(description="images whose activations weigh the error of each layer")
    layer_finetune: LayerFinetune = Field(description="training of a layer's codewords after coding it")
    finetune: Finetune = Field(description="training of all codewords after coding all layers")
    retrain: Retrain = Field(description="then training of all codewords by the target's own loss")


class Params(Section):
    model_config = ConfigDict(extra="allow")  # sections of added methods and targets, which `check` has checked

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(description="of everything random")
    targets: dict[str, str] = Field(
        min_length=1, description="what to train and compress, and the section that each shares with its family"
    )
    networks: str = Field(
        description="file or folder of your own networks and weights, which all stages that build networks depend on"
    )
    data: Data = Field(description="the images")
    scorer: Scorer = Field(description="the classifier that only measures")
    classifier: Classifier = Field(description="target classifier")
    ebm: Ebm = Field(description="target EBM")
    jem: Jem = Field(description="target JEM")
    prune: Prune = Field(description="branch prune")
    quantize: Quantize = Field(description="branch quantize")
    distill: Distill = Field(description="branch distill")
    pq: Pq = Field(description="branch pq")

    @model_validator(mode="after")
    def _chains_end_at_the_teacher(self) -> Self:
        for method in METHODS:
            chain = [method]
            while (source := getattr(self, chain[-1]).source) != "teacher":
                if source in chain:
                    raise ValueError(f"{' <- '.join([*chain, source])} is a circle; let one source be teacher")
                chain.append(source)
        return self

    @property
    def architectures(self) -> dict[str, Architecture]:
        """All that are named here, by their place."""
        own = {name: getattr(self, name) for name in ("scorer", *self.targets)}
        found = {
            f"{name}.architecture": part.architecture for name, part in own.items() if hasattr(part, "architecture")
        }
        return {**found, "distill.student": self.distill.student}

    @property
    def trusted(self) -> list[str]:
        """Import paths of this file, which model files may therefore name as well."""
        return [a.name for a in self.architectures.values() if is_import_path(a.name)]

    def chain(self, branch: str) -> str:
        """How a branch comes about where it does not start at the teacher, as `distill → quantize`; else its name."""
        links = [branch]
        while links[0] != "teacher" and (source := getattr(self, links[0]).source) != "teacher":
            links.insert(0, source)
        return " → ".join(links)


# Where the parameters of format 1 went: old name -> what to do instead.
MOVED = {
    "scorer.train.weight_decay": "a constant of lowenergy/targets/classifier.py",
    "scorer.train.label_smoothing": "always 0",
    "scorer.train.image_scales": "always [1.0]",
    "classifier.train.weight_decay": "a constant of lowenergy/targets/classifier.py",
    "classifier.probes": "always all training images",
    "classifier.matching.crop_padding": "now classifier.train.crop_padding",
    "classifier.matching.flip": "now classifier.train.flip",
    "jem.architecture.head": "always logsumexp",
    "jem.architecture.logits": "always the number of classes",
    "jem.train.classification_weight": "a constant of lowenergy/targets/jem.py",
    "jem.train.label_smoothing": "always 0",
    "jem.matching.temperature": "a constant of lowenergy/targets/jem.py",
    "jem.matching.class_weight": "a constant of lowenergy/targets/jem.py",
    "prune.retrain.contrastive_from": "chains join in at once",
    "prune.retrain.precision": "now that of <target>.train",
    "pq.layer_finetune.batch_size": "now pq.finetune.batch_size",
    **{f"{part}.precision": "now that of classifier.train; energies are matched in float32" for part in (
        "prune.finetune", "quantize.finetune", "distill.train", "pq.finetune"
    )},
    **{f"{target}.{old}": new for target in ("ebm", "jem") for old, new in {
        "train.langevin": f"now {target}.train.sampler",
        "train.guard": "constants of lowenergy/training/energies.py",
        "probes": "now energies.matching; with noise are as many as images",
        "evaluate.batch_size": "a constant of lowenergy/energies/langevin.py",
        "evaluate.langevin": f"now {target}.train.sampler",
        "evaluate.precision": "always float32",
        "evaluate.rotation": "always a quarter turn",
        "evaluate.reduction": "a constant of lowenergy/scoring/ood.py",
    }.items()},
}  # fmt: skip


def _describe(loc: tuple[Any, ...]) -> str:
    """The description of the field at this place of the schema, '' for a place that does not exist."""
    section: Any = Params
    text = ""
    for key in ("ebm" if key == "energies" else key for key in loc):
        if not (isinstance(section, type) and issubclass(section, BaseModel)) or key not in section.model_fields:
            return ""
        text, section = section.model_fields[key].description or "", section.model_fields[key].annotation
    return text


def _explain(error: Any) -> str:
    loc, message, value = error["loc"], error["msg"], error["input"]
    field = ".".join(str(key) for key in loc if not (isinstance(key, str) and key.startswith("function-")))
    if field in MOVED:
        return f"{field} is no parameter any more: {MOVED[field]}"
    if error["type"] == "extra_forbidden":
        return f"{field} = {value!r} is not a parameter; `lowenergy params` lists all of them"
    if error["type"] == "missing":
        return f"{field} is missing ({_describe(loc)})"
    if error["type"] == "value_error":
        return f"{field + ': ' if field else ''}{error['ctx']['error']}"
    means = f" ({_describe(loc)})" if _describe(loc) else ""
    return f"{field} = {value!r}: {message[0].lower()}{message[1:]}{means}"


def listing() -> list[tuple[str, str, str]]:
    """Every parameter: its dotted name, what it may be, what it means; of what ebm and jem share, `energies`."""

    def of(section: type[BaseModel], at: str) -> list[tuple[str, str, str]]:
        rows = []
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                rows += of(kind, f"{at}{name}.")
            else:
                rows.append((f"{at}{name}", _range(field), field.description or ""))
        return rows

    return of(Params, "")


def _range(field: Any) -> str:
    """What a field may be, as one would write it: `0 <= int < 10`."""
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    schema = TypeAdapter(kind)
    found = schema.json_schema()
    optional = any(kind.get("type") == "null" for kind in found.get("anyOf", []))
    found = next((kind for kind in found.get("anyOf", []) if kind.get("type") != "null"), found)
    if "enum" in found:
        text = " | ".join(map(str, found["enum"]))
    else:
        low = next((f"{found[key]:g} {sign} " for key, sign in LOWER.items() if key in found), "")
        high = next((f" {sign} {found[key]:g}" for key, sign in UPPER.items() if key in found), "")
        text = f"{low}{found.get('type', 'value')}{high}"
    return f"{text} | null" if optional else text


LOWER = {"minimum": "<=", "exclusiveMinimum": "<"}
UPPER = {"maximum": "<=", "exclusiveMaximum": "<"}


def _laid_over(own: Any, shared: Any) -> Any:
    """A target's own values over those of its family."""
    if not (isinstance(own, Mapping) and isinstance(shared, Mapping)):
        return own
    return {**shared, **{key: _laid_over(value, shared.get(key)) for key, value in own.items()}}


def check(values: Any, origin: str = "params.yaml") -> Params:
    """Validate a parsed params file.

    Raises:
        ParamsError: one line per problem: file, field, value, what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ParamsError(f"{origin}: expected sections such as `seed: 0`, found {type(values).__name__}")
    problems = []
    targets = values.get("targets")
    if isinstance(targets, list):  # format 1
        targets = {str(target): FAMILIES.get(str(target), str(target)) for target in targets}
        problems.append(f"targets is a list; write targets: {{{', '.join(': '.join(t) for t in targets.items())}}}")
    families = {**FAMILIES, **targets} if isinstance(targets, Mapping) else FAMILIES
    for target, family in families.items():
        if family != FAMILIES.get(target, family) or not {target, family} <= values.keys() | FAMILIES.keys():
            known = ", ".join(f"{name}: {section}" for name, section in FAMILIES.items())
            problems.append(f"targets: {{{target}: {family}}} names no two sections that go together as {known} do")
            families = FAMILIES
    shared = set(families.values()) - Params.model_fields.keys()
    whole = {name: section for name, section in values.items() if name not in shared} | {"targets": targets}
    for target, family in families.items():
        if family != target and target in values:
            whole[target] = _laid_over(values[target], values.get(family, {}))
    for name in whole.keys() - Params.model_fields.keys():
        schema = _schema_of(name)
        try:
            if schema is not None:
                whole[name] = schema.model_validate(whole[name])
            else:
                problems.append(f"{name} is no section; `lowenergy params` lists all of them")
        except ValidationError as error:
            problems += [_explain({**e, "loc": (name, *e["loc"])}) for e in error.errors()]
    try:
        checked = Params.model_validate(whole)
    except ValidationError as error:
        problems += [_explain(_at_home(e, values, families)) for e in error.errors()]
    if problems:
        raise ParamsError("\n".join(f"{origin}: {line}" for line in dict.fromkeys(problems)))
    return checked


def _schema_of(name: str) -> type[Section] | None:
    """Of an added method or target: what its module says."""
    for room in ("compression", "targets"):
        if (PACKAGE / room / f"{name}.py").exists():
            schema: type[Section] = import_module(f"lowenergy.{room}.{name}").Params
            return schema
    return None


def _at_home(error: Any, values: Mapping[str, Any], families: Mapping[str, str]) -> Any:
    """An error of what a target shares, said of its family's section where that is where it stands."""
    target, *rest = error["loc"] or ("",)
    family = families.get(target, target)
    own, shared = _found(values, (target, *rest)), _found(values, (family, *rest))
    return {**error, "loc": (family, *rest)} if family != target and not own and shared else error


def _found(values: Any, loc: tuple[Any, ...]) -> bool:
    for key in loc:
        if not isinstance(values, Mapping) or key not in values:
            return False
        values = values[key]
    return True


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: the file is missing, is not YAML, or does not fit the schema.
    """
    try:
        values = YAML(typ="safe").load(Path(path))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run in the project's root, or `git checkout {path}`") from None
    except YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None
    checked = check(values, str(path))
    _find_own(checked, str(path))
    return checked


def _find_own(p: Params, origin: str) -> None:
    """Files of the user's own must be there, and where stages would notice a change.

    Raises:
        ParamsError: they are not.
    """
    problems = []
    for place, architecture in p.architectures.items():
        own = {"weights": architecture.weights}
        own["name"] = architecture.name.partition(":")[0] if ":" in architecture.name else None
        for key, file in own.items():
            if file is None:
                continue
            if not Path(file).is_file():
                problems.append(f"{origin}: {place}.{key} {file}: no such file")
            elif not Path(file).resolve().is_relative_to(Path(p.networks).resolve()):
                problems.append(
                    f"{origin}: {place}.{key} {file} is not in networks: {p.networks}, so that stages would not notice "
                    f"its changes; set networks to {Path(file).parent if '/' in file else file}"
                )
    if problems:
        raise ParamsError("\n".join(problems))
