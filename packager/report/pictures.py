"""The part of the page about pictures: what was shown, what source and bundle said, and what seeing takes."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from packager.vision.pictures import draw, encode_png

SIDE = 168
"""Pixels along a side of a picture on the page."""

PARTS = {"model.onnx": "text model", "vision.onnx": "encoder and projection", "embedding.onnx": "embedding"}


def picture_section(quality: dict[str, Any]) -> str:
    """Nothing for a bundle that does not see."""
    vision = quality.get("vision")
    if vision is None:
        return ""
    return f"<h2>Pictures</h2>{_answers(quality)}{_features(vision)}{_parts(vision['bytes'])}"


def _answers(quality: dict[str, Any]) -> str:
    looked = quality.get("looked")
    if not looked:
        return "<p>Not asked about pictures: the source cannot be run.</p>"
    found = quality["pictures"]
    rows = "".join(
        f"<tr><td>{_image(case['picture'])}<br>{escape(case['question'])}"
        f"<td class=answer>{escape(case['source'].strip())}<td class=answer>{escape(case['bundle'].strip())}"
        f"<td class=n>{case['kl']:.4g}"
        for case in looked
    )
    return (
        "<table><tr><th style='width:24%'>Question<th style='width:32%'>Source<th>Bundle<th>KL, nats</tr>"
        f"{rows}</table><p class=note>Pictures are drawn by code. Over {found['tokens']} tokens of the source's "
        f"answers the KL divergence is {found['kl']:.4g} nats; the most likely token is the same in "
        f"{100 * found['top1_agreement']:.1f} %.</p>"
    )


def _image(name: str) -> str:
    data = base64.b64encode(encode_png(draw(name, SIDE))).decode()
    return f'<img alt="{escape(name, quote=True)}" width={SIDE} height={SIDE} src="data:image/png;base64,{data}">'


def _features(vision: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(seen['name'])}<td class=n>{seen['tokens']}<td class=n>{seen['cosine']:.6f}"
        f"<td class=n>{seen['furthest']:.3g}<td class=n>{seen['spread']:.3g}"
        for seen in vision["features"]
    )
    rejected = "".join(
        f" {escape(kind)} was not taken: cosine {cosine:.6f}." for kind, cosine in vision.get("rejected", {}).items()
    )
    return (
        "<table><tr><th>Picture<th>Features<th>Cosine with the source<th>Furthest<th>Spread in the source</tr>"
        f"{rows}</table><p class=note>Weights of the encoder: {escape(vision['encoder'])}.{rejected}</p>"
    )


def _parts(sizes: dict[str, int]) -> str:
    rows = "".join(
        f"<tr><td>{escape(PARTS.get(name, name))}<td><code>{escape(name)}</code><td class=n>{size / 1e6:,.1f} MB"
        for name, size in sizes.items()
    )
    return f"<table><tr><th>Part<th>File<th>Bytes</tr>{rows}</table>"
