"""Its place: pytest puts the folder of a conftest on the path, so that every test can import `laws`. And signals."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Where the suite runs in the background of a shell, commands that it starts would inherit that and sleep on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
