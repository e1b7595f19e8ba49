"""Drive a VMM from Python: ``Client`` blocks, ``AsyncClient`` works under trio and asyncio."""

from vmm.client.asynchronous import AsyncClient
from vmm.client.blocking import Client
from vmm.client.errors import ApiError, ConnectError, NoVmmError

__all__ = ["ApiError", "AsyncClient", "Client", "ConnectError", "NoVmmError"]
