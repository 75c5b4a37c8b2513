"""`elta-tune space check`: what a space varies, at a glance, in the 80 columns of a terminal."""

import pytest

TALL = """
objective: {metric: mae}
budget: {trials: 7}
sampler: {name: random}
pruner: {name: none}
parameters:
  optim.lr: {type: float, low: 0.1x, high: 10x, log: true}
  training.epochs: {type: int, low: 1, high: 9, step: 4}
  model.backbone: {type: categorical, choices: [test_efficientnet, test_resnet, test_vit, mobilenetv3_small_050, dla34]}
  mixup.alpha: {type: categorical, choices: [1, null]}
  model.pretrained: {type: categorical, choices: [true, false]}
  self_training.rounds: {type: int, low: 0, high: 2}
  sharpening.target: {type: categorical, choices: [raw, sharpened], when: self_training.rounds > 0}
"""


@pytest.fixture
def check(elta_tune, tmp_path, recipe_file):
    (tmp_path / "tall.yaml").write_text(TALL)

    def check(*arguments):
        done = elta_tune("space", "check", "tall.yaml", "--recipe", "tiny.yaml", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.rstrip() for line in done.stdout.splitlines()]
        assert all(len(line) <= 80 for line in lines)
        return lines

    return check


def row(lines, name):
    """The cells of a parameter's row, joined over the lines that it takes."""
    start = next(index for index, line in enumerate(lines) if line.startswith(f" {name} "))
    end = next(index for index in range(start + 1, len(lines)) if not lines[index].startswith("    "))
    cells = lines[start].split(maxsplit=2)
    return [cells[1], " ".join([*cells[2].split(), *(line.strip() for line in lines[start + 1 : end])])]


def test_a_space_is_shown_with_the_recipes_values(check):
    lines = check("--set", "training.epochs=5")
    assert row(lines, "optim.lr") == ["0.003", "0.0003 … 0.03 (log)"]
    assert row(lines, "training.epochs") == ["5", "1 … 9 by 4"]
    assert row(lines, "mixup.alpha") == ["null", "1, null"]
    assert row(lines, "model.pretrained") == ["false", "true, false"]
    assert row(lines, "self_training.rounds") == ["0", "0 … 2"]
    assert row(lines, "sharpening.target") == ["raw", "raw, sharpened when self_training.rounds > 0"]
    assert row(lines, "model.backbone")[1].endswith("mobilenetv3_small_050, dla34")
    assert lines[-2:] == ["minimize mae; 7 trials; random sampler; no pruner", "tall.yaml fits tiny.yaml"]


def test_missing_pool_is_reported_with_the_fields_it_disables(check, tmp_path):
    for split in ("train", "val"):
        rows = [f"{split}{number},{number % 5},3" for number in range(60)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["name,count_1,count_2", *rows]) + "\n")
    lines = check("--set", "training.epochs=5", "--set", f"data.root={tmp_path}")
    assert not [line for line in lines if line.startswith(" self_training")]
    note = "note: no pool: self_training.rounds is held at 0; not varied: self_training.rounds, sharpening.target"
    assert note in " ".join(lines)


def test_data_that_are_not_named_are_not_checked(check):
    assert check("--set", "training.epochs=5", "--set", "data.root=null")[-2:] == [
        "the data were not checked; to name them: --set data.root=FOLDER",
        "tall.yaml fits tiny.yaml",
    ]


def test_a_space_that_does_not_fit_is_refused(elta_tune, tmp_path, recipe_file):
    (tmp_path / "tall.yaml").write_text(TALL)
    done = elta_tune("space", "check", "tall.yaml", "--recipe", "tiny.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "elta-tune: tall.yaml:8: parameters.training.epochs: "
        "the recipe's value 2 is outside 1 … 9 by 4, and trial 0 trains the recipe: "
        "widen the range, or start from another recipe: --set training.epochs=1\n"
    )
