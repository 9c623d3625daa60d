"""Artifacts of quantized models in every format, and our own logits of them."""

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import models

CALIBRATION = models.DEMO / "calib.txt"
TEXT = models.DEMO / "eval.txt"
WINDOWS, SEQLEN = 4, 256

SETTINGS = {
    "w4": ["--bits", "4"],
    "w8": ["--bits", "8"],
    "w4-asym": ["--bits", "4", "--asym"],
    "w3-asym": ["--bits", "3", "--group-size", "64"],
    "w2-asym": ["--bits", "2", "--group-size", "32"],
    "w3-sym": ["--bits", "3", "--sym"],
    "w4-rows": ["--bits", "4", "--group-size", "-1"],
    "w4-dynamic": ["--bits", "4", "--act-order", "dynamic"],
    "w3-asym-dynamic": ["--bits", "3", "--act-order", "dynamic"],
}


@dataclass(frozen=True)
class Case:
    """A model quantized with one of SETTINGS, in one format."""

    model: str
    setting: str
    format: str

    def __str__(self) -> str:
        return f"{self.model}-{self.setting}-{self.format}"


def formats_of(model: str, setting: str) -> list[str]:
    """The formats that hold such a model; see docs/formats.md."""
    formats = ["gptq_v2" if "asym" in setting else "gptq"]
    if "dynamic" not in setting:
        if setting.startswith(("w4", "w8")):
            formats.append("compressed-tensors")
        if not model.startswith("opt"):
            formats.append("gguf")
    return formats + ["safetensors-float"]


def first_format(case: Case) -> Case:
    """The same model in the format that it was quantized to."""
    return Case(case.model, case.setting, formats_of(case.model, case.setting)[0])


def all_cases() -> list[Case]:
    """LLaMA with every setting, the other families with some."""
    settings = {
        "llama-7m": list(SETTINGS),
        "opt-7m": ["w4", "w4-asym", "w3-asym", "w3-asym-dynamic"],
        "bloom-7m": ["w4", "w8", "w4-asym", "w2-asym"],
        "qwen2-like": ["w4", "w4-asym"],
        "qwen3-like": ["w4"],
        "phi3-like": ["w4"],
        "llama3-like": ["w4"],
    }
    return [Case(model, setting, format) for model, of_model in settings.items() for setting in of_model
            for format in formats_of(model, setting)]


class Workshop:
    """Runs gptq-dist, each thing once."""

    def __init__(self, program: Path, folder: Path):
        self._program = program
        self.folder = folder
        self.model = functools.cache(lambda name: models.find_or_make(name, folder))
        self.artifact = functools.cache(self._artifact)
        self.logits = functools.cache(self._logits)

    def run(self, *arguments) -> subprocess.CompletedProcess:
        command = [str(self._program), *map(str, arguments)]
        environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
        return result

    def _artifact(self, case: Case) -> Path:
        """What a user would give a consumer: a folder, or the file of a GGUF artifact."""
        first = first_format(case)
        out = self.folder / str(case)
        if case == first:
            self.run("quantize", "--model", self.model(case.model), "--calibration", CALIBRATION, "--samples", 32,
                     "--seqlen", SEQLEN, "--format", case.format, *SETTINGS[case.setting], "--out", out)
        else:
            self.run("convert", self.artifact(first), "--to", case.format, "--out", out)
        if case.format != "gguf":
            return out
        (file,) = out.glob("*.gguf")
        return file

    def _logits(self, case: Case) -> dict:
        """Our eval does not read GGUF, whose tensors are those of the first format."""
        if case.format == "gguf":
            case = first_format(case)
        return self.evaluate(self.artifact(case))

    def evaluate(self, model: Path) -> dict:
        """`input_ids` and `logits`, [windows, seqlen] and [windows, seqlen, vocabulary], of our eval."""
        import torch
        from safetensors.torch import load_file

        file = self.folder / f"{model.name}.logits.safetensors"
        self.run("eval", "--model", model, "--text", TEXT, "--seqlen", SEQLEN, "--windows", WINDOWS, "--logits", file)
        tensors = load_file(file)
        file.unlink()
        return {"input_ids": tensors["input_ids"].to(torch.int64), "logits": tensors["logits"]}
