"""What a study and its trials leave on disk, and only here how that is written and read.

    runs/NAME/                       a study                        StudyFolder
    ├── study.yaml                   space, recipe, seed, versions
    ├── study.db  study.lock
    └── trials/0000/                 a trial                        TrialFolder
        ├── config.yaml              complete: re-runs by itself
        ├── metrics.jsonl            a line per epoch               EpochRecord
        ├── best.safetensors         weights of the best epoch; over a frozen backbone, only of the head
        ├── last.ckpt                to resume; gone when finished  SavedEpoch
        ├── pseudo_labels/round_1.csv
        ├── predictions.csv          validation, at the best epoch
        ├── log.txt  trial.lock      the lock if no study's lock holds the trial
        └── result.json              written last: a trial without it is unfinished   TrialResult

`metrics.jsonl` is appended, and a torn last line is dropped. The other files are written under a temporary name and
then renamed.
"""

from elta_tune.records.epoch import Best, EpochRecord
from elta_tune.records.result import Environment, ModelFacts, RoundRecord, SplitRecord, State, TrialResult
from elta_tune.records.study_folder import StudyFolder, find_studies, open_study, preparing_studies
from elta_tune.records.trial_folder import SavedEpoch, TrialFolder, locked

__all__ = [
    "Best",
    "Environment",
    "EpochRecord",
    "ModelFacts",
    "RoundRecord",
    "SavedEpoch",
    "SplitRecord",
    "State",
    "StudyFolder",
    "TrialFolder",
    "TrialResult",
    "find_studies",
    "locked",
    "open_study",
    "preparing_studies",
]
