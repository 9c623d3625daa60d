"""Every format in every program that is said to load it: the logits and the perplexity are those of our eval."""

import math
from pathlib import Path

import pytest

from artifacts import TEXT, Case, all_cases, first_format
from consumers import CONSUMERS, SAME_WEIGHTS, torch
from others import write_compressed_tensors

PERPLEXITY_TOLERANCE = 0.005


def perplexity(logits, ids) -> float:
    vocabulary = logits.shape[-1]
    return math.exp(torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, vocabulary), ids[:, 1:].reshape(-1)))


def difference(a, b) -> float:
    """max |a − b| / max |b|"""
    return ((a - b).abs().max() / b.abs().max()).item()


def known_failure(case: Case, consumer: str) -> str | None:
    """Why a consumer refuses such a model, whoever wrote it."""
    if case.format == "compressed-tensors" and "asym" in case.setting and consumer == "transformers":
        return "transformers 5.23 refuses every asymmetric file without dequantize=True, see the test of others' files"
    if case.format == "gguf" and case.model == "llama3-like" and consumer == "transformers":
        return "transformers reads no rope_freqs.weight: it drops the rope scaling of every GGUF file of Llama 3"
    if case.model == "phi3-like" and consumer == "GPTQModel":
        return "GPTQModel 7.7 splits Phi-3's gate_up_proj, which transformers and vLLM keep as one tensor"
    return None


def cells():
    for case in all_cases():
        for consumer in CONSUMERS[case.format]:
            reason = known_failure(case, consumer)
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            yield pytest.param(case, consumer, id=f"{case}-{consumer}", marks=marks)


@pytest.mark.parametrize("case, consumer", list(cells()))
def test_consumer_computes_our_logits(workshop, record, case: Case, consumer: str):
    expected = workshop.logits(case)
    ids, ours = expected["input_ids"], expected["logits"]

    logits = CONSUMERS[case.format][consumer].logits(workshop.artifact(case), ids)

    assert logits.shape == ours.shape
    row = {"model": case.model, "setting": case.setting, "format": case.format, "consumer": consumer,
           "max_difference": difference(logits, ours),
           "rms_difference": ((logits - ours).square().mean() / ours.square().mean()).sqrt().item(),
           "perplexity": perplexity(logits, ids), "our_perplexity": perplexity(ours, ids)}
    record(row)
    assert row["max_difference"] <= CONSUMERS[case.format][consumer].tolerance
    assert row["perplexity"] == pytest.approx(row["our_perplexity"], rel=PERPLEXITY_TOLERANCE)


@pytest.mark.parametrize("case", [case for case in all_cases() if case.format != "gguf"], ids=str)
def test_our_eval_reads_every_format_alike(workshop, case: Case):
    """The same logits as of the format that was quantized to: converting loses nothing."""
    off_by = difference(workshop.logits(case)["logits"], workshop.logits(first_format(case))["logits"])

    assert off_by == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_we_read_what_compressed_tensors_writes(workshop, tmp_path: Path, symmetric: bool):
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    artifact = tmp_path / "artifact"
    write_compressed_tensors(workshop.model("llama-7m"), artifact, symmetric)
    consumers = CONSUMERS["compressed-tensors"]

    expected = workshop.evaluate(artifact)

    ids, ours = expected["input_ids"], expected["logits"]
    assert difference(consumers["transformers, dequantize=True"].logits(artifact, ids), ours) <= SAME_WEIGHTS
    if not symmetric:  # what known_failure() says
        with pytest.raises(RuntimeError, match="mismatched"):
            consumers["transformers"].logits(artifact, ids)


def permuted(weight, heads: int):
    """Rows of q and k as llama.cpp's LLaMA has them."""
    by_half = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return by_half.swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.parametrize("setting", [case.setting for case in all_cases()
                                     if case.model == "llama-7m" and case.format == "gguf"])
def test_gguf_dequantizes_to_the_dequantized_floats(workshop, setting: str):
    """Every tensor, exactly, after the one rounding to 16 bits."""
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    expected = safetensors.load_file(
        workshop.artifact(Case("llama-7m", setting, "safetensors-float")) / "model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 6)
    heads = {"q_proj": 4, "k_proj": 2}

    reader = gguf.GGUFReader(workshop.artifact(Case("llama-7m", setting, "gguf")))

    got = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    assert len(got) == len(expected)
    for name, weight in expected.items():
        projection = name.split(".")[-2]
        if projection in heads:
            weight = permuted(weight, heads[projection])
        tensor = got[names.get_name(name, try_suffixes=(".weight",))]
        assert (tensor.astype(weight.dtype) == weight).all(), name


@pytest.mark.parametrize("model", ["llama-7m", "bloom-7m", "qwen2-like"])
def test_llama_cpp_tokenizes_as_we_do(workshop, tmp_path: Path, model: str):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.read_bytes()[:50_000].decode(errors="ignore").encode()
                     + " Grüße, 3.14159  и   日本語\t\r\n\n  don't I'LL 🙂".encode())
    workshop.run("tokenize", "--model", workshop.model(model), "--text", text, "--seqlen", 8192, "--out",
                 tmp_path / "ids.safetensors")
    expected = safetensors.load_file(tmp_path / "ids.safetensors")["input_ids"].flatten().tolist()
    artifact = llama_cpp.Llama(str(workshop.artifact(Case(model, "w4", "gguf"))), vocab_only=True, verbose=False)

    ids = artifact.tokenize(text.read_bytes(), add_bos=False, special=True)

    assert ids[:len(expected)] == expected
