#!/usr/bin/env python3
"""Makes the golden folders of Phi-3 and of the RoPE variants: tiny random models with every value that transformers
computes for them in float32 on the CPU. Needs torch and transformers 5.

    python3 make_golden.py FOLDER
"""

import json
import os
import sys

import torch
import transformers
from safetensors.torch import save_file

out = sys.argv[1]
common = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
              rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=2, pad_token_id=1)


def rope(kind, theta=10000.0, **more):
    return dict(rope_type=kind, rope_theta=theta, **more)


cases = {
    # name: (config, tokens a row)
    "phi3-fused": (transformers.Phi3Config(**common, num_hidden_layers=2, max_position_embeddings=64,
                                           original_max_position_embeddings=64, sliding_window=12,
                                           rope_parameters=rope("default")), 40),
    "phi3-longrope-short": (transformers.Phi3Config(
        **common, num_hidden_layers=1, max_position_embeddings=128, original_max_position_embeddings=64,
        rope_parameters=rope("longrope", short_factor=[1.0, 1.1, 1.25, 1.5], long_factor=[1.5, 2.0, 4.0, 8.0],
                             original_max_position_embeddings=64)), 48),
    "phi3-longrope-long": (transformers.Phi3Config(
        **common, num_hidden_layers=1, max_position_embeddings=128, original_max_position_embeddings=64,
        rope_parameters=rope("longrope", short_factor=[1.0, 1.1, 1.25, 1.5], long_factor=[1.5, 2.0, 4.0, 8.0],
                             original_max_position_embeddings=64)), 96),
    "phi3-partial": (transformers.Phi3Config(
        **common, num_hidden_layers=1, max_position_embeddings=64, original_max_position_embeddings=64,
        rope_parameters=rope("default", partial_rotary_factor=0.5)), 24),
    "llama-rope-linear": (transformers.LlamaConfig(**common, num_hidden_layers=1, max_position_embeddings=128,
                                                   rope_parameters=rope("linear", factor=4.0)), 48),
    "llama-rope-dynamic": (transformers.LlamaConfig(**common, num_hidden_layers=1, max_position_embeddings=32,
                                                    rope_parameters=rope("dynamic", factor=2.0)), 56),
    "qwen2-rope-yarn": (transformers.Qwen2Config(
        **common, num_hidden_layers=1, max_position_embeddings=128, use_sliding_window=True, sliding_window=16,
        max_window_layers=0,
        rope_parameters=rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=32, beta_fast=32,
                             beta_slow=1)), 48),
    "llama-rope-yarn-mscale": (transformers.LlamaConfig(
        **common, num_hidden_layers=1, max_position_embeddings=256,
        rope_parameters=rope("yarn", factor=8.0, original_max_position_embeddings=32, mscale=1.2,
                             mscale_all_dim=0.7)), 48),
}
cases["qwen2-mixed-window"] = (transformers.Qwen2Config(
    **common, num_hidden_layers=3, max_position_embeddings=64, use_sliding_window=True, sliding_window=8,
    max_window_layers=1, rope_parameters=rope("default")), 24)

for name, (config, length) in cases.items():
    torch.manual_seed(sum(map(ord, name)))
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter, dtype=torch.float32))
            else:
                scale = 0.5 if key.endswith("bias") else 0.15
                parameter.copy_(scale * torch.randn_like(parameter, dtype=torch.float32))
    folder = os.path.join(out, name)
    model.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                              attn_implementation="eager").eval()
    values = {}

    def keep(key):
        def hook(_module, arguments):
            values["linear_input." + key] = arguments[0].detach().clone().contiguous()
        return hook

    for key, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in key:
            module.register_forward_pre_hook(keep(key))
    layers = model.model.layers
    inputs = {}

    def keep_input(index):
        def hook(_module, arguments, keywords):
            inputs[index] = (arguments[0] if arguments else keywords["hidden_states"]).detach().clone()
        return hook

    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(keep_input(index), with_kwargs=True)
    model.model.norm.register_forward_pre_hook(lambda _m, a: inputs.__setitem__(len(layers), a[0].detach().clone()))
    ids = torch.randint(3, config.vocab_size, (2, length))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    values["logits"] = logits
    for index, value in inputs.items():
        values[f"hidden.{index}"] = value
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, config.vocab_size), ids[:, 1:].reshape(-1))
    values["input_ids"] = ids.to(torch.int32)
    save_file({key: value.contiguous() for key, value in values.items()}, os.path.join(folder, "expected.safetensors"))
    with open(os.path.join(folder, "expected.json"), "w") as file:
        json.dump({"nll": nll.item(), "torch": torch.__version__, "transformers": transformers.__version__}, file)
    os.remove(os.path.join(folder, "generation_config.json"))
    print(name, sorted(os.listdir(folder)), "nll", nll.item())
