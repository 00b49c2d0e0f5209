"""One picture at a time, so that eight of them take no more memory than one."""

from __future__ import annotations

import numpy as np

from packager.vision.graph_writer import GraphWriter, Nodes, value

Carried = tuple[int | str, ...]


def write_picture_loop(
    graph: GraphWriter, body: Nodes, features: str, hidden: int, *, counted: str, tokens: int | None = None
) -> None:
    """Write ``image_features`` of all pictures, as many as the one element of ``counted`` says: ``body`` makes the
    ``features`` of the one with ``number``, so many ``tokens`` of each. Where that is None it is as many as the picture
    has, and those of all pictures are one list of tokens.
    """
    from onnx import helper

    body.node("Identity", "going", name="goes_on")
    given = [value("number", "INT64", []), value("going", "BOOL", [])]
    made = [value("goes_on", "BOOL", [])]
    before = []
    if tokens is None:
        carried: Carried = ("tokens", hidden)
        given.append(value("before", "FLOAT", carried))
        made.append(value(body.node("Concat", "before", features, name="after", axis=0), "FLOAT", carried))
        before.append(graph.weight("nothing", np.zeros((0, hidden), np.float32)))
    else:
        made.append(value(features, "FLOAT", [tokens, hidden]))
    pictures = graph.node("Squeeze", counted, name="pictures")
    loop = helper.make_graph(body.nodes, "picture", given, made)
    graph.node("Loop", pictures, "", *before, name="image_features", body=loop)
