"""The models of the test: the repository's demo models, and families made from the demo LLaMA."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
from safetensors.numpy import load_file, save_file

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "jobs" / "demo"

Config = dict
Tensors = dict[str, numpy.ndarray]


def _layers(tensors: Tensors) -> range:
    return range(1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")))


def _random(size: int, deviation: float, seed: int) -> numpy.ndarray:
    return numpy.random.default_rng(seed).normal(0, deviation, size).astype(numpy.float16)


def _qwen2(config: Config, tensors: Tensors, _path: Path) -> None:
    """LLaMA with biases of q, k and v."""
    config.update(architectures=["Qwen2ForCausalLM"], model_type="qwen2", use_sliding_window=False)
    for key in ("attention_bias", "head_dim", "mlp_bias", "pretraining_tp"):
        config.pop(key, None)
    for i in _layers(tensors):
        for j, name in enumerate("qkv"):
            prefix = f"model.layers.{i}.self_attn.{name}_proj"
            tensors[f"{prefix}.bias"] = _random(tensors[f"{prefix}.weight"].shape[0], 0.05, 3 * i + j)


def _qwen3(config: Config, tensors: Tensors, _path: Path) -> None:
    """Heads of 128, wider in all than the hidden state, with norms of q and k.

    128 because transformers reads no other width of Qwen3's heads from GGUF.
    """
    config.update(architectures=["Qwen3ForCausalLM"], model_type="qwen3", use_sliding_window=False, head_dim=128)
    for key in ("mlp_bias", "pretraining_tp"):
        config.pop(key, None)
    for i in _layers(tensors):
        prefix = f"model.layers.{i}.self_attn"
        for name in "qkv":
            weight = tensors[f"{prefix}.{name}_proj.weight"]
            tensors[f"{prefix}.{name}_proj.weight"] = numpy.concatenate([weight, weight[::-1]])
        weight = tensors[f"{prefix}.o_proj.weight"]
        tensors[f"{prefix}.o_proj.weight"] = numpy.concatenate([weight, weight[:, ::-1]], axis=1) / numpy.float16(2)
        for j, name in enumerate("qk"):
            tensors[f"{prefix}.{name}_norm.weight"] = 1 + _random(config["head_dim"], 0.2, 2 * i + j)


def _phi3(config: Config, tensors: Tensors, path: Path) -> None:
    """LLaMA with q, k, v in one tensor, and gate, up in another; llama.cpp insists on Phi-3's <|endoftext|>."""
    for file in path.glob("tokenizer*.json"):
        file.write_text(file.read_text().replace("<pad>", "<|endoftext|>"))
    config.update(architectures=["Phi3ForCausalLM"], model_type="phi3", sliding_window=None,
                  original_max_position_embeddings=config["max_position_embeddings"])
    for key in ("attention_bias", "head_dim", "mlp_bias", "pretraining_tp"):
        config.pop(key, None)
    for i in _layers(tensors):
        prefix = f"model.layers.{i}"
        for fused, parts in {"self_attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                             "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"]}.items():
            tensors[f"{prefix}.{fused}.weight"] = numpy.concatenate(
                [tensors.pop(f"{prefix}.{part}.weight") for part in parts])


def _llama3(config: Config, _tensors: Tensors, _path: Path) -> None:
    """LLaMA with the rope scaling of Llama 3."""
    config["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 256}


MADE: dict[str, Callable[[Config, Tensors, Path], None]] = {
    "qwen2-like": _qwen2,
    "qwen3-like": _qwen3,
    "phi3-like": _phi3,
    "llama3-like": _llama3,
}


def find_or_make(name: str, folder: Path) -> Path:
    """The folder of model `name`: a demo model, or one made below `folder`."""
    if name not in MADE:
        return DEMO / name
    path = folder / name
    source = DEMO / "llama-7m"
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("golden.json", "model.safetensors"))
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    MADE[name](config, tensors, path)
    (path / "config.json").write_text(json.dumps(config, indent=1))
    save_file({key: numpy.ascontiguousarray(value) for key, value in tensors.items()}, path / "model.safetensors",
              {"format": "pt"})
    return path
