"""The migration protocol's bytes, and what a receiver accepts when."""

from __future__ import annotations

import pytest

from vmm.errors import PeerError
from vmm.migration.protocol import (
    LENGTHS,
    Command,
    Receiver,
    Request,
    Response,
    Role,
    Stage,
    Status,
    decode_role,
    encode_role,
)

ORDER = (Command.START, Command.CONFIG, Command.MEMORY, Command.STATE, Command.COMPLETE)


def request(command: Command) -> Request:
    return Request(command, LENGTHS[command][0])


def led(*commands: Command) -> Receiver:
    receiver = Receiver()
    for command in commands:
        receiver.accept(request(command))
    return receiver


def test_request_has_the_documented_bytes() -> None:
    assert Request(Command.MEMORY, 32).encode().hex() == "0400" + "00" * 6 + "20" + "00" * 7
    assert Request(Command.START, version=1).encode().hex() == "01000100" + "00" * 12


def test_response_has_the_documented_bytes() -> None:
    assert Response(Status.OK).encode().hex() == "0100" + "00" * 14
    assert Response(Status.ERROR, 4096).encode().hex() == "0200" + "00" * 7 + "10" + "00" * 6


def test_role_has_the_documented_bytes() -> None:
    assert [encode_role(each).hex() for each in (Role.MEMORY, Role.FAULT)] == ["0100", "0200"]
    assert decode_role(b"\x02\x00") is Role.FAULT


@pytest.mark.parametrize("data", [b"\x00\x00", b"\x03\x00", b"\x01\x01"])
def test_role_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="role"):
        decode_role(data)


@pytest.mark.parametrize("number", [0, 10, 0xFFFF])
def test_command_that_is_none_is_refused(number: int) -> None:
    with pytest.raises(PeerError, match=f"command {number}"):
        Request.decode(number.to_bytes(2, "little") + bytes(14))


@pytest.mark.parametrize("number", [0, 3, 0xFFFF])
def test_status_that_is_none_is_refused(number: int) -> None:
    with pytest.raises(PeerError, match=f"status {number}"):
        Response.decode(number.to_bytes(2, "little") + bytes(14))


@pytest.mark.parametrize("command", LENGTHS)
def test_length_beyond_a_commands_limits_is_refused(command: Command) -> None:
    lengths = LENGTHS[command]
    for length in (lengths[0], lengths[-1]):
        assert Request.decode(Request(command, length).encode()) == Request(command, length)
    wrong = {lengths[-1] + 1, lengths[-1] + lengths.step, 1 << 63} | ({0} - set(lengths[:1]))
    for length in wrong:
        with pytest.raises(PeerError, match=f"{command.name} with {length} bytes"):
            Request.decode(Request(command, length).encode())


def test_requests_in_order_lead_to_the_end() -> None:
    assert led(*ORDER).stage is Stage.COMPLETED
    assert led(*ORDER[:-1], Command.COMPLETE_PAUSED).stage is Stage.COMPLETED


def test_memory_may_come_as_descriptors_before_the_configuration() -> None:
    fds = (Command.MEMORY_FD, Command.MEMORY_FD)

    receiver = led(Command.START, *fds, Command.CONFIG, Command.STATE, Command.COMPLETE)

    assert receiver.stage is Stage.COMPLETED


@pytest.mark.parametrize("length", range(len(ORDER) + 1))
@pytest.mark.parametrize("command", LENGTHS)
def test_request_out_of_order_aborts(length: int, command: Command) -> None:
    receiver = led(*ORDER[:length])
    stage = receiver.stage
    may = {
        Stage.ESTABLISHED: {Command.START},
        Stage.STARTED: {Command.MEMORY_FD, Command.CONFIG},
        Stage.CONFIGURED: {Command.MEMORY, Command.STATE},
        Stage.STATE_RECEIVED: {Command.COMPLETE, Command.COMPLETE_PAUSED},
        Stage.COMPLETED: set(),
    }[stage]
    if command in may:
        receiver.accept(request(command))
        return

    with pytest.raises(PeerError):
        receiver.accept(request(command))

    assert receiver.stage is Stage.ABORTED
    for each in LENGTHS:
        with pytest.raises(PeerError):
            receiver.accept(request(each))


@pytest.mark.parametrize("command", [each for each in LENGTHS if each is not Command.START])
@pytest.mark.parametrize("at", range(2, 8))
def test_request_with_anything_where_zeros_belong_is_refused(command: Command, at: int) -> None:
    header = bytearray(Request(command, LENGTHS[command][0]).encode())
    header[at] = 0x5A

    with pytest.raises(PeerError, match=f"{command.name} with .*5a.* where it must have zeros"):
        Request.decode(bytes(header))


def test_start_of_a_newer_sender_may_say_more_than_its_version() -> None:
    header = bytearray(Request(Command.START).encode())
    header[4:8] = b"more"

    assert Request.decode(bytes(header)) == Request(Command.START)


def test_newer_version_is_refused_by_number() -> None:
    with pytest.raises(PeerError, match="version 1 "):
        Receiver().accept(Request(Command.START, version=1))


@pytest.mark.parametrize("length", range(len(ORDER)))
def test_connection_beside_the_first_brings_memory_after_the_configuration(length: int) -> None:
    for command in LENGTHS:
        receiver = led(*ORDER[:length])
        if command is Command.MEMORY and receiver.stage is Stage.CONFIGURED:
            receiver.accept_beside(request(command))
            continue
        with pytest.raises(PeerError, match="beside the first"):
            receiver.accept_beside(request(command))
