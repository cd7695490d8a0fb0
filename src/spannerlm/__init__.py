"""Label-efficient exploration for reinforcement learning with language models, through a sampling oracle."""

from __future__ import annotations

from spannerlm.api import explore
from spannerlm.run import Result
from spannerlm.tilted import load_policy

__version__ = "0.1.0"

__all__ = ["Result", "__version__", "explore", "load_policy"]
