"""The process that writes an adapter in the form that the runtime loads: fp32 matrices named after the base's slots."""

from __future__ import annotations

from typing import Any

import numpy as np

from contract.errors import BuildRefused
from packager.sources.jobs import ADAPTER_EXPORT, AdapterExportJob, AdapterExportResult
from packager.subprocess_job import Reporter, child_main


def export(job: AdapterExportJob, reporter: Reporter) -> AdapterExportResult:
    """Fill every slot from its blocks of the LoRA; the parameters written.

    Several pairs in one slot (q, k and v of a joined product) lie side by side: A's columns follow each other, and
    each B keeps to its own rows and columns, zeros elsewhere.
    """
    import onnxruntime
    import torch
    from safetensors.torch import load_file

    tensors = {name: tensor.to(torch.float32).numpy() for name, tensor in load_file(job.adapter).items()}
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise BuildRefused("the adapter holds numbers that are not finite; it is damaged")
    _hold_against_peft(job)
    made: dict[str, Any] = {}
    for number, slot in enumerate(job.slots):
        ranks = [len(tensors[block.first]) for block in slot.blocks]
        first = np.zeros((slot.width_in, sum(ranks)), dtype=np.float32)
        second = np.zeros((sum(ranks), slot.width_out), dtype=np.float32)
        row = 0
        for block, rank in zip(slot.blocks, ranks, strict=True):
            first[:, row : row + rank] = tensors[block.first].T
            piece = tensors[block.second][block.start : block.end].T
            second[row : row + rank, block.at : block.at + piece.shape[1]] = job.scale * piece
            row += rank
        made[slot.first], made[slot.second] = first, second
        reporter.progress(number + 1, len(job.slots))
    written = onnxruntime.AdapterFormat()
    written.set_adapter_version(1)
    written.set_model_version(1)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(made[name]) for name in sorted(made)}
    written.set_parameters(values)
    written.export_adapter(job.out)
    return AdapterExportResult(int(sum(matrix.size for matrix in made.values())))


def _hold_against_peft(job: AdapterExportJob) -> None:
    """Refuse pairs whose ``scale * B A`` is not what peft adds to the product, or that peft does not know.

    The base is on torch's ``meta`` device: what peft adds does not depend on its numbers.
    """
    import torch
    from peft import PeftConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(job.checkpoint, trust_remote_code=False)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    adapted = get_peft_model(base, PeftConfig.from_pretrained(job.adapter_dir), low_cpu_mem_usage=True)
    modules = dict(adapted.base_model.model.named_modules())
    tensors = load_file(job.adapter)
    for target, (first, second) in job.pairs.items():
        module: Any = modules.get(target.removesuffix(".weight"))
        if not hasattr(module, "get_delta_weight"):
            raise BuildRefused(f"the adapter changes {target!r}, which peft does not")
        # In place of what was made on that device.
        for layer, name in ((module.lora_A, first), (module.lora_B, second)):
            layer["default"].weight = torch.nn.Parameter(tensors[name].float(), requires_grad=False)
        theirs = module.get_delta_weight("default").float()
        ours = job.scale * tensors[second].float() @ tensors[first].float()
        if not float((ours - theirs).abs().max()) <= CLOSE * float(theirs.abs().max()) + TINY:
            raise BuildRefused(
                f"the adapter adds something else to {target!r} in peft than scale * B A; merge it (--merge-adapter)"
            )


CLOSE, TINY = 1e-5, 1e-12
"""Of the largest number that is added; products in fp32 differ by a millionth of it."""


if __name__ == "__main__":
    child_main(ADAPTER_EXPORT, export)
