"""What stands for parts of Ray on a cluster that a job has started for itself."""

import asyncio
import os
import threading

import pytest

from mnist_ray.cluster import runtime
from mnist_ray.cluster.alone import _Meeting, _until


def test_every_worker_gets_what_rank_0_says_in_the_same_round_in_any_order() -> None:
    async def rank(meeting: _Meeting, number: int) -> list[str]:
        heard = []
        for sent in "abc":
            await asyncio.sleep(0.01 * ((number * 2 + ord(sent)) % 3))
            heard.append(await meeting.broadcast_from_rank_zero(number, sent if number == 0 else None))
        return heard

    async def meet() -> list[list[str]]:
        meeting = _Meeting(timeout_s=1)
        return await asyncio.gather(*(rank(meeting, number) for number in range(3)))

    assert asyncio.run(meet()) == [["a", "b", "c"]] * 3


def test_the_controller_is_cancelled_when_the_job_ends_and_its_error_passes() -> None:
    ended = threading.Event()

    async def end_the_job_and_wait() -> None:
        ended.set()
        await asyncio.Event().wait()

    async def fail() -> None:
        raise RuntimeError("the controller failed")

    with pytest.raises(RuntimeError, match="the controller failed"):
        asyncio.run(_until(ended, fail()))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_until(ended, end_the_job_and_wait()))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_until(ended, end_the_job_and_wait()))  # it has ended already


def test_settings_for_ray_end_with_the_job_and_leave_those_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "1")
    before = dict(os.environ)
    with runtime._settings(runtime.OWN_CLUSTER):
        assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "1"
        assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
    assert dict(os.environ) == before
