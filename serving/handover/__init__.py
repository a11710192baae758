"""What goes between the front ends, which answer calls, and the engine process, which runs the graphs.

    servicer ─ Model ─ RemoteBatcher ─ Remote ══ socket and arena ══ Back ─ Batcher ─ engine
               (replica)              (front end)                   (engine process)

Knows neither gRPC nor ONNX, nor how the processes are started.
"""

from __future__ import annotations

from serving.handover.back import Back
from serving.handover.remote import ARENA_BYTES, EngineGone, Remote

__all__ = ["ARENA_BYTES", "Back", "EngineGone", "Remote"]
