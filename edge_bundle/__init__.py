"""Asking language models on edge devices from a program: ``from edge_bundle import AsyncClient, Client, parse_broker``.

``async_client`` is the client, for asyncio; ``client`` is the same one without ``await``. Pure are
``request_session`` (what to send when), ``replies`` (from frames to an answer), ``completion`` (OpenAI's shapes),
``structured`` (``parse=Type``), ``presence`` (which devices can be asked), ``chat`` (conversations) and ``broker``
(where the broker is). The MQTT library is imported in :mod:`edge_bundle.broker_session` alone.
"""

from contract.errors import EngineFailed, RequestInvalid, SourceUnavailable, UsageError
from edge_bundle.async_client import AsyncClient
from edge_bundle.broker import BrokerAddress, parse_broker
from edge_bundle.chat import AsyncChat, Chat
from edge_bundle.client import Client
from edge_bundle.completion import ChatMessage, Chunk, Completion, ParsedCompletion, ToolCall
from edge_bundle.presence import Device
from edge_bundle.replies import Answer, Piece, Queued, Refused

__all__ = [
    "Answer",
    "AsyncChat",
    "AsyncClient",
    "BrokerAddress",
    "Chat",
    "ChatMessage",
    "Chunk",
    "Client",
    "Completion",
    "Device",
    "EngineFailed",
    "ParsedCompletion",
    "Piece",
    "Queued",
    "Refused",
    "RequestInvalid",
    "SourceUnavailable",
    "ToolCall",
    "UsageError",
    "parse_broker",
]
