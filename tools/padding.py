"""How much of an experiment's batches is padding, by its data and a tokenizer; no weights are read.

LORAGE_DATA=DATA python tools/padding.py experiments/paper_tinyllama.py --tokenizer FOLDER
... --packed-rows 4      # instead of the experiment's own
... --unpacked           # every text in a row of its own
"""

import argparse
import dataclasses
from itertools import islice
from pathlib import Path

from lorage_jax.commands.experiment import load_experiment
from lorage_jax.data.pipeline import make_dataset
from lorage_jax.hf.load import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="of both models, a folder")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--packed-rows", type=int)
    parser.add_argument("--unpacked", action="store_true")
    options = parser.parse_args()
    config, tokenizer = load_experiment(options.experiment), load_tokenizer(options.tokenizer)
    data = config.data
    if options.unpacked or options.packed_rows:
        data = dataclasses.replace(data, packed_rows=options.packed_rows)
    batches = list(islice(make_dataset(data, tokenizer, tokenizer, config.seed), options.batches))
    masks = [(*batch["prompt_mask"], *batch["query_mask"]) for batch in batches]
    real = sum(int(mask.sum()) for some in masks for mask in some)
    slots = sum(mask.size for some in masks for mask in some)
    shapes = {tuple(mask.shape for mask in some) for some in masks}
    print(
        f"padding {1 - real / slots:.1%}: {real / len(batches):,.0f} tokens in "
        f"{slots / len(batches):,.0f} slots a batch; {len(shapes)} shapes in {len(batches)} batches"
    )


if __name__ == "__main__":
    main()
