"""LlamaIndex against a gateway: `python ask_llamaindex.py BASE_URL KEY`; prints JSON. Run in an environment of its own.

OpenAILike is llama-index-llms-openai for models whose names OpenAI does not have.
"""

import asyncio
import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

url, key = sys.argv[1:3]
common = {"api_base": url, "api_key": key, "model": "toy", "max_retries": 0, "context_window": 4096}
chat = OpenAILike(**common, is_chat_model=True, is_function_calling_model=True)
text = OpenAILike(**common, is_chat_model=False)
message = [ChatMessage(role="user", content="count 3")]


def say(word: str) -> str:
    """Says a word."""
    return word


called = chat.chat_with_tools([FunctionTool.from_defaults(say)], user_msg="say cellar")
calls = chat.get_tool_calls_from_response(called)


async def stream() -> str:
    found = await chat.astream_chat(message)
    return "".join([each.delta async for each in found])


print(
    json.dumps(
        {
            "whole": chat.chat(message).message.content,
            "streamed": "".join(each.delta for each in chat.stream_chat(message)),
            "astreamed": asyncio.run(stream()),
            "text": text.complete("count 2").text,
            "text_streamed": [each.text for each in text.stream_complete("count 2")][-1],
            "called": [[each.tool_name, each.tool_kwargs] for each in calls],
        }
    )
)
