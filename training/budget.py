"""How long a run goes on, and when it stands still."""

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True)
class Budget:
    """Some steps, which repeats exactly, or until a moment, however busy we are.

    While `pause_file` exists a run stands still: for measuring something else on the same machine.
    """

    steps: int
    until: datetime | None = None
    pause_file: Path | None = None

    def progress(self, steps_done: int, started: float) -> float:
        """0 at the start of the run, 1 at its end; `started` in seconds since 1970."""
        if self.until is None:
            return min(1.0, steps_done / self.steps)
        return min(1.0, (time.time() - started) / max(1.0, self.until.timestamp() - started))

    def stand_still(self) -> None:
        """Return once there is no pause file."""
        while self.pause_file and self.pause_file.exists():
            time.sleep(1)
