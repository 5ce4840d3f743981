"""A TensorBoard event file of scalars.

TensorBoard's own writer writes from a thread: buffered events are lost if the process is killed,
and a full disk shows as a traceback of that thread. This writer writes immediately and raises
errors in the calling thread.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any


class EventFile:
    """Write scalars by step to a new event file.

    Args:
        folder: folder of the file, to be passed to `tensorboard --logdir`.
        first_step: TensorBoard hides events from this step on in the folder's other files, which an
            interrupted run may have written.

    Raises:
        ImportError: TensorBoard is not installed.
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = event_pb2.Event
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb", buffering=0)
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=first_step, session_log=start)

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write one value."""
        self._write(step=step, summary={"value": [{"tag": name, "simple_value": value}]})

    def close(self) -> None:
        self._file.close()

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
