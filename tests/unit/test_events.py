"""The event monitor: its format, its targets, and readers that are slow or gone."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.events import EventSink, open_event_sink

MORE_THAN_A_PIPE_HOLDS = 100
TEXT_THAT_A_PIPE_MAY_TEAR = "x" * 5000


def read_events(text: str) -> list[dict[str, object]]:
    *events, rest = text.split("\n\n")
    assert rest == ""
    return [json.loads(event) for event in events]


def test_event_is_an_indented_object_and_an_empty_line(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with open_event_sink(str(path)) as sink:
        sink.emit("vm", "device-removed", {"id": "_disk0", "bdf": "0000:00:05.0"})

    text = path.read_text()
    secs, nanos = json.loads(text)["timestamp"].values()
    assert text == (
        "{\n"
        '  "timestamp": {\n'
        f'    "secs": {secs},\n'
        f'    "nanos": {nanos}\n'
        "  },\n"
        '  "source": "vm",\n'
        '  "event": "device-removed",\n'
        '  "properties": {\n'
        '    "id": "_disk0",\n'
        '    "bdf": "0000:00:05.0"\n'
        "  }\n"
        "}\n\n"
    )


def test_event_without_properties_has_null(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with open_event_sink(str(path)) as sink:
        sink.emit("vmm", "starting")

    assert read_events(path.read_text())[0]["properties"] is None


def test_timestamps_count_from_the_start_of_the_monitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events"
    times = iter([5_000_000_000, 5_000_000_007, 8_250_000_000])
    monkeypatch.setattr("vmm.events.time.monotonic_ns", lambda: next(times))
    with open_event_sink(str(path)) as sink:
        sink.emit("vm", "booting")
        sink.emit("vm", "booted")

    stamps = [event["timestamp"] for event in read_events(path.read_text())]
    assert stamps == [{"secs": 0, "nanos": 7}, {"secs": 3, "nanos": 250_000_000}]


def test_file_of_an_earlier_run_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text("old")
    with open_event_sink(str(path)) as sink:
        sink.emit("vm", "booted")

    assert len(read_events(path.read_text())) == 1


def test_inherited_descriptor_is_written_without_blocking_and_closed() -> None:
    reader, writer = os.pipe()
    with open_event_sink(writer) as sink:
        is_blocking = os.get_blocking(writer)
        sink.emit("vm", "booted")

    with os.fdopen(reader) as pipe:  # Reads to the end: the writer is closed.
        assert [event["event"] for event in read_events(pipe.read())] == ["booted"]
    assert not is_blocking


def test_reader_that_is_slow_gets_whole_events_only(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    with open_event_sink(writer) as sink:
        for index in range(MORE_THAN_A_PIPE_HOLDS):
            sink.emit("vm", "booted", {"id": f"{index}{TEXT_THAT_A_PIPE_MAY_TEAR}"})
        first = os.read(reader, 1 << 20)
        sink.emit("vm", "paused")
    with os.fdopen(reader, "rb") as pipe:
        rest = pipe.read()

    events = read_events((first + rest).decode())
    assert 0 < len(events) < MORE_THAN_A_PIPE_HOLDS
    assert events[-1]["event"] == "paused"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_reader_that_is_gone_gives_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open_event_sink(writer) as sink:
        sink.emit("vm", "booting")
        sink.emit("vm", "booted")

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Broken pipe" in caplog.text


def test_full_disk_gives_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with open_event_sink("/dev/full") as sink:
        sink.emit("vm", "booting")
        sink.emit("vm", "booted")

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text


def test_fifo_keeps_events_for_a_reader_that_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with open_event_sink(str(path)) as sink:
        sink.emit("vmm", "starting")
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(reader) as pipe:
        events = read_events(pipe.read())

    assert [event["event"] for event in events] == ["starting"]


def test_event_is_logged_without_a_monitor(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vmm.events"), open_event_sink(None) as sink:
        sink.emit("vm", "booted", {"id": "x"})

    assert caplog.messages == ["Event: source = vm, event = booted, properties = {'id': 'x'}"]


def test_sink_of_its_own_needs_no_target() -> None:
    EventSink().emit("vm", "booted")


@pytest.mark.parametrize("where", ["/nonexistent/folder/events", 999_999])
def test_target_that_cannot_be_written_is_refused(where: str | int) -> None:
    with pytest.raises(HostError, match=str(where)):
        open_event_sink(where).__enter__()
