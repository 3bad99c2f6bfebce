"""Put trained models into the package, with the tokenizer, the spelling vocabulary and a licence.

python benchmarks/bundle.py --data DATA --model RUNS/joint/model --judge RUNS/small-judge/model
"""

import argparse
from pathlib import Path

from selfspec import checkpoint
from selfspec.data.corpus import open_corpus
from selfspec.metrics.spelling import count_words, decoded, save_vocabulary, vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of `selfspec prepare`")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=checkpoint.BUNDLED)
    args = parser.parse_args()
    tokenizer, stores = open_corpus(args.data)
    for name, source, dtype in [
        ("books27", args.model, "int8"),
        ("books27-judge", args.judge, "bfloat16"),
    ]:
        config = checkpoint.load_config(source)
        model = checkpoint.load(source)
        model.tokenizer = tokenizer
        about = config.get("training") or config.get("source")
        checkpoint.save(model, args.out / name, dtype=dtype, training=about)  # type: ignore[arg-type]
    pieces = decoded(stores["train"].tokens, tokenizer.decode, progress=True)
    save_vocabulary(args.out / "books27" / "vocabulary.txt.xz", vocabulary(count_words(pieces)))


if __name__ == "__main__":
    main()
