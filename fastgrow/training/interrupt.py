"""Handle SIGINT (Ctrl-C) and SIGTERM so that the current step is finished."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_NOTICE = b"\nstopping after this step and saving; a second signal stops at once, without saving\n"


class InterruptGuard:
    """Context manager in which the first SIGINT or SIGTERM only sets `requested`.

    A second signal stops the process at once. Python runs signal handlers in the main thread only;
    in other threads the guard does nothing.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            if number == signal.SIGTERM:
                raise SystemExit(128 + number)
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)
        # The handler may run in the middle of a print, so it must not use the stream objects.
        os.write(2, _NOTICE)
