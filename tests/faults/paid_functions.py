"""Reward functions that pay the referee, to run in a worker process: FAULT_URL says where, FAULT_HANGS what hangs."""

from __future__ import annotations

import os
import time

from referees import label


def labels(completions: list[str], idempotency_key: list[str]) -> list[float]:
    values = []
    for completion, key in zip(completions, idempotency_key, strict=True):
        values.append(label(os.environ["FAULT_URL"], key))
        what, _, number = os.environ["FAULT"].partition(":")
        if int(key, 16) % 7 == int(number):
            if what == "hang":
                time.sleep(60)
            elif what == "die":
                os._exit(3)
            elif what == "raise":
                raise RuntimeError(f"no label for {completion[:10]}")
    return values
