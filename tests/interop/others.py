"""Artifacts that compressed-tensors itself writes, of rounded weights."""

import shutil
from pathlib import Path

BITS, GROUP = 4, 128
HIGHEST = 2 ** (BITS - 1) - 1


def _scale_and_zero(weight, symmetric: bool):
    """[N, K] to scales and zeros [N, K / GROUP] of a signed grid."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    if symmetric:
        return groups.abs().amax(-1) / (HIGHEST + 0.5), None
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = (high - low) / (2 ** BITS - 1)
    return scale, (-HIGHEST - 1 - low / scale).round().clamp(-HIGHEST - 1, HIGHEST)


def write_compressed_tensors(source: Path, out: Path, symmetric: bool) -> None:
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (QuantizationArgs, QuantizationConfig, QuantizationScheme,
                                                 apply_quantization_config)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
    weights = QuantizationArgs(num_bits=BITS, type="int", symmetric=symmetric, strategy="group", group_size=GROUP)
    config = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, ignore=["lm_head"],
        quantization_status="initialized", format="pack-quantized")
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            scale, zero = _scale_and_zero(module.weight, symmetric)
            module.weight_scale.data.copy_(scale)
            if zero is not None:
                module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)
    for file in source.glob("tokenizer*.json"):
        shutil.copy(file, out)
