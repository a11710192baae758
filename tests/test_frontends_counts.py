"""Ledgers, the page that is made of them, and the control socket, without processes but for one that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest, values
from prometheus_client.parser import text_string_to_metric_families

from serving import swift_metrics
from serving.processes import control, ledger, page
from serving.processes.control import Control, Gone
from serving.processes.ledger import Ledger
from serving.swift_metrics import Counter, Histogram


@pytest.fixture
def fd() -> Iterator[int]:
    made = ledger.create("test")
    yield made
    os.close(made)


def read(fd: int) -> dict[tuple[str, Any], float]:
    return {(sample, labels): value for (_, sample, labels), value in ledger.read(fd)}


def test_a_successor_goes_on_counting_where_the_last_one_ended(fd: int) -> None:
    for n in range(1, 4):
        kept, at = Ledger(fd).place("calls", "calls_total", {"rpc": "Decode", "code": "Ö"})
        kept[at] += 1.5
        assert read(fd) == {("calls_total", (("code", "Ö"), ("rpc", "Decode"))): 1.5 * n}


def test_a_ledger_grows_and_places_that_were_given_before_stay(fd: int) -> None:
    book = Ledger(fd)
    places = [book.place("f", f"series_{n}", {"label": "x" * 50}) for n in range(3000)]
    for n, (kept, at) in enumerate(places):
        kept[at] += n
    assert [value for _, value in ledger.read(fd)] == list(range(3000))
    kept, at = Ledger(fd).place("f", "series_2999", {"label": "x" * 50})
    assert kept[at] == 2999


def test_what_is_taken_away_is_not_there_and_begins_anew(fd: int) -> None:
    book = Ledger(fd)
    for version in "12":
        kept, at = book.place("items", "items_total", {"model": "m", "version": version})
        kept[at] = 7
    book.take_away("items", {"version": "1"})
    assert read(fd) == {("items_total", (("model", "m"), ("version", "2"))): 7}
    old, at = book.place("items", "items_total", {"model": "m", "version": "1"})
    assert old[at] == 0


def test_a_writer_that_is_killed_loses_nothing(fd: int) -> None:
    """It tells how far it is after each addition; what is kept is that, or one more."""
    code = (
        f"from serving.processes.ledger import Ledger\nkept, at = Ledger({fd}).place('f', 's', {{}})\n"
        "while True:\n    kept[at] += 1\n    print(int(kept[at]), flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[fd], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(100):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        said = [line for line in writer.stdout.read().split("\n") if line]
    (value,) = [value for _, value in ledger.read(fd)]
    assert value - int(said[-1] if said else 100) in (0, 1) or len(said[-1]) < len(str(int(value)))


def metrics(registry: CollectorRegistry) -> list[Any]:
    """Some of each kind."""
    return [
        Counter("calls", "Calls.", ["code"], registry=registry),
        Counter("scans", "Scans.", registry=registry),
        Histogram("seconds", "Seconds.", ["rpc"], buckets=(0.1, 1.0), registry=registry),
        Gauge("inside", "Inside.", registry=registry),
        Gauge("loaded", "Loaded.", ["model"], registry=registry),
    ]


def use(process: int, calls: Any, scans: Any, seconds: Any, inside: Any, loaded: Any) -> None:
    """What a process does that has these."""
    calls.labels("OK").inc(process + 1)
    calls.labels(f"ERROR{process}").inc()
    scans.inc(0.5)
    for value in (0.05, 0.5, 5.0 * process):
        seconds.labels("Decode").observe(value)
    inside.inc(process)
    loaded.labels(f"model {process}").set(1)


def test_the_page_is_the_sum_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    own, alone = CollectorRegistry(), CollectorRegistry()
    metrics(own)
    whole = metrics(alone)
    fds, heard = [ledger.create("test") for _ in range(3)], []
    for process, fd in enumerate(fds):
        use(process, *whole)
        registry = CollectorRegistry()
        with monkeypatch.context() as patch:
            patch.setattr(values, "ValueClass", values.ValueClass)  # what is there comes back
            swift_metrics.keep_in(Ledger(fd).place)
            use(process, *metrics(registry))
        heard += page.gauges(registry)
    made = page.Page(own, fds, lambda: ())
    made.heard = heard

    def told(registry: Any) -> dict[Any, float]:
        families = text_string_to_metric_families(generate_latest(registry).decode())
        return {
            (each.name, tuple(sorted(each.labels.items()))): each.value
            for family in families
            for each in family.samples
            if not each.name.endswith("_created")
        }

    assert told(made) == told(alone)
    for fd in fds:
        os.close(fd)


async def test_messages_come_in_order_with_their_descriptors_and_answers() -> None:
    heard: list[Any] = []
    gone = asyncio.Event()
    one, other = control.pair()
    asks = Control(one, lambda *_: None, lambda: None)
    answers = Control(other, lambda *said: heard.append(said), gone.set, {"twice": lambda body: {"n": 2 * body["n"]}})
    reading, writing = os.pipe()
    for n in range(500):  # more than a socket takes at once
        asks.send("large", {"n": n, "padding": "x" * 2000})
    asks.send("take", {}, [writing])
    os.close(writing)
    assert await asyncio.wait_for(asks.ask("twice", {"n": 21}), 30) == {"n": 42}
    assert [body["n"] for kind, body, _ in heard if kind == "large"] == list(range(500))
    kind, _, (given,) = heard[-1]
    os.write(given, b"through it")
    assert (kind, os.read(reading, 100)) == ("take", b"through it")
    os.close(given)
    os.close(reading)
    question = asyncio.ensure_future(answers.ask("nobody answers"))
    await asyncio.sleep(0)
    asks.close()
    await asyncio.wait_for(gone.wait(), 30)
    with pytest.raises(Gone):
        await question
    answers.send("nothing happens")


async def test_who_does_not_read_is_given_up_beyond_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_MOST_UNSENT", 1 << 20)
    one, other = control.pair()
    gone = asyncio.Event()
    writer = Control(one, lambda *_: None, gone.set)
    for _ in range(20):
        writer.send("padding", {"text": "x" * (1 << 17)})
    await asyncio.wait_for(gone.wait(), 30)
    assert not writer.open
    other.close()
