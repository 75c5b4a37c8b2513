"""When failed trials end a study: node decides by the same rules as the supervisor."""

import json
import subprocess

import pytest

from elta_tune.studies.events import ANY_FAILURES_IN_A_ROW, FAILURES_IN_A_ROW, cause_of
from elta_tune.studies.nni.node import PATCHES, require_nni

pytest.importorskip("nni_node", reason="NNI is not installed")

CAUSES = {
    "the loss is nan at step 3": "the loss is  at step ",
    "the loss is inf at step 12": "the loss is  at step ",
    "the information is gone": "the information is gone",
    "ValueError: 3 and 4": "ValueError",
    "the process ended with exit code 3": "the process ended with exit code ",
    "the process was ended by SIGKILL": "the process was ended by SIGKILL",
    "out of memory on cuda:0, with 2 GiB free": "out of memory on cuda",
    "7 images": "",
    "": "",
}


def in_node(code):
    """The JSON that a script prints, which has `failures`."""
    script = f"const failures = require({json.dumps(str(PATCHES.with_name('failures.js')))}); {code}"
    run = subprocess.run([require_nni() / "node", "-e", script], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_both_languages_take_the_same_causes():
    assert {reason: cause_of(reason) for reason in CAUSES} == CAUSES
    reasons = json.dumps(list(CAUSES))
    assert in_node(f"console.log(JSON.stringify({reasons}.map(failures.causeOf)))") == list(CAUSES.values())


ENDS = {
    "the same cause": ([("FAILED", f"code {n}") for n in range(3)], [None, None, "alike"]),
    "a success between": ([("FAILED", "a"), ("SUCCEEDED", ""), ("FAILED", "a"), ("FAILED", "a")], [None] * 4),
    "a pruned trial between": ([("FAILED", "a"), ("EARLY_STOPPED", ""), ("FAILED", "a"), ("FAILED", "a")], [None] * 4),
    "a cancelled one between": (
        [("FAILED", "a"), ("USER_CANCELED", "")] + [("FAILED", "a")] * 2,
        [None] * 3 + ["alike"],
    ),
    "any cause": ([("FAILED", "ab"[n % 2]) for n in range(11)], [None] * 9 + ["failures"] * 2),
}


@pytest.mark.parametrize("name", sorted(ENDS))
def test_failures_in_a_row_end_a_study(name):
    trials, ends = ENDS[name]
    limits = json.dumps({"alike": FAILURES_IN_A_ROW, "any": ANY_FAILURES_IN_A_ROW})
    code = f"const watch = failures.failureWatch(() => ({limits}));"
    assert in_node(f"{code} console.log(JSON.stringify({json.dumps(trials)}.map(trial => watch(...trial))))") == ends
