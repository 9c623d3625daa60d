#!/usr/bin/env python3
"""Runs the tests of this folder, for ctest: with exit status 77 and the reason when what they need is not there.

    python3 run.py [PYTEST ARGUMENT...]
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

SKIPPED = 77  # SKIP_RETURN_CODE in CMakeLists.txt
NEEDED = ["numpy", "pytest", "safetensors", "torch", "transformers"]

folder = Path(__file__).resolve().parent
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if missing:
    print(f"skipped: {sys.executable} has no {', '.join(missing)}; {sys.executable} -m pip install -r "
          f"{folder / 'requirements.txt'}, or configure with -DGPTQD_INTEROP_PYTHON=PYTHON")
    sys.exit(SKIPPED)
sys.exit(subprocess.call([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", folder, *sys.argv[1:]]))
