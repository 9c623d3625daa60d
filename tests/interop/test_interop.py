"""Every format in every program that is said to load it: the logits and the perplexity are those of our eval."""

import math
from pathlib import Path

import pytest

from artifacts import TEXT, Case, all_cases, formats_of
from consumers import CONSUMERS, torch

PERPLEXITY_TOLERANCE = 0.005


def perplexity(logits, ids) -> float:
    vocabulary = logits.shape[-1]
    return math.exp(torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, vocabulary), ids[:, 1:].reshape(-1)))


def difference(a, b) -> float:
    """max |a − b| / max |b|"""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("case, consumer", [pytest.param(case, consumer, id=f"{case}-{consumer}")
                                            for case in all_cases() for consumer in CONSUMERS[case.format]])
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
    """The same logits as of the format that was quantized to; of floats, up to their rounding to 16 bits."""
    first = Case(case.model, case.setting, formats_of(case.model, case.setting)[0])

    off_by = difference(workshop.logits(case)["logits"], workshop.logits(first)["logits"])

    assert off_by <= (1e-2 if case.format == "safetensors-float" else 0)


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
