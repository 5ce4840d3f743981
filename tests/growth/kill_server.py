"""A process that has everything imported and starts growth runs by forking, to be killed.

Protocol: a line on standard input names a schedule of the learning rate and a folder; the answers
are the run's process id, and once it is gone its return code. It never runs a backward pass itself:
autograd does not survive a fork.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch._dynamo  # noqa: F401  imported here, as what follows, and not in every run
from growing import make_data, make_model, make_substrate, make_train
from tensorboard.compat.proto import event_pb2  # noqa: F401
from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: F401

from fastgrow.growth import GrowthSchedule, LoRA, Moments, Plateau, Stage, grow

# A block is active, frozen with LoRA on it, and active again; the last stage ends by a plateau.
SCHEDULE = GrowthSchedule(
    [
        Stage(1, 1024),
        Stage(1, 1024, "copy", lora=LoRA(rank=2, alpha=4.0)),
        Stage(1, 2048, "identity", train="all", until=Plateau(patience=2, min_delta=0.1)),
    ],
    moments=Moments(copied="copy", thawed="restore"),
)


def main() -> None:
    substrate = make_substrate()
    data = make_data(substrate, Path(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            schedule, _, out = line.strip().partition(" ")
            run(schedule, Path(out), substrate, data)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(schedule: str, out: Path, substrate, data) -> None:
    """In the child: grow, and leave without the parent's clean-up."""
    code = 1
    try:
        train = make_train(
            schedule=schedule, decay=0.2, checkpoint_every=3, accumulate=2, eval_every=2
        )
        grow(make_model(substrate), data, SCHEDULE, train=train, out=out, name="run", quiet=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
