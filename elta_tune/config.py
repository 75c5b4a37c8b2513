"""A recipe: the frozen tree that is schema, defaults and documentation of what one trial trains.

The defaults are those of ELTA's released code (METHOD.md §6); `trials/*.yaml` are complete recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, Field, field_validator, model_validator

from elta_tune.documents import Document, Section, field_names, parse, read_document
from elta_tune.errors import ConfigError, did_you_mean

AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().resolve())]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
RATING_PATHS = ("train", "val", "test", "pool", "images")


class DemoConfig(Section):
    """The built-in data set: procedural photographs with votes, made on the fly."""

    train: Size = 2000
    """Images with votes to train on."""
    val: Size = 250
    """Images that choose the best epoch and trial."""
    test: Size = 250
    """Images that only `best --test` opens."""
    pool: Count = 250
    """Images without votes, for self-training."""
    size: Annotated[int, Field(ge=16)] = 56
    """Edge of the square images, in pixels."""
    seed: Count = 0
    """Another seed makes other photographs."""


class ColumnsConfig(Section):
    """Names of columns, where a rating file does not tell them by itself."""

    id: str | None = None
    """Column that names the image."""


class DataConfig(Section):
    """Images and ratings."""

    root: AbsolutePath | None = None
    """Folder that holds train.csv, val.csv, test.csv, perhaps pool.csv, and images/."""
    demo: DemoConfig | None = None
    """Use the built-in data instead of a root."""
    train: Path | None = None
    """Rating file to train on; relative to `root` (default: train.csv there)."""
    val: Path | None = None
    """Rating file that chooses the best epoch and trial (default: val.csv)."""
    test: Path | None = None
    """Rating file for the final test (default: test.csv, if there)."""
    pool: Path | None = None
    """List of unlabelled images, or a folder of them (default: pool.csv, if there)."""
    images: Path | None = None
    """Folder of the images (default: images/)."""
    format: str = "auto"
    """Reader of the rating files; `auto` tells it from the columns."""
    columns: ColumnsConfig = ColumnsConfig()
    scale: tuple[float, float] | None = None
    """Lowest and highest possible rating (default: the format's own)."""
    threshold: float | None = None
    """A MOS above it counts as beautiful in `accuracy` (default: the format's own)."""
    max_missing: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """Largest share of a split's images that may be missing or unreadable."""
    resize: Size = 300
    """Training images are resized to this square, in pixels."""
    crop: Size = 256
    """Random crop of it that is trained on, and the size of evaluation."""

    @model_validator(mode="before")
    @classmethod
    def _absolute_paths(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        base = Path(content.get("root") or "").expanduser().resolve()
        named = {name: content[name] for name in RATING_PATHS if isinstance(content.get(name), str | Path)}
        return {**content, **{name: (base / Path(value).expanduser()).resolve() for name, value in named.items()}}

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.crop > self.resize:
            raise ValueError(f"crop should be at most resize ({self.resize}), not {self.crop}")
        if self.demo and (self.root or self.train):
            raise ValueError("demo and root exclude each other; the recipe own.yaml is the start for your own data")
        if self.scale and self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale should rise, not {list(self.scale)}")
        return self

    def path(self, name: Literal["train", "val", "test", "pool", "images"]) -> Path | None:
        """Where a rating file or the images are, or None for what is neither named nor found in `root`."""
        given: Path | None = getattr(self, name)
        if given is not None:
            return given
        if self.root is None:
            return None
        default = self.root / ("images" if name == "images" else f"{name}.csv")
        return default if default.exists() or name in ("train", "val", "images") else None

    @property
    def has_pool(self) -> bool:
        """Whether there are unlabelled images to train on."""
        return self.demo.pool > 0 if self.demo else self.path("pool") is not None


class ModelConfig(Section):
    """Backbone and head."""

    backbone: str = "swinv2_base_window8_256"
    """Any timm model name."""
    pretrained: bool = True
    """Take timm's pretrained weights from its hub; `weights` overrules it."""
    weights: AbsolutePath | None = None
    """Backbone weights in a file, safetensors or pth, under timm's names."""
    head: Literal["emd", "mse"] = "emd"
    """Predict a distribution (earth mover's distance) or a score (squared error)."""
    hidden_size: Size = 64
    """Width of the `emd` head's hidden layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Dropout of the `mse` head."""


class OptimConfig(Section):
    """Optimizer and learning rate."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive = 1e-5
    """Learning rate of the head."""
    backbone_lr_factor: Positive = 1.0
    """Learning rate of the backbone, as a multiple of `lr`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum of `sgd`."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate within each self-training round."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs of linear rise at the start of each round."""


class MixupConfig(Section):
    """Tail feature augmentation (METHOD.md §1)."""

    pairs: int | float = 1
    """Mixed rows per batch: a count, or a fraction of the batch; 0 switches it off."""
    tau_1: Positive = 0.5
    """τ1: how strongly anchors far from the mean are preferred (small: strongly)."""
    tau_2: Positive = 2.0
    """τ2: how strongly partners of a like score are preferred (large: strongly)."""
    alpha: Annotated[float, Field(ge=0.1)] | None = None
    """Concentration of the random mixing ratio around the paper's; null is the paper's own."""

    @field_validator("pairs")
    @classmethod
    def _count_or_fraction(cls, pairs: int | float) -> int | float:
        if pairs < 0 or (isinstance(pairs, float) and not 0 < pairs < 1):
            raise ValueError("should be a whole number from 0 on, or a fraction of the batch between 0 and 1")
        return pairs


class SimlossConfig(Section):
    """Feature-label similarity alignment (METHOD.md §2)."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """w in L = L_task + w · L_sim."""


class SharpeningConfig(Section):
    """Adaptive sharpening of pseudo-labels (METHOD.md §4)."""

    temperature: Annotated[float, Field(ge=0)] = 1.25
    """β: how much further logits far from the mean score are sharpened."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """θ: pool images whose sharpened confidence exceeds it are kept."""
    target: Literal["raw", "sharpened"] = "raw"
    """Which softmax becomes the pseudo-label."""


class SelfTrainingConfig(Section):
    """Rounds of training on labels and pseudo-labels (METHOD.md §4)."""

    rounds: Count = 0
    """R: rounds after the one on labels alone."""
    epochs: Size = 5
    """Epochs of each of them."""
    init: Literal["continue", "restart"] = "continue"
    """Start a round from the best checkpoint so far, or afresh."""


class TrainingConfig(Section):
    """The loop."""

    epochs: Size = 20
    """Epochs of round 0, on the labels."""
    batch_size: Size = 48
    emd_reduction: Literal["batch", "sample"] = "batch"
    """Root of the mean over the batch (released code) or per sample (NIMA)."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the forward pass; auto: bfloat16 or float16 on CUDA, else float32."""


class EvaluationConfig(Section):
    """Validation, and which metric chooses the best epoch."""

    batch_size: Size = 128
    metric: str = "srcc"
    """A space's objective overrules it."""
    direction: Literal["maximize", "minimize"] = "maximize"


class TrialConfig(Section):
    """One complete recipe."""

    seed: Count = 0
    """Seed of everything random in the training, the same for every trial of a study."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    mixup: MixupConfig = MixupConfig()
    simloss: SimlossConfig = SimlossConfig()
    sharpening: SharpeningConfig = SharpeningConfig()
    self_training: SelfTrainingConfig = SelfTrainingConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _check(self) -> TrialConfig:
        if self.model.head == "mse" and self.self_training.rounds > 0:
            raise ValueError(
                "self_training.rounds: a head that predicts scores has no distribution to sharpen; "
                "it needs model.head: emd, or rounds: 0"
            )
        return self

    def get(self, name: str) -> Any:
        """The value of a dotted field."""
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def replace(self, values: Mapping[str, Any], *, source: str = "recipe") -> TrialConfig:
        """The recipe with other values of dotted fields, checked; `source` is named in errors.

        Raises:
            ConfigError: a field is unknown or a value does not fit it.
        """
        return parse(TrialConfig, Document(source, _with(self.model_dump(mode="json"), values, source)))

    def to_yaml(self) -> str:
        """The complete document, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @property
    def planned_epochs(self) -> int:
        """Epochs of all rounds, if none is skipped."""
        return self.training.epochs + self.self_training.rounds * self.self_training.epochs


FIELDS: dict[str, Any] = field_names(TrialConfig)
"""Dotted names of all fields of a recipe."""


class Switch(NamedTuple):
    """`fields` act only while the value of `switch` passes `is_on`."""

    fields: tuple[str, ...]
    switch: str
    is_on: Callable[[Any], bool]
    rule: str


SWITCHES = (
    Switch(("mixup.tau_1", "mixup.tau_2", "mixup.alpha"), "mixup.pairs", lambda pairs: pairs > 0, "> 0"),
    Switch(
        (
            "sharpening.temperature",
            "sharpening.threshold",
            "sharpening.target",
            "self_training.epochs",
            "self_training.init",
        ),
        "self_training.rounds",
        lambda rounds: rounds > 0,
        "> 0",
    ),
    Switch(("model.hidden_size", "training.emd_reduction"), "model.head", lambda head: head == "emd", "== emd"),
    Switch(("model.dropout",), "model.head", lambda head: head == "mse", "== mse"),
    Switch(("optim.momentum",), "optim.name", lambda name: name == "sgd", "== sgd"),
    Switch(("model.pretrained",), "model.weights", lambda weights: weights is None, "== null"),
)


def switch_of(name: str) -> Switch | None:
    """What has to be switched on for a field to act, or None if it always acts."""
    return next((switch for switch in SWITCHES if name in switch.fields), None)


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> TrialConfig:
    """Reads a recipe and applies `key=value` overrides, whose values are YAML.

    Raises:
        ConfigError: every wrong field of the file, or of the overrides, in one message.
    """
    document = read_document(path)
    values = read_overrides(overrides)
    # Overrides first name fields that exist; then the whole is checked once, so that --set may mend the file.
    content = _with(document.content, values, "--set")
    return parse(TrialConfig, replace(document, content=content, overridden=frozenset(values)))


def read_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Dotted fields and their values, of `key=value` texts whose values are YAML.

    Raises:
        ConfigError: a text is not one.
    """
    return dict(_override(text) for text in texts)


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: should look like section.field=value")
    try:
        return key.strip(), yaml.safe_load(value) if value.strip() else None
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is no YAML: {' '.join(str(error).split())}") from error


def _with(content: Mapping[str, Any], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    sections = {name.rpartition(".")[0] for name in FIELDS if "." in name}
    result: dict[str, Any] = dict(content)
    for name, value in values.items():
        if name not in FIELDS and name not in sections:
            raise ConfigError(f"{source}: {name}: there is no such field{did_you_mean(name, FIELDS)}")
        *parents, leaf = name.split(".")
        target = result
        for part in parents:
            child = target.get(part)
            target[part] = dict(child) if isinstance(child, Mapping) else {}
            target = target[part]
        target[leaf] = value
    return result
