"""Measures the share of padding in an experiment's batches, from its data and a tokenizer.

LORAGE_DATA=DATA python tools/padding.py experiments/paper/tinyllama.py --tokenizer FOLDER
... --packed-rows 4      # instead of the experiment's own number
... --unpacked           # one row per text
"""

import argparse
import dataclasses
from itertools import islice
from pathlib import Path

from lorage_jax.commands.experiment import load_experiment
from lorage_jax.data.pipeline import make_dataset
from lorage_jax.hf.tokenizer import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Share of padding in an experiment's batches")
    parser.add_argument("experiment", type=Path)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of the tokenizer for both models"
    )
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--packed-rows", type=int)
    parser.add_argument("--unpacked", action="store_true")
    options = parser.parse_args()
    config, tokenizer = load_experiment(options.experiment), load_tokenizer(options.tokenizer)
    data = config.data
    if options.unpacked or options.packed_rows:
        data = dataclasses.replace(data, packed_rows=options.packed_rows)
    batches = list(islice(make_dataset(data, tokenizer, tokenizer, config.seed), options.batches))
    masks = [[rows.mask for rows in batch.rows] for batch in batches]
    real = sum(int(mask.sum()) for some in masks for mask in some)
    slots = sum(mask.size for some in masks for mask in some)
    shapes = {tuple(mask.shape for mask in some) for some in masks}
    print(
        f"padding {1 - real / slots:.1%}: {real / len(batches):,.0f} tokens in "
        f"{slots / len(batches):,.0f} slots per batch; "
        f"{len(shapes)} shapes in {len(batches)} batches"
    )


if __name__ == "__main__":
    main()
