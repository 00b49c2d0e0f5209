"""The document around the plots."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from contract.bundle.genai_config import CONFIG_FILE, read_genai_config
from contract.onnx.wire import read_graph_file
from packager.graph.facts import GraphFacts
from packager.report.parts import KINDS, bytes_by_part
from packager.report.pictures import picture_section
from packager.report.plots import scatter_over_positions, stacked_bars

STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;color:#222;background:#fff;
max-width:920px;margin:2rem auto;padding:0 20px}
h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2.2rem 0 .5rem;border-bottom:1px solid #ddd}
p.note,figcaption{color:#555;font-size:.9rem;margin:.3rem 0}figure{margin:.6rem 0}svg{width:100%;height:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}td,th{text-align:left;padding:.35rem .6rem;
border-bottom:1px solid #e3e3e3;vertical-align:top;overflow-wrap:anywhere}th{font-weight:600;background:#f6f8fa}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin:1rem 0}.card{flex:1 1 130px;border:1px solid #d8dee4;
border-radius:6px;padding:.5rem .8rem}.card b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}
.card span{color:#555;font-size:.85rem}.bad{color:#a4262c}.good{color:#1a6b3c}.answer{white-space:pre-wrap}
.warn{border-left:4px solid #e07a5f;padding:.4rem .8rem;background:#fdf3ef}
pre{background:#f6f8fa;padding:.7rem;font-size:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
@media print{body{margin:0;padding:0;max-width:none;font-size:10pt}h2{break-after:avoid;margin-top:1.4rem}
.cards{flex-wrap:nowrap}.card{flex:1 1 0;padding:.3rem .5rem}.card b{font-size:1.1rem}
figure,tr,.cards{break-inside:avoid}
pre{font-size:8pt}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}@page{margin:15mm}}
"""


TOKENIZER = {
    True: "cuts the text as the source's does",
    False: "cuts the text otherwise than the source's",
    None: "not compared",
}


def write_report(
    staged: Path,
    reference: str,
    quality: dict[str, Any],
    provenance: dict[str, Any],
    graph: GraphFacts,
    *,
    base: Path | None = None,
) -> None:
    """Write ``evidence/report.html`` into ``staged``, where the other evidence is already; ``graph`` is what it runs.

    Of an adapter bundle that is the graph in ``base``.
    """
    model_dir = base or staged
    config = read_genai_config((model_dir / CONFIG_FILE).read_bytes())
    parts = bytes_by_part(read_graph_file(model_dir / config.filename), config.layers)
    sections = [
        _cards(quality, graph),
        _accepted(quality),
        _bytes(parts, "Bytes by layer and type" if base is None else "Bytes of the base by layer and type"),
        _divergence(quality),
        _canaries(quality),
        picture_section(quality),
        _behaviour(quality),
        _facts(quality, graph),
        _provenance(provenance),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(reference)}: evidence</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{escape(reference)}</h1><p class=note>Measured while the bundle was built. The manifest lists this page "
        f"by its digest; the same numbers for programs are in <code>quality.json</code> beside it.</p>"
        f"{''.join(sections)}</body></html>\n"
    )
    (staged / "evidence" / "report.html").write_text(page, "utf-8")


def _number(value: float) -> str:
    """Four significant digits, never in powers of ten."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e7 else f"{count / 1e6:.3g} MB"


def _card(value: str, name: str) -> str:
    return f"<div class=card><b>{escape(value)}</b><span>{escape(name)}</span></div>"


def _cards(quality: dict[str, Any], graph: GraphFacts) -> str:
    cards = [_card(graph.precision, f"embedding {graph.embedding}, head {graph.lm_head}")]
    cards.append(_card(_megabytes(graph.tensor_bytes), f"of tensors, {graph.parameters / 1e6:.1f} M parameters"))
    if "kl" in quality:
        cards.append(_card(f"{quality['kl']:.4g}", "KL divergence from the source, nats"))
        cards.append(_card(f"{100 * quality['top1_agreement']:.1f} %", "same most likely token"))
        cards.append(
            _card(
                _number(quality["perplexity"]["value"]),
                f"perplexity; the source has {_number(quality['source_perplexity'])}",
            )
        )
    elif "perplexity" in quality:
        cards.append(_card(_number(quality["perplexity"]["value"]), "perplexity"))
    return f"<div class=cards>{''.join(cards)}</div>"


def _accepted(quality: dict[str, Any]) -> str:
    accepted = quality.get("limits", {}).get("accepted")
    if not accepted:
        return ""
    faults = "".join(f"<li>{escape(fault)}</li>" for fault in accepted["faults"])
    return (
        f"<div class=warn><b>Beyond its limits, and accepted:</b> {escape(accepted['reason'])}<ul>{faults}</ul></div>"
    )


def _bytes(parts: dict[str, dict[str, int]], title: str) -> str:
    kinds = [kind for kind in KINDS if any(part[kind] for part in parts.values())]
    values = [[part[kind] / 1e6 for kind in kinds] for part in parts.values()]
    plot = stacked_bars("Bytes by layer and kind", list(parts), kinds, values)
    totals = ", ".join(f"{kind} {_megabytes(sum(part[kind] for part in parts.values()))}" for kind in kinds)
    tied = "" if "embedding" in parts else " The embedding shares the head's table."
    return (
        f"<h2>{escape(title)}</h2><figure>{plot}<figcaption>{escape(totals)}.{tied} "
        "“Other” holds tables that no layer owns, such as those of the rotary positions.</figcaption></figure>"
    )


def _divergence(quality: dict[str, Any]) -> str:
    values = quality.get("kl_by_position")
    if not values:
        return f"<h2>Distance from the source</h2><p>{escape(str(quality.get('compared', 'There was no source.')))}</p>"
    text = quality["text"]
    plot = scatter_over_positions("KL divergence by position", values, quality["kl"], quality["window"] - 1)
    return (
        f"<h2>KL divergence by position</h2><figure>{plot}<figcaption>{len(values)} positions of "
        f"{escape(text['name'])}, read in sequences of {quality['window']} tokens (dashed lines). The source ran in "
        f"{escape(quality['source_dtype'])}.</figcaption></figure>"
    )


def _canaries(quality: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(row['prompt'])}<td class=answer>{escape(row['source'].strip())}"
        f"<td class=answer>{escape(row['bundle'].strip())}"
        for row in quality.get("canaries", [])
    )
    if not rows:
        return ""
    return (
        "<h2>What they answer</h2><table><tr><th style='width:22%'>Question<th style='width:39%'>Source"
        f"<th>Bundle</tr>{rows}</table><p class=note>The most likely token at every step; cut after 32.</p>"
    )


def _behaviour(quality: dict[str, Any]) -> str:
    behaviour = quality.get("behaviour")
    if not behaviour:
        return ""
    rows = []
    for case in behaviour["cases"]:
        cells = "".join(_verdict(case[side]) for side in ("source", "bundle"))
        rows.append(f"<tr><td><b>{escape(case['name'])}</b><br>{escape(case['prompt'])}{cells}")
    return (
        f"<h2>Behaviour</h2><p>The source passes {behaviour['source_passed']} of {len(rows)}, the bundle "
        f"{behaviour['bundle_passed']}; {len(behaviour['lost'])} were lost.</p><table><tr><th style='width:28%'>Case"
        f"<th style='width:36%'>Source<th>Bundle</tr>{''.join(rows)}</table>"
    )


def _verdict(side: dict[str, Any]) -> str:
    lacks = side["lacks"]
    mark = f"<b class=bad>lacks: {escape(', '.join(lacks))}</b>" if lacks else "<b class=good>passes</b>"
    return f"<td>{mark}<br><span class=answer>{escape(side['answer'].strip())}</span>"


def _facts(quality: dict[str, Any], graph: GraphFacts) -> str:
    limits = quality.get("limits", {})
    rows = {
        "Run": str(quality.get("check", "loaded, and run with text on the building host")),
        "Operators": ", ".join(f"{name} × {count}" for name, count in graph.operators.items()),
        "Operator sets": ", ".join(f"{name or 'ai.onnx'} {version}" for name, version in graph.opsets.items()),
        "Key-value cache": graph.kv_type,
        "Attention windows": _windows(graph.windows),
        "Limits": f"KL ≤ {limits['max_kl']:g}, perplexity ratio ≤ {limits['max_perplexity_ratio']:g}"
        if limits
        else "none: there was no source to compare with",
        "Tokenizer": TOKENIZER[quality.get("tokenizer_same")],
    }
    body = "".join(f"<tr><th style='width:22%'>{escape(name)}<td>{escape(value)}" for name, value in rows.items())
    return f"<h2>The graph</h2><table>{body}</table>"


def _windows(windows: tuple[int, ...]) -> str:
    kinds = sorted(set(windows))
    if kinds in ([], [-1]):
        return "none: every layer attends over everything"
    return ", ".join(
        f"{windows.count(kind)} layers over {'everything' if kind == -1 else f'{kind} tokens'}" for kind in kinds
    )


def _provenance(provenance: dict[str, Any]) -> str:
    return f"<h2>Provenance</h2><pre>{escape(json.dumps(provenance, indent=1, ensure_ascii=False))}</pre>"
