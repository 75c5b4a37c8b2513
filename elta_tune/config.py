"""A recipe: the frozen tree that is schema, defaults and documentation of what one trial trains.

The defaults are those of ELTA's released code (docs/method.md §6); `trials/*.yaml` are complete recipes.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from elta_tune.documents import (
    NULLS,
    Document,
    NotYaml,
    Section,
    field_error,
    field_names,
    option_error,
    parse,
    read_document,
    read_value,
    shown,
    takes_text,
)
from elta_tune.errors import ConfigError, Settings
from elta_tune.method.metrics import DIRECTIONS


def _absolute(path: Path) -> Path:
    return Path(os.path.realpath(os.path.expanduser(path)))


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


def _absolute_folder(backbone: str) -> str:
    """A model in a folder, whatever the working directory of the process that builds it."""
    source, _, folder = backbone.partition(":")
    return f"{source}:{Path(folder).absolute()}" if source == "local-dir" and folder else backbone


BackboneName = Annotated[str, AfterValidator(_absolute_folder)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
RATING_PATHS = ("ratings", "train", "val", "test", "pool", "images")
ColumnName = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class DemoConfig(Section):
    """The built-in data set: procedural photographs with votes, made on the fly."""

    train: Size = 2000
    """Images with votes to train on."""
    val: Size = 250
    """Images that choose the best epoch and trial."""
    test: Size = 250
    """Images that no study opens: only `evaluate`, and `best` where it is asked to."""
    pool: Count = 250
    """Images without votes, for self-training."""
    size: Annotated[int, Field(ge=16, le=4096)] = 56
    """Edge of the square images, in pixels."""
    seed: Seed = 0
    """Another seed makes other photographs."""


class ColumnsConfig(Section):
    """Names of columns, where they can't be inferred from the rating file; without a header they are 1, 2, …."""

    id: ColumnName | None = None
    """Column that names the image."""
    score: ColumnName | None = None
    """Column of the score; it comes before votes."""
    split: ColumnName | None = None
    """Column that says train, val or test; none: take no notice of one."""


class SplitConfig(Section):
    """Parts of the training images that are held out, alike in their scores from tail to tail."""

    val: Fraction = 0.1
    """Share that chooses the best epoch and trial; 0 if there is a file of it."""
    test: Fraction = 0.1
    """Share for the final test; 0 if there is a file of it, or none is wanted."""
    seed: Seed = 0
    """Another seed holds out others; the recipe's own seed does not matter here."""

    @model_validator(mode="after")
    def _leaves_some(self) -> SplitConfig:
        if self.val + self.test >= 1:
            raise field_error("val", f"and test should leave images to train on, not {self.val} and {self.test}")
        return self


class DataConfig(Section):
    """Images and ratings."""

    root: AbsolutePath | None = None
    """Folder that holds train.csv, val.csv, test.csv, perhaps pool.csv, and images/."""
    demo: DemoConfig | None = None
    """Use the built-in data instead of a root."""
    ratings: Path | None = None
    """One rating file for all splits, which a column of it or `split` separates; relative to `root`."""
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
    """Reader of the rating files; `auto` infers it from the columns."""
    columns: ColumnsConfig = ColumnsConfig()
    split: SplitConfig | None = None
    """Take validation and test images out of the training file, where there are no files of them."""
    scale: tuple[float, float] | None = None
    """Lowest and highest possible rating (default: the format's own)."""
    threshold: float | None = None
    """A MOS above it counts as beautiful in `accuracy` (default: the format's own)."""
    spread: Positive | None = None
    """Spread scores over bins, so that `emd` can learn them: a Gaussian of this standard deviation, on their scale."""
    bins: Annotated[int, Field(ge=2, le=1000)] = 10
    """Bins over which scores are spread, from the lowest to the highest rating."""
    higher_is_better: bool | None = None
    """False where a low rating is a good one, as in DMOS; null is true, with a note where a column is called dmos."""
    on_unlabelled: Literal["refuse", "skip"] = "refuse"
    """What becomes of a row without a rating in a file of ratings; rows that are skipped are counted and named."""
    max_missing: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """Largest share of a split's images that may be missing or unreadable."""
    resize: Size = 300
    """Training images are resized to this square, in pixels."""
    crop: Size = 256
    """Random crop of it that is trained on, and the size of evaluation."""

    @field_validator(*RATING_PATHS)
    @classmethod
    def _below_root(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return None if path is None else _absolute((info.data.get("root") or Path()) / os.path.expanduser(path))

    @field_validator("scale")
    @classmethod
    def _rising(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale and scale[0] >= scale[1]:
            raise ValueError(f"should rise, not {list(scale)}")
        return scale

    @model_validator(mode="before")
    @classmethod
    def _defaults_give_way(cls, content: Any) -> Any:
        """Defaults that contradict what is given: a share where a file is named; the one of two sizes that is not."""
        if not isinstance(content, Mapping):
            return content
        given = {key: value for key, value in content.items() if value is not None}
        result, split = dict(content), given.get("split")
        if isinstance(split, Mapping):
            result["split"] = {**{name: 0.0 for name in ("val", "test") if name in given}, **split}
        sizes = {key: cls.model_fields[key].default for key in ("resize", "crop")}
        sizes |= {key: given[key] for key in sizes if type(given.get(key)) is int}
        if sizes["crop"] > sizes["resize"] and len(given.keys() & {"resize", "crop"}) == 1:
            name, size = ("resize", sizes["crop"]) if "crop" in given else ("crop", sizes["resize"])
            result[name] = size
        return result

    @field_validator("crop")
    @classmethod
    def _within_resize(cls, crop: int, info: ValidationInfo) -> int:
        if crop > info.data.get("resize", crop):
            raise ValueError(f"should be at most data.resize ({info.data['resize']})")
        return crop

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        given = [f"data.{name}" for name in ("root", *RATING_PATHS) if getattr(self, name) is not None]
        if self.demo and given:
            rule = f"the built-in data exclude {', '.join(given)}; the recipe own.yaml is the start for your own data"
            raise field_error("demo", rule)
        return self

    @model_validator(mode="after")
    def _one_origin_of_each_split(self) -> DataConfig:
        for name in ("val", "test"):
            if self.split and getattr(self.split, name) > 0 and getattr(self, name) is not None:
                rule = f"both this file and data.split.{name} are to provide the {name} images; set data.split.{name}=0"
                raise field_error(name, rule)
        if self.ratings and self.train:
            raise field_error("ratings", "both this file and data.train contain the training images; name one of them")
        return self

    def path(self, name: Literal["train", "val", "test", "pool", "images"]) -> Path | None:
        """Where a rating file or the images are, or None for what is neither named nor found in `root`."""
        given: Path | None = getattr(self, name)
        if given is None and name in ("train", "val", "test"):
            given = self.ratings
        if given is not None:
            return given
        if self.root is None:
            return None
        default = self.root / ("images" if name == "images" else f"{name}.csv")
        return default if default.exists() or name in ("train", "val", "images") else None

    @property
    def high_is_good(self) -> bool:
        """Whether a high rating is a good one."""
        return self.higher_is_better is not False

    @property
    def has_pool(self) -> bool:
        """Whether there are unlabelled images to train on."""
        return self.demo.pool > 0 if self.demo else self.path("pool") is not None


class ModelConfig(Section):
    """Backbone and head."""

    backbone: BackboneName = "swinv2_base_window8_256"
    """Any model name of timm, `hf-hub:OWNER/NAME` or `local-dir:FOLDER`."""
    pretrained: bool = True
    """Use timm's pretrained weights from its hub. `weights` takes precedence."""
    weights: AbsolutePath | None = None
    """Backbone weights in a file, safetensors or pth: also a checkpoint of a training, or an export."""
    freeze: bool = False
    """Train only the head, on features of the evaluation crops, which are computed once and shared by all trials."""
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
    """Learning rate schedule within each self-training round."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs of linear warm-up at the start of each round."""


class MixupConfig(Section):
    """Tail feature augmentation (docs/method.md §1)."""

    pairs: int | float = 1
    """Mixed rows per batch: a count, or a fraction of the batch; 0 switches mixing off."""
    tau_1: Positive = 0.5
    """τ1: preference for anchors far from the mean score (small: strong)."""
    tau_2: Positive = 2.0
    """τ2: preference for partners with a similar score (large: strong)."""
    alpha: Annotated[float, Field(ge=0.1)] | None = None
    """Concentration of the random mixing ratio around the paper's; null is the paper's fixed ratio."""

    @field_validator("pairs")
    @classmethod
    def _count_or_fraction(cls, pairs: int | float) -> int | float:
        if pairs < 0 or (isinstance(pairs, float) and not 0 < pairs < 1):
            raise ValueError("should be a whole number from 0 on, or a fraction of the batch between 0 and 1")
        return pairs


class SimlossConfig(Section):
    """Feature-label similarity alignment (docs/method.md §2)."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """w in L = L_task + w · L_sim."""


class SharpeningConfig(Section):
    """Adaptive sharpening of pseudo-labels (docs/method.md §4)."""

    temperature: Annotated[float, Field(ge=0)] = 1.25
    """β: how much more the logits of images far from the mean score are sharpened."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """θ: pool images with a higher sharpened confidence are selected."""
    target: Literal["raw", "sharpened"] = "raw"
    """The softmax that becomes the pseudo-label."""


class SelfTrainingConfig(Section):
    """Rounds of training on labels and pseudo-labels (docs/method.md §4)."""

    rounds: Count = 0
    """R: rounds after round 0, which trains on the labels only."""
    epochs: Size = 5
    """Epochs of each round after round 0."""
    init: Literal["continue", "restart"] = "continue"
    """Start a round from the best checkpoint so far, or from the start."""


class TrainingConfig(Section):
    """The loop."""

    epochs: Size = 20
    """Epochs of round 0, on the labels."""
    retrain_head_epochs: Count = 0
    """Epochs that train only the head at the end, from the best checkpoint, on features of the evaluation crops."""
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 48
    """Images per step. The method compares them with each other, so at least two."""
    emd_reduction: Literal["batch", "sample"] = "batch"
    """Root of the mean over the batch (released code), or of each sample (NIMA)."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the forward pass; auto: bfloat16 or float16 on CUDA, else float32."""


UNDIRECTED = ("std_ratio", "bias_low", "bias_mid", "bias_high")
"""Metrics without a direction of their own."""


class Objective(Section):
    """A validation metric and its direction."""

    metric: str = "srcc"
    direction: Literal["maximize", "minimize"] | None = None
    """Default: the metric's own, for example maximize for srcc and minimize for mae."""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        known = (*DIRECTIONS, *UNDIRECTED)
        if metric not in known:
            raise option_error("a metric of the validation split", known)
        return metric

    @field_validator("direction", mode="before")
    @classmethod
    def _its_own(cls, direction: Any, info: ValidationInfo) -> Any:
        return DIRECTIONS.get(info.data.get("metric", "")) if direction is None else direction

    @model_validator(mode="after")
    def _directed(self) -> Self:
        if self.direction is None:
            raise field_error("direction", f"{self.metric} has no direction of its own: set maximize or minimize")
        return self

    @property
    def resolved_direction(self) -> Literal["maximize", "minimize"]:
        """The direction, which is never null after validation."""
        return "maximize" if self.direction == "maximize" else "minimize"

    def is_better(self, value: float | None, other: float | None) -> bool:
        """Whether a value of the metric beats another one; one that is None or NaN never does, and always loses."""
        if value is None or math.isnan(value):
            return False
        if other is None or math.isnan(other):
            return True
        return value > other if self.direction == "maximize" else value < other


class EvaluationConfig(Objective):
    """Validation, and the metric that chooses the best epoch. The objective of a space takes precedence."""

    batch_size: Size = 128


class TrialConfig(Section):
    """One complete recipe."""

    seed: Seed = 0
    """Seed of all random draws of the training, the same for every trial of a study."""
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
    def _fitting(self) -> TrialConfig:
        if self.model.head == "mse" and self.self_training.rounds > 0:
            rule = "a head that predicts scores has no distribution to sharpen; set model.head to emd, or rounds to 0"
            raise field_error("self_training.rounds", rule)
        if self.model.head == "mse" and self.evaluation.metric.startswith("emd"):
            rule = f"a head that predicts scores has no {self.evaluation.metric}; set model.head to emd"
            raise field_error("evaluation.metric", rule)
        if self.model.freeze and self.training.retrain_head_epochs > 0:
            rule = "should be 0 with model.freeze, which trains only the head from the start"
            raise field_error("training.retrain_head_epochs", rule)
        if self.optim.warmup_epochs > self.training.epochs:
            rule = f"should be at most training.epochs ({self.training.epochs}), not {self.optim.warmup_epochs:g}"
            raise field_error("optim.warmup_epochs", rule)
        return self

    def get(self, name: str) -> Any:
        """The value of a dotted field as in a document: a path is text, and every field of a null section is null."""
        value: Any = self
        for part in name.split("."):
            value = None if value is None else getattr(value, part)
        return str(value) if isinstance(value, Path) else value

    def replace(self, values: Settings, *, source: str = "recipe") -> TrialConfig:
        """The recipe with other values of dotted fields, validated; errors name `source`.

        Raises:
            ConfigError: a field is unknown or a value does not fit it.
        """
        return parse(TrialConfig, Document(source, _with(self.model_dump(mode="json"), values, source)))

    def differences(self, other: TrialConfig) -> list[str]:
        """``optim.lr: 0.1 → 0.2`` for each field that differs in another recipe."""
        pairs = ((name, self.get(name), other.get(name)) for name in FIELDS)
        return [f"{name}: {shown(own)} → {shown(its)}" for name, own, its in pairs if own != its]

    def to_yaml(self) -> str:
        """The complete document, with every default."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @property
    def planned_epochs(self) -> int:
        """Epochs of all rounds, if none is skipped."""
        rounds = self.self_training.rounds * self.self_training.epochs
        return self.training.epochs + rounds + self.training.retrain_head_epochs

    def epochs_of(self, round: int) -> int:
        """Epochs of a round: round 0, the rounds of self-training, then the round of the head."""
        if round == 0:
            return self.training.epochs
        return self.training.retrain_head_epochs if round > self.self_training.rounds else self.self_training.epochs


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
    Switch(
        ("simloss.weight", "optim.backbone_lr_factor", "training.precision"),
        "model.freeze",
        lambda frozen: not frozen,
        "== false",
    ),
    Switch(("model.pretrained",), "model.weights", lambda weights: weights is None, "== null"),
)


def switch_of(name: str) -> Switch | None:
    """The switch that a field needs to act, or None if it always acts."""
    return next((switch for switch in SWITCHES if name in switch.fields), None)


def load_recipe(path: Path, overrides: Iterable[str] | Settings = ()) -> TrialConfig:
    """Reads a recipe and applies overrides: dotted fields with their values, or typed `key=value` texts.

    Raises:
        ConfigError: every wrong field of the file, or of the overrides, in one message.
    """
    document = read_document(path)
    values = dict(overrides) if isinstance(overrides, Mapping) else read_overrides(overrides)
    # File and overrides are validated together, so that an override can fix the file.
    content = _with(document.content, values, "`overrides`")
    own = {key: text for key, text in document.texts.items() if not any(f"{key}.".startswith(f"{n}.") for n in values)}
    return parse(TrialConfig, replace(document, content=content, texts=own, overridden=frozenset(values)))


def read_overrides(texts: Iterable[str]) -> Settings:
    """Dotted fields and their values, of `key=value` texts whose values are YAML.

    Raises:
        ConfigError: a text is not one.
    """
    return dict(_override(text) for text in texts)


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    name = key.strip()
    if not equals or not name:
        raise ConfigError(f"`overrides={text}`: should look like section.field=value")
    if name in FIELDS and takes_text(FIELDS[name]):
        return name, _typed_text(name, value if key == key.rstrip() else value.strip())
    try:
        return name, read_value(value)
    except NotYaml as error:
        raise ConfigError(f"`overrides={text}`: the value is not YAML: {error}", "put it in quotes") from error


def _typed_text(name: str, text: str) -> str | None:
    """The text that was typed, `#` and `: ` included; within quotes what they enclose; null of an optional field.

    A file that is called null, or that has quotes at both ends of its name, is `./null`.
    """
    if text.strip() in NULLS and type(None) in get_args(FIELDS[name].annotation):
        return None
    if text[:1] in ("'", '"') and text[:1] == text[-1:]:
        with contextlib.suppress(NotYaml):
            return str(read_value(text))
    return text


def _with(content: Mapping[str, Any], values: Settings, source: str) -> dict[str, Any]:
    """The content with other values of dotted keys, of which `source` is named in errors."""
    result: dict[str, Any] = dict(content)
    for name, value in values.items():
        *parents, leaf = name.split(".")
        target = result
        for part in parents:
            child = target.get(part)
            if not isinstance(child, Mapping | None):
                raise ConfigError(f"{source}: {name}: there are no fields below {part}, which is {shown(child)}")
            target[part] = dict(child or {})
            target = target[part]
        target[leaf] = value
    return result
