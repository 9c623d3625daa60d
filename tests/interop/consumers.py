"""Programs that load artifacts. Each takes an artifact and token ids [windows, seqlen], and returns logits.

Where a consumer lets us choose, it computes in float32, so that what differs is what it read. Weights s(q − z) are
another matter: our eval rounds them to the model's 16 bits, as kernels do; some consumers do, others do not in float32.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Compiling kernels takes minutes and changes no result.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

torch = pytest.importorskip("torch", reason="tests/interop needs torch")


@torch.no_grad()
def _forward(model, ids):
    return torch.cat([model(window[None], use_cache=False).logits.float() for window in ids])


def _transformers(artifact: Path, ids, **options):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    return _forward(transformers.AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32, **options), ids)


def transformers_gptq(artifact: Path, ids):
    """transformers with the layers of GPTQModel, through optimum."""
    for package in ("gptqmodel", "optimum"):
        pytest.importorskip(package, reason=f"needs {package}")
    from transformers import GPTQConfig

    # Only the backend of this config counts, the rest comes from the artifact.
    return _transformers(artifact, ids, device_map="cpu", quantization_config=GPTQConfig(bits=4, backend="gptq_torch"))


def transformers_compressed_tensors(artifact: Path, ids):
    """transformers with the layers of compressed-tensors, decompressed to float32 at their first use."""
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    return _transformers(artifact, ids)


def transformers_compressed_tensors_dequantized(artifact: Path, ids):
    """transformers and compressed-tensors, decompressed to 16 bits while loading."""
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    from transformers import CompressedTensorsConfig

    return _transformers(artifact, ids, quantization_config=CompressedTensorsConfig(dequantize=True))


def transformers_float(artifact: Path, ids):
    """transformers without any quantization package."""
    return _transformers(artifact, ids)


def gptqmodel(artifact: Path, ids):
    """GPTQModel's own loader. It loads to half precision only; we make that float32, scales included."""
    package = pytest.importorskip("gptqmodel", reason="needs gptqmodel")
    model = package.GPTQModel.load(str(artifact), device="cpu", backend=package.BACKEND.GPTQ_TORCH,
                                   dtype=torch.float16)
    return _forward(model.model.float(), ids)


def gguf_dequantized(artifact: Path, ids):
    """The gguf package's dequantizer to float32, through transformers, which maps names and permutations back."""
    pytest.importorskip("gguf", reason="needs gguf")
    return _transformers(artifact.parent, ids, gguf_file=artifact.name)


def llama_cpp(artifact: Path, ids):
    """llama.cpp on the CPU, which rounds activations to 8 bits."""
    package = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    model = package.Llama(str(artifact), n_ctx=ids.shape[1], n_batch=ids.shape[1], n_threads=1, n_threads_batch=1,
                          logits_all=True, verbose=False)
    logits = []
    for window in ids:
        model.reset()
        model.eval(window.tolist())
        logits.append(torch.from_numpy(model.scores[:ids.shape[1]].copy()))
    model.close()
    return torch.stack(logits)


@dataclass(frozen=True)
class Consumer:
    """A program and the largest max |a − b| / max |b| of its logits a, against ours b."""

    logits: Callable
    tolerance: float


SAME_WEIGHTS = 2e-4
UNROUNDED_WEIGHTS = 5e-3
ROUNDED_ACTIVATIONS = 0.05
CONSUMERS: dict[str, dict[str, Consumer]] = {  # by format
    "gptq": {
        "transformers": Consumer(transformers_gptq, SAME_WEIGHTS),
        "GPTQModel": Consumer(gptqmodel, UNROUNDED_WEIGHTS),
    },
    "compressed-tensors": {
        "transformers": Consumer(transformers_compressed_tensors, UNROUNDED_WEIGHTS),
        "transformers, dequantize=True": Consumer(transformers_compressed_tensors_dequantized, SAME_WEIGHTS),
    },
    "gguf": {
        "transformers": Consumer(gguf_dequantized, UNROUNDED_WEIGHTS),
        "llama.cpp": Consumer(llama_cpp, ROUNDED_ACTIVATIONS),
    },
    "safetensors-float": {
        "transformers": Consumer(transformers_float, SAME_WEIGHTS),
    },
}
CONSUMERS["gptq_v2"] = CONSUMERS["gptq"]
