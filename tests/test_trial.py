"""One trial in its folder: what it writes, in which order; no stop, kill or full disk loses an epoch."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

from elta_tune.config import TrialConfig, load_recipe
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.prepare import open_dataset
from elta_tune.errors import StudyError
from elta_tune.executors.server import PRELOAD
from elta_tune.files import to_json
from elta_tune.method.scores import method_bins
from elta_tune.records import EpochRecord, TrialFolder
from elta_tune.training.model import build_model
from elta_tune.training.predict import predict
from elta_tune.trial import NoReporter, TrialPruned, TrialStopped, run_trial

TIMES = {"seconds", "images_per_second", "peak_memory_mb", "elapsed"}
"""What no two runs have in common."""

Act = Callable[[int], None]


class Watching:
    """A reporter that keeps what is reported, then acts."""

    def __init__(self, act: Act = lambda step: None) -> None:
        self.steps: list[int] = []
        self._act = act

    def report(self, record: EpochRecord) -> None:
        self.steps.append(record.step)
        self._act(record.step)


def raising(error: BaseException, at: int) -> Watching:
    """A reporter that raises at a step."""

    def act(step: int) -> None:
        if step == at:
            raise error

    return Watching(act)


@pytest.fixture
def rounds(recipe: TrialConfig) -> TrialConfig:
    """Two epochs on the labels and two rounds of one epoch: four in all."""
    return recipe.replace({"self_training.rounds": 2, "optim.schedule": "cosine", "optim.warmup_epochs": 0.5})


@pytest.fixture
def run(cache: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`run(config, "name", reporter)`: a trial in the folder of that name."""

    def start(config: TrialConfig, name: str = "trial", reporter: Any = None, **options: Any) -> dict[str, Any]:
        folder = TrialFolder(tmp_path / name)
        result = run_trial(config, folder, reporter or NoReporter(), cache=ImageCache(cache), **options)
        content: dict[str, Any] = json.loads(to_json(result.to_dict()))
        return content

    return start


@pytest.fixture(scope="session")
def unbroken(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrialConfig], Path]:
    """The folder of an uninterrupted trial, trained once."""
    folders: dict[str, Path] = {}

    def find(config: TrialConfig) -> Path:
        if (key := config.to_yaml()) not in folders:
            folders[key] = tmp_path_factory.mktemp("unbroken")
            run_trial(config, TrialFolder(folders[key]), NoReporter(), cache=ImageCache(cache))
        return folders[key]

    return find


Run = Callable[..., dict[str, Any]]
Unbroken = Callable[[TrialConfig], Path]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_trial(left: Path, right: Path) -> None:
    """To the bit: every metric of every epoch, weights, predictions, pseudo-labels and result, times apart."""
    timeless = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in lines_of(path)] for path in (left, right)
    ]
    assert timeless[0] == timeless[1]
    weights = [load_file(path / "best.safetensors") for path in (left, right)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    names = [
        sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()) for path in (left, right)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith(".csv"):
            assert (left / name).read_bytes() == (right / name).read_bytes()
    results = [json.loads((path / "result.json").read_text()) for path in (left, right)]
    for result in results:
        del result["seconds"], result["environment"]
    assert results[0] == results[1]


# What a trial leaves


def test_a_finished_trial_leaves_its_files_and_nothing_else(rounds: TrialConfig, run: Run, tmp_path: Path) -> None:
    result = run(rounds, number=3, params={"optim.lr": 0.003})
    folder = tmp_path / "trial"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "best.safetensors",
        "config.yaml",
        "metrics.jsonl",
        "predictions.csv",
        "pseudo_labels",
        "pseudo_labels/round_1.csv",
        "pseudo_labels/round_2.csv",
        "result.json",
    ]
    assert result == json.loads((folder / "result.json").read_text())
    lines = lines_of(folder)
    best = max(lines, key=lambda line: line["srcc"])
    place = {f"best_{name}": best[name] for name in ("step", "round", "epoch")}
    expected = {"trial": 3, "state": "complete", "reason": None, "value": best["srcc"], **place}
    assert {name: result[name] for name in expected} == expected
    assert result["params"] == {"optim.lr": 0.003}
    assert result["metrics"] == {name: best[name] for name in result["metrics"]}
    assert result["seconds"] >= lines[-1]["elapsed"] > 0
    selected = [len(pd.read_csv(folder / "pseudo_labels" / f"round_{number}.csv")) for number in (1, 2)]
    assert result["rounds"] == [
        {"round": 0, "pseudo_labels": 0},
        {"round": 1, "pseudo_labels": selected[0]},
        {"round": 2, "pseudo_labels": selected[1]},
    ]
    assert {name: split["rows"] for name, split in result["data"].items()} == {"train": 32, "val": 16, "pool": 16}


def test_a_line_of_metrics_has_all_that_was_measured(rounds: TrialConfig, run: Run, tmp_path: Path) -> None:
    run(rounds)
    lines = lines_of(tmp_path / "trial")
    assert [(line["step"], line["round"], line["epoch"]) for line in lines] == [
        (1, 0, 1),
        (2, 0, 2),
        (3, 1, 1),
        (4, 2, 1),
    ]
    tails = {f"{name}_{part}" for name in ("mae", "bias", "n") for part in ("low", "mid", "high")}
    assert set(lines[0]) == {"step", "round", "epoch", "best_step", "pseudo_labels"} | TIMES | tails | {
        *("srcc", "plcc", "accuracy", "mae", "rmse", "bmae", "gmean", "std_ratio", "emd_r1", "emd_r2"),
        *("loss", "loss_task", "loss_similarity", "gradient_norm", "lr"),
    }
    for number, line in enumerate(lines, start=1):
        assert line["best_step"] == 1 + int(np.argmax([each["srcc"] for each in lines[:number]]))
    assert all(left["elapsed"] < right["elapsed"] for left, right in itertools.pairwise(lines))


def test_where_a_result_was_measured_is_recorded(recipe: TrialConfig, run: Run) -> None:
    environment = run(recipe)["environment"]
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["packages"]["elta-tune"] == version("elta-tune")
    assert (environment["device"], environment["threads"]) == ("cpu", torch.get_num_threads())
    here = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(here, capture_output=True, text=True, check=False).stdout.strip()
    assert (environment["commit"] or "").removesuffix("-dirty") == commit


def test_a_trial_s_config_runs_again_by_itself(
    rounds: TrialConfig, run: Run, unbroken: Unbroken, tmp_path: Path
) -> None:
    first = unbroken(rounds.replace({"mixup.alpha": 0.5}))
    run(load_recipe(first / "config.yaml"))
    assert_same_trial(first, tmp_path / "trial")


def test_predictions_and_weights_are_the_best_epoch_s(
    rounds: TrialConfig, run: Run, cache: Path, tmp_path: Path
) -> None:
    result = run(rounds)
    table = pd.read_csv(tmp_path / "trial" / "predictions.csv")
    assert list(table.columns) == ["image_id", "gt", "score", "score2", "score3", "score4", "score5", "score6"]
    assert stats.spearmanr(table["score"], table["gt"]).statistic == pytest.approx(result["value"], abs=1e-12)
    assert np.abs(table["score"] - table["gt"]).mean() == pytest.approx(result["metrics"]["mae"], abs=1e-12)
    shares = table.filter(regex=r"score\d").to_numpy()
    np.testing.assert_allclose(shares @ np.arange(1, 6), table["score"], atol=1e-5)

    dataset = open_dataset(rounds.data, ImageCache(cache))
    model = build_model(rounds.model, bins=torch.tensor(result["model"]["bins"]), size=32, seed=9)
    model.load_state_dict(load_file(tmp_path / "trial" / "best.safetensors"))
    again = predict(model, dataset.val, rounds, tuple(result["model"]["scale"]))
    np.testing.assert_allclose(again.scores, table["score"], atol=1e-6)
    assert list(again.ids) == list(table["image_id"])
    np.testing.assert_allclose(method_bins(dataset.bins, dataset.scale), [1, 3.25, 5.5, 7.75, 10])


def test_pseudo_labels_are_a_table(rounds: TrialConfig, run: Run, data_root: Path, tmp_path: Path) -> None:
    run(rounds.replace({"sharpening.threshold": 0.2105, "sharpening.temperature": 1.0}))
    table = pd.read_csv(tmp_path / "trial" / "pseudo_labels" / "round_1.csv")
    kinds = [f"{kind}_{k}" for kind in ("sharpened", "raw") for k in range(1, 6)]
    assert list(table.columns) == ["image_id", "score", "confidence", *kinds]
    assert 0 < len(table) < 16
    assert set(table["image_id"]) <= set(pd.read_csv(data_root / "pool.csv")["image_id"])
    sharpened, raw = table[kinds[:5]].to_numpy(), table[kinds[5:]].to_numpy()
    np.testing.assert_allclose([sharpened.sum(axis=1), raw.sum(axis=1)], 1, atol=1e-5)
    np.testing.assert_allclose(table["confidence"], sharpened.max(axis=1), atol=1e-6)
    assert (table["confidence"] > 0.2105).all()
    np.testing.assert_allclose(table["score"], raw @ np.arange(1, 6), atol=1e-4)


def test_result_reports_an_empty_selection(rounds: TrialConfig, run: Run, tmp_path: Path) -> None:
    result = run(rounds.replace({"sharpening.threshold": 0.999, "sharpening.temperature": 0.0}))
    assert (result["state"], len(lines_of(tmp_path / "trial"))) == ("complete", 2)
    skipped = {"round": 1, "pseudo_labels": 0, "skipped": "nothing of the pool was selected"}
    assert result["rounds"] == [{"round": 0, "pseudo_labels": 0}, skipped]
    assert pd.read_csv(tmp_path / "trial" / "pseudo_labels" / "round_1.csv").empty


def test_the_pool_s_own_ratings_may_be_nonsense(rounds: TrialConfig, run: Run, data_root: Path, tmp_path: Path) -> None:
    ids = (data_root / "pool.csv").read_text().splitlines()
    rated = tmp_path / "pool.csv"
    nonsense = ["count_1,count_2,count_3,count_4,count_5,score", "-7,,x,9e99,0,nan", '0,0,0,0,0,"ü"']
    rated.write_text("\n".join(f"{name},{nonsense[min(row, 1 + row % 2)]}" for row, name in enumerate(ids)) + "\n")
    plain = run(rounds, "plain")
    given = run(rounds.replace({"data.pool": str(rated)}), "rated")
    for result in (plain, given):
        del result["data"]["pool"]["file"], result["data"]["pool"]["origin"]
        (tmp_path / ("plain" if result is plain else "rated") / "result.json").write_text(json.dumps(result))
    assert_same_trial(tmp_path / "plain", tmp_path / "rated")


def test_pool_ratings_only_measure_the_pseudo_labels(
    rounds: TrialConfig, run: Run, unbroken: Unbroken, data_root: Path, tmp_path: Path
) -> None:
    ids = (data_root / "pool.csv").read_text().split()[1:]
    votes = np.random.default_rng(1).integers(1, 9, (len(ids), 5))
    rows = [f"{name},{','.join(map(str, row))}" for name, row in zip(ids, votes, strict=True)]
    pool = tmp_path / "rated.csv"
    pool.write_text("\n".join(["image_id,count_1,count_2,count_3,count_4,count_5", *rows]) + "\n")
    result = run(rounds.replace({"data.pool": str(pool)}), "rated")
    plain = unbroken(rounds)
    assert result["metrics"] == json.loads((plain / "result.json").read_text())["metrics"]

    truth = dict(zip(ids, votes @ np.arange(1, 6) / votes.sum(axis=1), strict=True))
    diagnosed = [entry for entry in result["rounds"] if entry["pseudo_labels"]]
    assert diagnosed
    for entry in diagnosed:
        name = f"pseudo_labels/round_{entry['round']}.csv"
        assert (tmp_path / "rated" / name).read_bytes() == (plain / name).read_bytes()
        labels = pd.read_csv(plain / name)
        predicted, true = labels["score"], labels["image_id"].map(truth)
        assert entry["diagnosis"]["images"] == len(labels) == entry["pseudo_labels"]
        assert entry["diagnosis"]["mae"] == pytest.approx(np.abs(predicted - true).mean())
        assert entry["diagnosis"]["srcc"] == pytest.approx(stats.spearmanr(predicted, true).statistic)


# Save, then record, then report


def test_each_epoch_is_saved_then_recorded_then_reported(
    rounds: TrialConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = TrialFolder(tmp_path / "trial")

    def look(step: int) -> None:
        assert folder.epochs()[-1].step == step
        checkpoint = torch.load(folder.last_file, weights_only=True)
        assert checkpoint["step"] == checkpoint["record"]["step"] == step
        assert folder.best_file.exists()
        assert folder.result() is None

    reporter = Watching(look)
    run(rounds, "trial", reporter)
    assert reporter.steps == [1, 2, 3, 4]

    blocked = TrialFolder(tmp_path / "blocked")
    reporter = Watching()

    def fail(folder: TrialFolder, record: EpochRecord) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(TrialFolder, "append", fail)
    with pytest.raises(OSError, match="the disk is full"):
        run(rounds, "blocked", reporter)
    assert blocked.last_file.exists() and reporter.steps == []


@pytest.mark.parametrize(
    ("at", "error"),
    [
        *((at, TrialStopped()) for at in (1, 2, 3, 4)),
        (1, KeyboardInterrupt()),
        (2, RuntimeError("a fault of the program")),
    ],
)
def test_trial_stopped_at_an_epoch_resumes_bit_exactly(
    at: int, error: BaseException, rounds: TrialConfig, run: Run, unbroken: Unbroken, tmp_path: Path
) -> None:
    with pytest.raises(type(error)) as caught:
        run(rounds, "stopped", raising(error, at))
    assert caught.value is error  # with its own traceback
    assert TrialFolder(tmp_path / "stopped").result() is None
    reporter = Watching()
    run(rounds, "stopped", reporter)
    assert reporter.steps == list(range(at, 5))  # first what the checkpoint has
    assert_same_trial(tmp_path / "stopped", unbroken(rounds))


@pytest.mark.parametrize("values", [
    {"model.head": "mse", "self_training.rounds": 0, "training.epochs": 3, "optim.name": "sgd"},
    {"model.backbone": "test_vit_relpos", "optim.name": "adamw", "self_training.init": "restart"},
])  # fmt: skip
def test_trial_stopped_at_every_epoch_resumes_bit_exactly(
    values: dict[str, Any], rounds: TrialConfig, run: Run, unbroken: Unbroken, tmp_path: Path
) -> None:
    config = rounds.replace(values)
    for at in range(1, config.planned_epochs + 1):
        with pytest.raises(TrialStopped):
            run(config, "stopped", raising(TrialStopped(), at))
    run(config, "stopped")
    assert_same_trial(tmp_path / "stopped", unbroken(config))


def test_epoch_left_unrecorded_by_a_kill_is_reported_first(
    rounds: TrialConfig, run: Run, unbroken: Unbroken, tmp_path: Path
) -> None:
    with pytest.raises(TrialStopped):
        run(rounds, "stopped", raising(TrialStopped(), 3))
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 20])  # torn in its third line
    reporter = Watching()
    run(rounds, "stopped", reporter)
    assert reporter.steps == [3, 4]
    assert_same_trial(tmp_path / "stopped", unbroken(rounds))


# Kills and disks


def start_process(config: TrialConfig, folder: Path, cache: Path) -> Any:
    """The trial in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(
        target=run_trial, args=(config, TrialFolder(folder), NoReporter()), kwargs={"cache": ImageCache(cache)}
    )
    process.start()
    return process


def is_writing(folder: Path) -> bool:
    return any(folder.rglob(".*"))


def size(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_size, found.st_mtime_ns)


def test_kills_at_any_moment_cost_an_epoch_at_most(rounds: TrialConfig, cache: Path, tmp_path: Path) -> None:
    """Each process is killed some random time after its first sign of life, or while it writes a file.

    The signs are short and may pass unseen, so that an epoch more is one too: not one process goes through to the end.
    """
    multiprocessing.set_forkserver_preload(PRELOAD)
    config = rounds.replace({"training.epochs": 6, "self_training.epochs": 5})
    whole = start_process(config, tmp_path / "whole", cache)
    whole.join()
    assert whole.exitcode == 0
    seconds = json.loads((tmp_path / "whole" / "result.json").read_text())["seconds"]

    folder, chance, saved, kills = tmp_path / "killed", random.Random(0), 0, 0
    last, metrics = folder / "last.ckpt", folder / "metrics.jsonl"
    signs: list[Callable[[Any, int], bool]] = [
        lambda before, pid: folder.exists(),
        lambda before, pid: any(folder.rglob(f".*.{pid}.aside")),
        lambda before, pid: size(last) != before[0],
        lambda before, pid: size(metrics) != before[1],
    ]
    for number, seen in enumerate((*signs, *signs)):
        before, epochs = (size(last), size(metrics)), len(TrialFolder(folder).epochs())
        process = start_process(config, folder, cache)
        while process.is_alive() and not seen(before, process.pid) and len(TrialFolder(folder).epochs()) == epochs:
            time.sleep(0.001)
        if number >= len(signs):
            process.join(chance.uniform(0, 0.1) * seconds)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        now = torch.load(last, weights_only=True)["step"] if last.exists() else saved
        assert now >= saved
        assert len(TrialFolder(folder).epochs()) in (now, now - 1) or not last.exists()
        saved = now
    assert kills >= 2
    process = start_process(config, folder, cache)
    process.join()
    assert process.exitcode == 0
    assert_same_trial(folder, tmp_path / "whole")


def test_a_full_disk_loses_nothing(rounds: TrialConfig, run: Run, unbroken: Unbroken, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: int) -> None:
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))

    try:
        with pytest.raises(OSError, match=r"\.(ckpt|safetensors): can't be written, with \d+ MiB free there"):
            run(rounds, "full", Watching(fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not is_writing(tmp_path / "full")
    reporter = Watching()
    run(rounds, "full", reporter)
    assert reporter.steps == [2, 3, 4]
    assert_same_trial(tmp_path / "full", unbroken(rounds))


def test_folder_that_cannot_be_created_is_named(recipe: TrialConfig, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        run(recipe, "file/trial")


# Ends other than complete


@pytest.mark.parametrize("at", [1, 2, 3])
def test_pruned_trial_keeps_its_best_epoch(at: int, rounds: TrialConfig, run: Run, tmp_path: Path) -> None:
    result = run(rounds, "trial", raising(TrialPruned(), at))
    folder = tmp_path / "trial"
    lines = lines_of(folder)
    assert (result["state"], len(lines)) == ("pruned", at)
    assert result["reason"]
    assert result["value"] == max(line["srcc"] for line in lines)
    table = pd.read_csv(folder / "predictions.csv")
    assert stats.spearmanr(table["score"], table["gt"]).statistic == pytest.approx(result["value"])
    assert (folder / "best.safetensors").exists() and not (folder / "last.ckpt").exists()
    # The end of round 0 selects for a round that never comes: that is not "nothing was selected".
    assert [entry["round"] for entry in result["rounds"]] == sorted({line["round"] for line in lines})
    assert not any("skipped" in entry for entry in result["rounds"])


def test_saved_epoch_is_recorded_despite_an_earlier_verdict(
    rounds: TrialConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, verdicts = TrialFolder.append, [TrialPruned()]

    def append_late(folder: TrialFolder, record: EpochRecord) -> None:
        if record.step == 2 and verdicts:
            raise verdicts.pop()
        append(folder, record)

    monkeypatch.setattr(TrialFolder, "append", append_late)
    result = run(rounds)
    assert result["state"] == "pruned"
    lines = lines_of(tmp_path / "trial")
    assert [line["step"] for line in lines] == [1, 2]
    assert result["value"] == max(line["srcc"] for line in lines) == lines[result["best_step"] - 1]["srcc"]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nIncluding non-PyTorch memory, …"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:12])
def test_out_of_memory_fails_the_trial_and_keeps_its_best(
    error: Exception, rounds: TrialConfig, run: Run, tmp_path: Path
) -> None:
    result = run(rounds, "trial", raising(error, 2))
    assert result["state"] == "failed"
    assert result["reason"] == f"out of memory: {str(error).partition(chr(10))[0] or 'MemoryError'}"
    assert result["value"] == max(line["srcc"] for line in lines_of(tmp_path / "trial"))
    assert (tmp_path / "trial" / "best.safetensors").exists()
    assert len(pd.read_csv(tmp_path / "trial" / "predictions.csv")) == 16


def test_real_out_of_memory_fails_the_trial(recipe: TrialConfig, run: Run, tmp_path: Path) -> None:
    """A petabyte is more than an address can name, so the system refuses it before anything is touched."""
    config = TrialConfig.model_construct(
        **{**dict(recipe), "model": recipe.model.model_copy(update={"hidden_size": 10**12})}
    )
    result = run(config)
    assert result["state"] == "failed"
    assert result["reason"].startswith("out of memory: ")
    assert (result["value"], result["best_step"], result["metrics"]) == (None, None, {})
    assert sorted(path.name for path in (tmp_path / "trial").iterdir()) == ["config.yaml", "result.json"]


def test_a_diverged_loss_fails_the_trial_with_its_place(recipe: TrialConfig, run: Run) -> None:
    result = run(recipe.replace({"optim.name": "sgd", "optim.lr": 1e30}))
    assert result["state"] == "failed"
    assert result["reason"].startswith("the loss became nan in round 0, epoch 1, step ")


@pytest.fixture
def same_images(data_root: Path, tmp_path: Path) -> Path:
    """A data set whose validation images are all the same grey."""
    root = tmp_path / "grey"
    shutil.copytree(data_root, root)
    for number, file in enumerate(sorted((root / "images").glob("val_*"))):
        Image.new("RGB", (40, 40), (128, 128, 128)).save(file, compress_level=number % 10)
    return root


def test_constant_predictions_fail_the_trial_in_words(recipe: TrialConfig, run: Run, same_images: Path) -> None:
    config = recipe.replace({"data.root": str(same_images)})
    for name, reporter in (("complete", None), ("pruned", raising(TrialPruned(), 1))):
        result = run(config, name, reporter)
        assert (result["state"], result["value"]) == ("failed", None)
        assert result["reason"] == ("srcc is not a number in any epoch: the predictions are constant or not finite")
        assert result["metrics"]["mae"] > 0
    # What ended the trial first is the reason that stays.
    assert run(config, "memory", raising(MemoryError(), 1))["reason"] == "out of memory: MemoryError"


def test_another_configuration_in_the_same_folder_is_refused(recipe: TrialConfig, run: Run, tmp_path: Path) -> None:
    with pytest.raises(TrialStopped):
        run(recipe, "trial", raising(TrialStopped(), 1))
    before = {path: path.read_bytes() for path in (tmp_path / "trial").iterdir()}
    with pytest.raises(StudyError, match=r"trial/config\.yaml: another configuration was trained here"):
        run(recipe.replace({"optim.lr": 0.5}))
    assert {path: path.read_bytes() for path in (tmp_path / "trial").iterdir()} == before


def test_a_finished_trial_is_not_trained_again(recipe: TrialConfig, run: Run, tmp_path: Path) -> None:
    first = run(recipe)
    (tmp_path / "trial" / "last.ckpt").write_bytes(b"a kill between the result and this file's end left it")
    reporter = Watching()
    assert run(recipe, "trial", reporter) == first
    assert reporter.steps == []
    assert not (tmp_path / "trial" / "last.ckpt").exists()
    assert os.listdir(tmp_path) == ["trial"]
