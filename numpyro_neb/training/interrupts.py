"""Makes Ctrl-C act between two steps of a long job, not in the middle of one."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Defers a Ctrl-C; the function that it yields raises the deferred KeyboardInterrupt.

    A second Ctrl-C is not deferred. In threads, or with a custom handler set, nothing is deferred.

    Example:
        >>> from numpyro_neb.training.interrupts import held_interrupts
        >>> with held_interrupts() as check:
        ...     for step in range(3):
        ...         check()  # between two steps
    """
    came = []

    def hold(signum, frame):
        del signum, frame
        if came:
            raise KeyboardInterrupt
        came.append(True)

    def check():
        if came:
            raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
