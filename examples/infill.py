"""Fill the gaps of several texts at once, and say how likely each filling is.

python examples/infill.py [CHECKPOINT]
"""

import sys

import selfspec as ss

TEMPLATES = ["the ____ sat on the ____", "she opened the ______ and looked at him"]
SETTINGS = {"window": ss.CosineWindow(0.1), "rounds": 4}


def main(checkpoint: str = "books27") -> None:
    model = ss.load(checkpoint)
    assert model.tokenizer is not None
    samples = ss.generate(model, 4, prompt=TEMPLATES, **SETTINGS)
    texts = list(samples)
    for row, text in enumerate(texts):
        template = TEMPLATES[row // 4]
        tokens = samples.tokens[row : row + 1, : len(text)]
        observed = tokens == tokens.new_tensor(model.tokenizer.encode(template, "_"))
        # Exact, given the order σ and the letters around the gaps.
        logp = ss.log_likelihood(model, tokens, observed=observed, seeds=row, **SETTINGS)
        print(f"{text}   log p = {logp.item():.2f}, {samples.nfe[row]:.1f} evaluations")


if __name__ == "__main__":
    main(*sys.argv[1:])
