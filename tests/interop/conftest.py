"""Options, fixtures and the table at the end."""

import json
import os
from importlib import metadata
from pathlib import Path

import pytest

import models
from artifacts import Workshop

PACKAGES = ["accelerate", "compressed-tensors", "gguf", "gptqmodel", "llama-cpp-python", "optimum", "torch",
            "transformers"]


def pytest_addoption(parser):
    parser.addoption("--program", default=models.REPOSITORY / "build/cpu/gptq-dist", type=Path, help="gptq-dist")
    parser.addoption("--keep", type=Path, help="make the artifacts in this folder, and leave them there")
    parser.addoption("--table", type=Path, help="write the results as JSON")


def pytest_configure(config):
    config.interop_rows = []


@pytest.fixture(scope="session")
def workshop(request, tmp_path_factory) -> Workshop:
    program = request.config.getoption("--program").resolve()
    if not os.access(program, os.X_OK):
        pytest.skip(f"no program {program}: build it, or give --program")
    folder = request.config.getoption("--keep") or tmp_path_factory.mktemp("artifacts")
    folder.mkdir(parents=True, exist_ok=True)
    return Workshop(program, folder)


@pytest.fixture
def record(request):
    """Keeps a row of the table at the end."""
    return request.config.interop_rows.append


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def pytest_terminal_summary(terminalreporter, config):
    rows = config.interop_rows
    if not rows:
        return
    write = terminalreporter.write_line
    terminalreporter.section("interoperability")
    write(", ".join(f"{package} {version}" for package, version in _versions().items()))
    write(f"{'model':12} {'setting':16} {'format':18} {'consumer':32} {'max diff':>9} {'rms diff':>9} "
          f"{'perplexity':>10} {'ours':>10}")
    for row in rows:
        write(f"{row['model']:12} {row['setting']:16} {row['format']:18} {row['consumer']:32} "
              f"{row['max_difference']:9.1e} {row['rms_difference']:9.1e} {row['perplexity']:10.4f} "
              f"{row['our_perplexity']:10.4f}")
    if table := config.getoption("--table"):
        table.write_text(json.dumps({"versions": _versions(), "rows": rows}, indent=1) + "\n")
