"""Where the time went."""

from __future__ import annotations

from webui.flight import FlightRecord
from webui.illustrated.checks import Check

WORDS = {
    "prompt": "Reading the prompt",
    "net": "The net",
    "scheduler": "The scheduler",
    "vae": "Decoding by the VAE",
    "watching": "Recording this",
    "other": "Everything else",
}
TOLERANCE = 0.02


def stages(record: FlightRecord) -> list[tuple[str, float]]:
    """What was done, for a person, and its seconds, in the order of the run."""
    return [(WORDS.get(name, name), seconds) for name, seconds in record.seconds.items()]


def checks(record: FlightRecord) -> list[Check]:
    """The stages leave nothing of the run out."""
    total = sum(seconds for _, seconds in stages(record))
    error = abs(total - record.wall) / record.wall if record.wall > 0 else float(total > 0)
    return [Check("seconds of the stages = seconds of the run", error, TOLERANCE)]
