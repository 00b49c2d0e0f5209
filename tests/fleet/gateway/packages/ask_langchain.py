"""langchain-openai against a gateway: `python ask_langchain.py BASE_URL KEY`; prints JSON."""

import json
import sys

from langchain_openai import ChatOpenAI, OpenAI

url, key = sys.argv[1:3]
common = {"base_url": url, "api_key": key, "model": "toy", "max_retries": 0}
chat = ChatOpenAI(**common)
whole = chat.invoke("count 3")
pieces = list(ChatOpenAI(**common, stream_usage=True).stream("count 3"))
streamed = pieces[0]
for piece in pieces[1:]:
    streamed += piece
word = {"title": "say", "description": "Says a word", "type": "object", "properties": {"word": {"type": "string"}}}
called = chat.bind_tools([word]).invoke("say cellar")
typed = chat.with_structured_output(word, method="function_calling").invoke("say attic")
batch = OpenAI(**common).generate(["count 1", "count 2"])
print(
    json.dumps(
        {
            "whole": [whole.content, whole.usage_metadata["output_tokens"], whole.response_metadata["finish_reason"]],
            "model": whole.response_metadata["model_name"],
            "streamed": [streamed.content, streamed.usage_metadata["output_tokens"]],
            "pieces": len(pieces),
            "called": [[call["name"], call["args"]] for call in called.tool_calls],
            "typed": typed,
            "batch": [each[0].text for each in batch.generations],
        }
    )
)
