"""Asking language models on edge devices from a program: ``from edge_bundle import AsyncClient, Client, parse_broker``.

``broker`` reads where the broker is; ``replies`` puts frames together to answers, ``request_session`` says what to send
when, ``completion`` has OpenAI's shapes (all pure); ``client`` is the blocking client that the commands use,
``async_client`` the one for asyncio. The MQTT library is imported in :mod:`edge_bundle.broker_session` alone.
"""

from contract.errors import EngineFailed, RequestInvalid, SourceUnavailable, UsageError
from edge_bundle.async_client import AsyncClient
from edge_bundle.broker import BrokerAddress, parse_broker
from edge_bundle.client import Client
from edge_bundle.completion import Chunk, Completion

__all__ = [
    "AsyncClient",
    "BrokerAddress",
    "Chunk",
    "Client",
    "Completion",
    "EngineFailed",
    "RequestInvalid",
    "SourceUnavailable",
    "UsageError",
    "parse_broker",
]
