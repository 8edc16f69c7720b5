"""What a worker does in these tests: `python job.py BEHAVIOUR`. It never loads MindSpore, except for `allreduce`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from spark13b.cluster import worker
from spark13b.errors import InputError

_PRINTED = ("MS_ROLE", "RANK_TABLE_FILE", "RANK_SIZE", "RANK_ID", "DEVICE_ID", "GLOG_v")


def report(me: worker.Worker) -> dict[str, Any]:
    """Some progress, and the environment."""
    me.progress.note(f"worker {me.rank} of {me.size}")
    with me.progress.track("training", 3, "steps") as meter:
        for step in range(1, 4):
            me.begin_step(step)
            meter.show(loss=f"{1 / step:.2f}")
            meter.advance()
    print("a line of", me.rank)
    return {"environment": {name: os.environ.get(name) for name in _PRINTED}}


def fail(me: worker.Worker) -> dict[str, Any]:
    """Worker 1 finds an error; the others wait for it."""
    if me.rank == 1:
        raise InputError("the row is empty", where="rows.jsonl", line=7, fix="fill it")
    return wait(me)


def fail_alike(me: worker.Worker) -> dict[str, Any]:
    """All find the same error."""
    raise InputError("the row is empty", where="rows.jsonl", line=7, fix="fill it")


def lose_peer(me: worker.Worker) -> dict[str, Any]:
    """Worker 1 is killed; worker 0 reports that it has lost it, before anybody has seen the death."""
    say_when_all_are_here(me, "together")
    if me.rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("AllReduceCPUKernelMod launch failed.")


def leave(me: worker.Worker) -> dict[str, Any]:
    """Worker 1 ends as a crash in a library does, without a word to the launcher."""
    if me.rank == 1:
        print("[WARNING] ME(12:34,python):2026 noise of MindSpore")
        print("the library has had enough", flush=True)
        os._exit(3)
    return wait(me)


def hang(me: worker.Worker) -> dict[str, Any]:
    """Worker 1 stays in its second step, when worker 0 is in its third."""
    third = Path(os.environ["SPARK13B_REPORTS"]) / "third"
    while me.rank == 1 and not third.exists():
        time.sleep(0.02)
    for step in range(1, 4 - me.rank):
        me.begin_step(step)
    third.touch()
    return stay_in_here(me)


def stay_in_here(me: worker.Worker) -> dict[str, Any]:
    """Deaf, and with a child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    say_when_all_are_here(me, "waiting")
    time.sleep(1000)
    return {}


def wait(me: worker.Worker) -> dict[str, Any]:
    """Do nothing for long."""
    me.begin_step(1)
    say_when_all_are_here(me, "waiting")
    time.sleep(1000)
    return {}


def stop(me: worker.Worker) -> dict[str, Any]:
    """Take steps until asked to stop, then finish the step, as `train` does."""
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    say_when_all_are_here(me, "stepping")
    while not asked:
        time.sleep(0.02)
    time.sleep(0.3)
    return {"finished": False, "signals": len(asked)}


def stop_slowly(me: worker.Worker) -> dict[str, Any]:
    """When asked to stop, have much to finish; when asked again, leave."""

    def ask(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        me.progress.note("saving")

    signal.signal(signal.SIGINT, ask)
    say_when_all_are_here(me, "stepping")
    time.sleep(1000)
    return {}


def crash_late(me: worker.Worker) -> dict[str, Any]:
    """Worker 1 crashes when all is done."""
    if me.rank == 1:
        me.write_result({})
        os.abort()
    return {"done": True}


def say_when_all_are_here(me: worker.Worker, text: str) -> None:
    """A note of worker 0, when every worker of this machine has come so far."""
    folder = Path(os.environ["SPARK13B_REPORTS"])
    (folder / f"here_{me.rank}").touch()
    while me.rank == 0 and len(list(folder.glob("here_*"))) < me.size:
        time.sleep(0.02)
    me.progress.note(text)


def allreduce(me: worker.Worker) -> dict[str, Any]:
    """The sum of all ranks plus one, by MindSpore."""
    import numpy as np
    from mindspore import Tensor, ops

    join()
    return {"sum": float(ops.AllReduce()(Tensor(np.array([me.rank + 1], np.float32))).asnumpy()[0])}


def join() -> None:
    """Start MindSpore's communication; in the scheduler it returns when all workers have left."""
    import mindspore
    from mindspore import communication

    mindspore.set_device("CPU")
    communication.init()


def main(behaviour: str) -> None:
    if worker.is_scheduler():
        # the other behaviours need no scheduler: it stays until it is ended
        worker.schedule(join if behaviour == "allreduce" else lambda: time.sleep(1000))
    else:
        assert worker.is_worker()
        with worker.reporting() as me:
            me.write_result(globals()[behaviour](me))


if __name__ == "__main__":
    main(sys.argv[1])
