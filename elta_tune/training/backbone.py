"""Backbones: what timm builds from a name, and the weights that a file gives it."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import parse_model_name
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from torch import Tensor, nn

from elta_tune.config import ModelConfig, TrialConfig
from elta_tune.errors import ModelError
from elta_tune.suggestions import did_you_mean
from elta_tune.weights import METADATA_KEY, read_weights, weight_sets, weights_file, without_prefixes

HUB_SECONDS = 5.0
"""How long the Hugging Face hub may take to answer before its client uses only what it has."""
WITHOUT_DOWNLOAD = "name a file: `model.weights=FILE`, or train from nothing: `model.pretrained=false`"
BATCH_COUNTS = "num_batches_tracked"
"""Ends the names of counters that old files lack, and that evaluation does not read."""


def timm_name(backbone: str) -> str:
    """What timm calls a backbone today, of the names that `model.backbone` may have.

    These are timm's own, also earlier ones (``vit_tiny_patch16_224_in21k``); ``hf-hub:OWNER/NAME``, of which the owner
    timm has timm's own models; and ``local-dir:FOLDER``.

    Raises:
        ModelError: timm has no such model.
    """
    source, name = _source(backbone)
    owner, _, model = name.rpartition("/")
    if source == "hf-hub" and owner == "timm" and "@" not in model and timm.is_model(model.partition(".")[0]):
        source, name = None, model
    if source is not None:
        return f"{source}:{name}"
    renamed: dict[str, str | None] = timm.models.get_deprecated_models()
    today = renamed.get(name, name)
    if today is None:
        raise ModelError(f"model.backbone: timm has no {name!r} any more")
    return today


def _source(backbone: str) -> tuple[str | None, str]:
    try:
        return parse_model_name(f"hf-hub:{backbone}" if backbone.startswith("timm/") else backbone)
    except ValueError as error:
        raise ModelError(
            f"model.backbone: {backbone!r} is not a timm model",
            "choose a name that `timm.list_models()` gives, `hf-hub:OWNER/NAME` or `local-dir:FOLDER`",
        ) from error


def timm_arguments(backbone: str, size: int) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` for pooled features of images of `size` pixels.

    Raises:
        ModelError: the configuration of a hub's or a folder's model can't be read.
    """
    return {"num_classes": 0, **({"img_size": size} if pretrained_config(backbone).get("fixed_input_size") else {})}


def pretrained_config(backbone: str) -> dict[str, Any]:
    """What timm knows of a backbone's weights: ``architecture``, ``input_size``, ``fixed_input_size`` and more.

    Raises:
        ModelError: as `timm_arguments`.
    """
    name = timm_name(backbone)
    source, rest = parse_model_name(name)
    if source is None:
        known = timm.models.get_pretrained_cfg(name)
        config = {} if known is None else known.to_dict()  # type: ignore[no-untyped-call]
        return {**config, "architecture": name.partition(".")[0]}
    is_online = source == "hf-hub"
    problem = f"model.backbone: {backbone}: its configuration is unavailable"
    try:
        with hub_client(problem, "use one of timm's own models") if is_online else contextlib.nullcontext():
            config, architecture, _ = (load_model_config_from_hf if is_online else load_model_config_from_path)(rest)
        return {**config, "architecture": architecture}
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        what = "name a folder with config.json and model.safetensors" if source == "local-dir" else "check its name"
        raise ModelError(f"model.backbone: {backbone}: its configuration can't be read: {reason}", what) from error


def check_backbone(config: ModelConfig) -> None:
    """Refuses what can't be built, without building it.

    Raises:
        ModelError: unknown backbone, missing weights.
    """
    name = timm_name(config.backbone)
    if not name.startswith("hf-hub:"):  # which asks the network
        if name.startswith("local-dir:"):
            name = pretrained_config(name)["architecture"]
        model, dot, tag = name.partition(".")
        if not timm.is_model(model):
            raise ModelError(f"model.backbone: timm has no {model!r}{did_you_mean(model, timm.list_models())}")
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{model}.*")]
        if dot and tag not in tags:
            raise ModelError(f"model.backbone: timm has no weights {tag!r} of {model}{did_you_mean(tag, tags)}")
    if config.weights is not None:
        with _of_field():
            weights_file(config.weights)


def build_backbone(config: ModelConfig, size: int) -> Any:
    """A backbone for images of `size` pixels, with the weights that the recipe names.

    Raises:
        ModelError: as `build_model`.
    """
    check_backbone(config)
    pretrained = config.pretrained and config.weights is None
    arguments = timm_arguments(config.backbone, size)
    unavailable = f"model.pretrained: the weights of {config.backbone} are unavailable"
    try:
        with hub_client(unavailable, WITHOUT_DOWNLOAD) if pretrained else contextlib.nullcontext():
            backbone = timm.create_model(timm_name(config.backbone), pretrained=pretrained, **arguments)
    except (AssertionError, TypeError, ValueError, RuntimeError, OSError) as error:
        if pretrained and isinstance(error, RuntimeError | OSError):
            raise ModelError(
                f"{unavailable}: {error}",
                WITHOUT_DOWNLOAD,
            ) from error
        raise _cannot_take(config, size, error) from error
    if config.weights is not None:
        with _of_field():
            _load_weights(backbone, config.weights)
    return backbone


@contextlib.contextmanager
def hub_client(problem: str, hint: str) -> Iterator[None]:
    """Silences the Hugging Face client, and lets it use its cache at once where the hub is unreachable.

    By itself it would try for nearly a minute, with a line for each time.

    Args:
        problem, hint: what to report if the cache has nothing.

    Raises:
        ModelError: the hub is unreachable, and its client has not kept what is wanted.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    level, was_offline = get_verbosity(), constants.HF_HUB_OFFLINE
    set_verbosity(logging.ERROR)
    is_cut_off = constants.HF_HUB_OFFLINE = was_offline or not _hub_answers(constants.ENDPOINT)
    try:
        yield
    except (RuntimeError, OSError) as error:
        if not is_cut_off:
            raise
        reason = "HF_HUB_OFFLINE is set" if was_offline else f"{constants.ENDPOINT} is unreachable"
        raise ModelError(f"{problem}: {reason}, and {constants.HF_HUB_CACHE} has no copy", hint) from error
    finally:
        set_verbosity(level)
        constants.HF_HUB_OFFLINE = was_offline


def _hub_answers(address: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(address, timeout=HUB_SECONDS)
    except Exception:  # whichever kind the client of this version raises
        return False
    return True


def check_model(config: TrialConfig) -> None:
    """Refuses a backbone that can't be built or can't take the images, by building it without a download.

    Raises:
        ModelError: names the backbone or the file of weights.
    """
    local = config.model.model_copy(update={"pretrained": False})
    check_images(build_backbone(local, config.data.crop), config.model, config.data.crop)


def check_images(backbone: Any, config: ModelConfig, size: int) -> None:
    """Refuses a backbone that can't take images of `size` pixels or pools no features of them, by trying one.

    Raises:
        ModelError: names the backbone.
    """
    try:
        with torch.inference_mode():
            features = backbone.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # each backbone has its own way to fail
        raise _cannot_take(config, size, error) from error
    if features.shape != (1, backbone.head_hidden_size):
        raise ModelError(
            f"model.backbone: {config.backbone} pools no features: an image gives an array {tuple(features.shape)}",
            "choose another backbone",
        )


def _cannot_take(config: ModelConfig, size: int, error: Exception) -> ModelError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    native = pretrained_config(config.backbone).get("input_size", (3, 224, 224))[-1]
    hint = f"choose the size it was made for: `data.crop={native}`, and a `data.resize` of at least that"
    return ModelError(
        f"model.backbone: {config.backbone} can't take {size}×{size} images: {reason}",
        "choose another backbone" if native == size else hint,
    )


@contextlib.contextmanager
def _of_field() -> Iterator[None]:
    """Says of a file that can't be read or used which field names it."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"model.weights: {error.message}", error.hint) from error


def _load_weights(backbone: nn.Module, path: Path) -> None:
    """Loads the weights of a backbone from any checkpoint that has them.

    What else is there, a classifier's head or ours, is ignored; a tensor that the backbone lacks is refused.
    """
    content, metadata = read_weights(path)
    missing = list(backbone.state_dict())
    for candidates in itertools.chain.from_iterable(map(without_prefixes, weight_sets(content))):
        # What timm adapts is renamed: far fewer tensors are another model's, or a part of this one.
        tried = [_fit(backbone, each) for each in candidates if 2 * len(each) >= len(backbone.state_dict())]
        fitting = [weights for weights, lacking in tried if not lacking]
        if any(not _equal(fitting[0], other) for other in fitting[1:]):
            raise ModelError(f"{path}: holds {len(fitting)} sets of weights of this backbone", "save one of them alone")
        if fitting:
            backbone.load_state_dict(fitting[0], strict=False)
            return
        missing = min([missing, *(lacking for _, lacking in tried)], key=len)
    raise _of_another_backbone(backbone, path, missing, _trained(content, metadata))


def _of_another_backbone(backbone: nn.Module, path: Path, missing: list[str], trained: str | None) -> ModelError:
    hint = "choose the `model.backbone` whose weights they are, or other weights"
    return ModelError(
        f"{path}: not the weights of this backbone: {len(missing)} of its {len(backbone.state_dict())} tensors are "
        f"missing or of another shape, the first {missing[0]}",
        hint if trained is None else f"they are of another: `model.backbone={trained}`",
    )


def _trained(content: dict[str, Any], metadata: dict[str, str]) -> str | None:
    """The backbone that a checkpoint of elta-tune says it has."""
    try:
        facts = json.loads(metadata[METADATA_KEY]) if METADATA_KEY in metadata else content
        return str(facts["config"]["model"]["backbone"])
    except (KeyError, TypeError, ValueError):
        return None


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _fit(backbone: nn.Module, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors in some weights, as they are or as timm adapts them, and the names of those missing."""
    own = backbone.state_dict()
    missing = _missing(own, weights)
    if missing and (adapted := _adapted(backbone, weights)) is not None:
        weights, missing = adapted, _missing(own, adapted)
    return {name: weights[name] for name in own if name in weights}, missing


def _missing(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not in some weights, or have another shape there."""
    shapes = {name: getattr(value, "shape", None) for name, value in weights.items()}
    return [name for name, value in own.items() if shapes.get(name) != value.shape and not name.endswith(BATCH_COUNTS)]


def _adapted(backbone: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Weights as timm adapts its own downloads: names of the first authors, embeddings for another image size."""
    adapt = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    try:
        return None if adapt is None else dict(adapt(weights, backbone))
    except Exception:  # made for files of the backbone's own family; that others do not fit is said elsewhere
        return None
