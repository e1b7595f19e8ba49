"""What a route is: an address, a model of its body, the errors it answers, and its handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, get_type_hints

from vmm.api.descriptors import Descriptors
from vmm.config.document import parse_document
from vmm.config.info import MigrationInfo, PciDeviceInfo, VmInfo, VmmPingResponse
from vmm.config.model import ConfigModel
from vmm.errors import ConfigError, VmmError

if TYPE_CHECKING:
    from vmm.machine.commands import Command

Answer = ConfigModel | Mapping[str, object] | None
"""What a handler returns: the object of a 200, or nothing for a 204."""

Model = TypeVar("Model", bound=ConfigModel)


class Owner(Protocol):
    """The holder of the VM, as the API sees it."""

    async def submit(self, command: Command) -> PciDeviceInfo | None: ...
    def info(self) -> VmInfo: ...
    def counters(self) -> dict[str, dict[str, int]]: ...
    def migration(self) -> MigrationInfo: ...


@dataclass(frozen=True, slots=True)
class Service:
    """All that a handler may touch."""

    owner: Owner
    about: VmmPingResponse


class Sent(NamedTuple):
    """What a client sent with its request."""

    body: bytes
    descriptors: Descriptors


class BodyError(Exception):
    """The caller's fault: a body that is missing, superfluous, no JSON, or not of the model."""

    def __init__(self, *texts: str) -> None:
        super().__init__(": ".join(texts))
        self.texts = texts


@dataclass(frozen=True, slots=True)
class Route:
    """One documented request.

    ``action`` says what did not happen when it fails; ``errors`` are the caller's faults that it
    answers with their own status; ``model`` is None where a body is refused. ``answer`` is the type
    of what it answers, and ``summary`` what the served document says of it.
    """

    path: str
    method: str
    action: str
    errors: frozenset[type[VmmError]]
    model: type[ConfigModel] | None
    answer: object
    summary: str
    call: Callable[[Service, Sent], Awaitable[Answer]]


Plain = Callable[[Service], Awaitable[Answer]]
WithBody = Callable[[Service, Model], Awaitable[Answer]]
WithDescriptors = Callable[[Service, Model, Descriptors], Awaitable[Answer]]


def get(path: str, action: str, *errors: type[VmmError]) -> Callable[[Plain], Route]:
    """Declare a GET request without a body."""
    return _plain("GET", path, action, errors)


def put(path: str, action: str, *errors: type[VmmError]) -> Callable[[Plain], Route]:
    """Declare a PUT request without a body."""
    return _plain("PUT", path, action, errors)


def put_model(
    path: str, model: type[Model], action: str, *errors: type[VmmError]
) -> Callable[[WithBody[Model]], Route]:
    """Declare a PUT request whose body is a JSON object of the model."""

    def declare(handler: WithBody[Model]) -> Route:
        async def call(service: Service, sent: Sent) -> Answer:
            return await handler(service, _parse(path, model, sent.body))

        return _with_body(path, model, action, errors, handler, call)

    return declare


def put_model_and_descriptors(
    path: str, model: type[Model], action: str, *errors: type[VmmError]
) -> Callable[[WithDescriptors[Model]], Route]:
    """Declare a PUT request that may bring descriptors beside its JSON object."""

    def declare(handler: WithDescriptors[Model]) -> Route:
        async def call(service: Service, sent: Sent) -> Answer:
            return await handler(service, _parse(path, model, sent.body), sent.descriptors)

        return _with_body(path, model, action, errors, handler, call)

    return declare


def _with_body(
    path: str,
    model: type[ConfigModel],
    action: str,
    errors: tuple[type[VmmError], ...],
    handler: Callable[..., object],
    call: Callable[[Service, Sent], Awaitable[Answer]],
) -> Route:
    # A body that parses can still be refused for what it says.
    faults: frozenset[type[VmmError]] = frozenset({ConfigError, *errors})
    return Route(path, "PUT", action, faults, model, *_described(handler), call)


def _plain(
    method: str, path: str, action: str, errors: tuple[type[VmmError], ...]
) -> Callable[[Plain], Route]:
    def declare(handler: Plain) -> Route:
        async def call(service: Service, sent: Sent) -> Answer:
            if sent.body:
                raise BodyError("Bad Request", f"{path} takes no body: send none")
            return await handler(service)

        return Route(path, method, action, frozenset(errors), None, *_described(handler), call)

    return declare


def _described(handler: Callable[..., object]) -> tuple[object, str]:
    """What a handler says of itself: the type that it returns, and its docstring's first line."""
    summary = (handler.__doc__ or "").partition("\n")[0]
    return get_type_hints(handler)["return"], summary


def _parse(path: str, model: type[Model], body: bytes) -> Model:
    if not body:
        raise BodyError("Bad Request", f"{path} needs a body: send a JSON {model.__name__}")
    try:
        return parse_document(model, body)
    except ConfigError as error:
        raise BodyError("Failed to deserialize JSON", *error.problems) from error
