"""An engine process for tests, run as a script: serves `linear` version 1 of a repository on a socket whose descriptor
it is given, with a decoder that never comes to an end.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from serving.catalog import Catalog
from serving.devices import CPU, Device
from serving.handover import Back
from serving.loading import Loader
from serving.metrics import Metrics
from serving.pool import Pool
from serving.settings import Settings


def never(*_: object) -> None:
    """What no batch comes back from."""
    threading.Event().wait()


async def main(repository: Path, descriptor: int) -> None:
    """Until the process is killed."""
    settings = Settings(models=repository, port=0, metrics_port=0, device="cpu", reconstruct_share=0)
    loader = Loader(settings, [Device(CPU)], Pool(1), Metrics(), lambda: None)
    model: Any = await loader.load(repository / "linear" / "1", rehearsed=False)
    model.batchers["decoder"]._engines[0].run = never
    catalog = Catalog()
    catalog.put(model)
    catalog.default = "linear"
    await Back(catalog, 1).serve(socket.socket(fileno=descriptor))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
