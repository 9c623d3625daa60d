"""Seconds that Hugging Face tokenizers takes for a text on one thread, for jobs/bench/tokenizer.sh.

FOLDER TEXT RUNS IDS: compares with the int32 ids in the file IDS, and prints the seconds of the first run, which knows no
word, and of the median of the others."""

import array
import sys
import time

import tokenizers

folder, text_file, runs, ids_file = sys.argv[1:]
tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
with open(text_file, encoding="utf-8", newline="") as file:
    text = file.read()
seconds = []
for _ in range(int(runs) + 1):
    start = time.perf_counter()
    # The fastest way there is: without offsets.
    ids = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    seconds.append(time.perf_counter() - start)
expected = array.array("i")
with open(ids_file, "rb") as file:
    expected.frombytes(file.read())
if expected.tolist() != ids:
    sys.exit(f"{folder}: the ids differ")
print(f"{seconds[0]:.4f} {sorted(seconds[1:])[(len(seconds) - 1) // 2]:.4f}")
