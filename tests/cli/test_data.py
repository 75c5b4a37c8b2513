"""`elta-tune data`: what is wrong with a data set in the 80 columns of a terminal, and the cache by its parts."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from PIL import Image


@pytest.fixture
def data(elta_tune, tmp_path):
    """Runs a command of `data` with a cache of its own; with `--json` gives what it says."""

    def run(*arguments, code=0):
        done = elta_tune("data", *arguments, env={"ELTA_TUNE_CACHE": str(tmp_path / "cache")})
        assert done.returncode == code, done.stderr
        if "--json" in arguments:
            return json.loads(done.stdout)
        return done.stdout, done.stderr

    return run


@pytest.fixture
def root(tmp_path, data_root):
    """A data set that a test may change."""
    return shutil.copytree(data_root, tmp_path / "root")


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a table's rows by the first one."""
    return {cells[0]: cells[1:] for line in text.splitlines() if (cells := line.split())}


def test_check_shows_splits_and_the_histogram_with_its_tails(data, recipe_file, data_root):
    shown, _ = data("check", "tiny.yaml")
    lines = shown.splitlines()
    assert all(len(line) <= 80 for line in lines if str(data_root) not in line)
    described = rows(shown)
    assert described["train"][:1] == [str(data_root / "train.csv")]
    table = rows("\n".join(lines[: lines.index(next(line for line in lines if line.startswith("train ")))]))
    assert {name: table[name][:4] for name in ("train", "val", "test", "pool")} == {
        "train": ["32", "0", "0", "0"],
        "val": ["16", "0", "0", "0"],
        "test": ["16", "0", "0", "0"],
        "pool": ["16", "0", "0", "0"],
    }
    assert table["train"][4:9] == ["30", "…", "30", "…", "30"]
    content = data("check", "tiny.yaml", "--json")
    bars = [line for line in lines if "█" in line or "▏" in line]
    histogram = content["splits"]["train"]["histogram"]
    assert [int(line.split()[-3]) for line in bars] == [count for count in histogram if count]
    assert max(line.count("█") for line in bars) == 30
    low, high = content["tail_cuts"]
    (first,), (last,) = ([line for line in lines if f"{segment} tail" in line] for segment in ("low", "high"))
    assert f"≤ {low:.3f}" in first
    assert f"≥ {high:.3f}" in last
    assert first.split()[-3:] == [str(content["splits"][name]["segments"]["low"]) for name in ("train", "val", "test")]
    assert lines[-1] == "a study can start"


def test_check_ends_with_two_where_a_study_would_be_refused(data, recipe_file, tmp_path, root):
    Image.open(root / "images" / "pool_003.png").save(root / "images" / "holiday.bmp")
    (root / "images" / "train_000.png").unlink()
    with (root / "val.csv").open("a") as file:
        file.write("holiday.bmp,1,1,1,1,1\n")
    options = ("--set", f"data.root={root}", "--set", "data.max_missing=0.1")
    shown, refused = data("check", "tiny.yaml", *options, code=2)
    assert "1 image in pool and val, the same pixels: 'pool_003.png' = 'holiday.bmp'" in shown
    assert "train: 1 image left out: 'train_000.png': there is no such file" in shown
    assert "can start" not in shown
    assert "'pool_003.png' is also in" in refused
    content = data("check", "tiny.yaml", *options, "--json", code=2)
    assert not content["ok"]
    assert content["shared"][0]["second"]["id"] == "holiday.bmp"


def test_labels_only_needs_no_image(data, recipe_file, root):
    (root / "images").rename(root / "elsewhere")
    options = ("--set", f"data.root={root}")
    _, refused = data("check", "tiny.yaml", *options, code=2)
    assert "data.images" in refused
    shown, _ = data("check", "tiny.yaml", *options, "--labels-only")
    assert "missing" not in shown
    assert shown.splitlines()[-1] == "the labels are fine"


def test_the_cache_is_announced_built_listed_and_removed(data, recipe_file, data_root, tmp_path):
    size = 32 * 3 * (36**2 + 32**2) + 16 * 3 * 32**2 * 2 + 16 * 3 * (36**2 + 32**2)  # train, val and test, pool
    shown, _ = data("cache", "tiny.yaml", "--dry-run")
    assert rows(shown)["train"][:3] == ["32", "36,", "32"]
    assert f"to decode: {size / 1e3:.0f} kB" in shown
    assert not list(tmp_path.glob("cache/*/*/pixels.bin"))
    _, refused = data("cache", "tiny.yaml", "--limit-gb", str((size - 1) / 1e9), code=2)
    assert "more than the" in refused
    assert not list(tmp_path.glob("cache/*/*/pixels.bin"))
    shown, _ = data("cache", "tiny.yaml", "--limit-gb", str(size / 1e9))
    assert shown.splitlines()[-1] == "80 images are in the cache"
    assert sum(file.stat().st_size for file in tmp_path.glob("cache/*/*/pixels.bin")) == size
    assert data("cache", "tiny.yaml", "--json")["missing"] == 0
    listed = data("cache", "--json")["entries"]
    assert {(entry["edge"], entry["images"]) for entry in listed} == {(32, 80), (36, 48)}
    assert {entry["folder"] for entry in listed} == {str(data_root / "images")}
    key = next(entry["key"] for entry in listed if entry["edge"] == 36)
    shown, _ = data("cache", "--remove", key)
    assert f"removed {key}" in shown
    assert "36" not in [cells[1] for cells in rows(shown).values() if len(cells) > 1]
    assert [entry["edge"] for entry in data("cache", "--list", "--json")["entries"]] == [32]
    _, refused = data("cache", "--remove", key, code=2)
    assert f"there is no '{key}'" in refused


def test_unreadable_images_are_counted_when_the_cache_is_built(data, recipe_file, root):
    (root / "images" / "train_001.png").write_bytes(b"")
    shown, _ = data("cache", "tiny.yaml", "--set", f"data.root={root}")
    check = f"see: elta-tune data check tiny.yaml --set data.root={root}"
    assert shown.splitlines()[-1] == f"79 images are in the cache; 1 unreadable, {check}"
    (root / "images" / "train_002.png").unlink()
    shown, _ = data("cache", "tiny.yaml", "--set", f"data.root={root}")
    assert shown.splitlines()[-1] == f"78 images are in the cache; 1 missing, 1 unreadable, {check}"


def test_all_refused_files_are_listed_in_json(data, recipe_file, root):
    for split in ("train", "val"):
        with (root / f"{split}.csv").open("a") as file:
            file.write("odd,one,1,1,1,1\n")
    content = data("check", "tiny.yaml", "--set", f"data.root={root}", "--json", code=2)
    assert not content["ok"]
    messages = [item["message"] for item in content["refusals"]]
    assert [message.split(":")[0] for message in messages] == [str(root / "train.csv"), str(root / "val.csv")]
    _, refused = data("check", "tiny.yaml", "--set", f"data.root={root}", code=2)
    assert all(str(root / f"{split}.csv") in refused.replace("\n", "") for split in ("train", "val"))


def test_names_that_are_not_utf8_are_reported(data, recipe_file, root):
    (root / "pool").mkdir()
    shutil.copy(root / "images" / "pool_000.png", root / "pool" / "a.png")
    (root / "pool" / os.fsdecode(b"fot\xf6.png")).write_bytes(b"none")
    options = ("--set", f"data.root={root}", "--set", "data.pool=pool", "--set", "data.max_missing=0.5")
    content = data("check", "tiny.yaml", *options, "--json")
    assert [item["id"] for item in content["splits"]["pool"]["images"]["left_out"]] == ["fot\\udcf6.png"]
    shown, _ = data("check", "tiny.yaml", *options)
    assert "udcf6.png" in shown
