"""Slots that processes share by lock files: each has one holder, and is free again when that is killed."""

import subprocess
import sys

from elta_tune.executors import Slot
from elta_tune.studies.nni.slots import take_slot

SLOTS = [Slot("cuda:0", 2), Slot("cuda:1", 2), Slot("cuda:0", 2)]
TAKE = """
import sys
from pathlib import Path
from elta_tune.executors import Slot
from elta_tune.studies.nni.slots import take_slot
slots = [Slot("cuda:0", 2), Slot("cuda:1", 2), Slot("cuda:0", 2)]
with take_slot(Path(sys.argv[1]), slots) as slot:
    print(slot.device, flush=True)
    input()
"""


def test_each_slot_runs_one_process_and_a_killed_one_frees_it(tmp_path):
    def start():
        command = [sys.executable, "-c", TAKE, str(tmp_path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    processes = [start() for _ in SLOTS]
    try:
        taken = [process.stdout.readline().strip() for process in processes]
        assert sorted(taken) == ["cuda:0", "cuda:0", "cuda:1"]
        waiting = start()
        processes.append(waiting)
        killed = processes[taken.index("cuda:1")]
        killed.kill()
        assert waiting.stdout.readline().strip() == "cuda:1"
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    with take_slot(tmp_path, SLOTS) as slot:
        assert slot == SLOTS[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0-cuda:0", "1-cuda:1", "2-cuda:0"]
