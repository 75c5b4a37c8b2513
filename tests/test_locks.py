"""Locks: one holder, known by its process number; a child may inherit one, and a kill releases it."""

import os
import platform
import subprocess
import sys
import time
from threading import Thread

import pytest

from elta_tune.locks import Held, Owner, exclusive_lock, hold, is_held, owner

HOLD = """
import sys, time
from pathlib import Path
from elta_tune.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds `lock`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_holder_of_a_lock_is_known_until_it_is_killed(tmp_path, other):
    lock = tmp_path / "lock"
    assert (is_held(lock), owner(lock)) == (True, Owner(other.pid, platform.node()))
    with pytest.raises(Held) as caught, hold(lock):
        pass
    assert str(caught.value) == f"process {other.pid}"
    other.kill()
    other.wait()
    assert (is_held(lock), owner(lock)) == (False, None)
    with hold(lock):
        assert owner(lock) == Owner(os.getpid(), platform.node())


def test_a_lock_that_nobody_ever_took_is_free(tmp_path):
    assert (is_held(tmp_path / "none"), owner(tmp_path / "none")) == (False, None)
    assert not (tmp_path / "none").exists()  # looking leaves nothing behind


def test_a_child_that_inherits_a_lock_holds_it_for_its_own_life(tmp_path):
    lock = tmp_path / "folder" / "lock"
    with hold(lock) as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(descriptor,))
    assert is_held(lock)
    child.communicate(b"\n")
    assert not is_held(lock)


def test_waiter_takes_the_next_lock_if_the_holder_removes_one(tmp_path):
    lock, order = tmp_path / "lock", []

    def other(name):
        with exclusive_lock(lock):
            order.append(f"{name} begins")
            time.sleep(0.05)
            order.append(f"{name} ends")

    with exclusive_lock(lock):
        threads = [Thread(target=other, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert order == []
        lock.unlink()
    for thread in threads:
        thread.join()
    assert [line.split()[1] for line in order] == ["begins", "ends"] * 2
