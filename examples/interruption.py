"""Ending a run in good order: Ctrl-C and SIGTERM become a question that the training loop asks."""

import signal
import threading


class Interruption:
    """While it is entered, the first SIGINT or SIGTERM is noted in `signal`; a second one acts as usual."""

    SIGNALS = signal.SIGINT, signal.SIGTERM

    def __init__(self):
        self.signal: int | None = None
        self._usual = {}

    def __enter__(self) -> "Interruption":
        # Python hands signals to the main thread only; elsewhere they keep their usual effect.
        if threading.current_thread() is threading.main_thread():
            self._usual = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number, frame):
        del frame
        self.signal = number
        self._restore()

    def _restore(self):
        while self._usual:
            signal.signal(*self._usual.popitem())
