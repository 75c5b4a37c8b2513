"""The Python API runs a study under NNI, and what ends the call ends node and all that it started."""

import pytest
import yaml

import elta_tune
from elta_tune.records import StudyFolder
from elta_tune.studies.events import Finished, Started
from elta_tune.studies.nni.folder import NniFolder
from elta_tune.studies.nni.node import members

pytest.importorskip("nni_node", reason="NNI is not installed")
SPACE = {
    "budget": {"trials": 2},
    "sampler": {"name": "random"},
    "parameters": {"optim.lr": {"type": "categorical", "choices": [3e-3, 6e-3]}},
}


@pytest.mark.slow
def test_failing_callback_ends_the_call_and_the_next_resumes(tmp_path, make_plan_of, cache):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    (tmp_path / "tiny.yaml").write_text(make_plan_of(SPACE["parameters"]).recipe.to_yaml())
    arguments = {"runs": tmp_path / "runs", "name": "one", "backend": "nni", "workers": 1, "devices": "cpu"}
    nni = NniFolder(StudyFolder(tmp_path / "runs" / "one"))
    seen = []

    def run(on_event):
        return elta_tune.run(
            tmp_path / "space.yaml", tmp_path / "tiny.yaml", cache=cache, on_event=on_event, **arguments
        )

    def fail(event):
        seen.append(event)
        if isinstance(event, Started):
            assert members(nni)
            raise RuntimeError("the callback's own fault")

    with pytest.raises(RuntimeError, match="own fault"):
        run(fail)
    assert members(nni) == [] and not nni.study.is_running()
    study = run(seen.append)
    assert len([event for event in seen if isinstance(event, Finished)]) == 2
    assert len(study.results) == 2 and members(nni) == []
