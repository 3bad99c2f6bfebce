"""Diversity of samples: what a judge's likelihood must not be read without.

Token entropy of one sample, from the counts c_v of its L tokens:

    H = -Σ_v c_v/L · ln(c_v/L) = ln L - (1/L) Σ_v c_v ln c_v          nats.

On 27 symbols it cannot fail (shuffled characters score like the data), so there use measures over
all samples together:

    word entropy        H of the words of all samples                 nats
    distinct n          different word n-grams / word n-grams         a share
    character n-gram KL Σ_g p(g) ln(p(g) / ((1-ε) q(g) + ε p(g)))    nats

with p the n-gram frequencies of the data and q those of the samples. The share ε of data mixed into
q keeps the divergence finite, at most ln(1/ε), whatever n-grams the samples lack; it is 0 exactly
if p = q (the skew divergence of Lee 1999, "Measures of distributional similarity"). All three
depend on the number of samples: compare equal numbers only, and quote held-out data beside them.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from selfspec.checks import whole
from selfspec.metrics.spelling import inner_words

__all__ = ["distinct_n", "ngram_counts", "ngram_kl", "token_entropy", "word_entropy"]

MOST_NGRAMS = 1 << 26
"""Vⁿ at most: counts are kept of all, also of those that do not occur."""


def token_entropy(tokens: np.ndarray) -> np.ndarray:
    """Entropy of the tokens of each sample, (n, L) integers → (n,) nats, for any vocabulary.

    What is masked in a masked array does not count.

    Raises:
        ValueError: `tokens` is not (n, L) with L at least 1.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ValueError(f"`tokens` must be (n, L) with L at least 1, got shape {tokens.shape}")
    if np.ma.is_masked(tokens):
        return np.concatenate([token_entropy(row.compressed()[None]) for row in tokens])
    rows, length = tokens.shape
    # Equal tokens stand together in a sorted row; a run's length is the count of its token.
    ordered = np.sort(tokens, axis=1)
    starts = np.ones(tokens.shape, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.flatnonzero(starts)
    counts = np.diff(first, append=tokens.size)
    sums = np.bincount(first // length, counts * np.log(counts), minlength=rows)
    return np.maximum(0.0, np.log(length) - sums / length)


def word_entropy(texts: Sequence[str]) -> float:
    """Entropy in nats of the words of all samples together, cut-off words at the ends dropped.

    The estimate from the counts, which grows with the number of samples. nan without any word.
    """
    counts = np.array(list(Counter(w for text in texts for w in inner_words(text)).values()))
    if not len(counts):
        return float("nan")
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def distinct_n(texts: Sequence[str], n: int = 4) -> float:
    """Different word n-grams as a share of all, over all samples; 1 if none occurs twice.

    Cut-off words at the ends are dropped, and no n-gram crosses from one sample to the next.

    Args:
        texts: the samples.
        n: words in a row, at least 1.

    Returns:
        A share in (0, 1]; nan where no sample has n words.

    >>> distinct_n(["< a b c >", "< a b c >"], n=2)
    0.5
    """
    whole("n", n, least=1)
    samples = [inner_words(text) for text in texts]
    grams = [tuple(words[i : i + n]) for words in samples for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def ngram_counts(tokens: np.ndarray, vocab_size: int = 27, n: int = 4) -> np.ndarray:
    """How often each n-gram of tokens occurs; none crosses from one row to the next.

    Args:
        tokens: (L,) one long text, or (rows, L); integers in 0..V-1.
        vocab_size: V.
        n: tokens in a row, at least 1.

    Returns:
        (Vⁿ,) int64; the n-gram x_1 … x_n has the index Σ_i x_i V^(n-i).

    Raises:
        ValueError: `n` is below 1, Vⁿ is above 2²⁶, a row is shorter than n, or a token is not
            in 0..V-1.
    """
    if n < 1 or vocab_size**n > MOST_NGRAMS:
        raise ValueError(f"`n` must be at least 1 and V^n at most 2^26, got n={n}, V={vocab_size}")
    rows = np.atleast_2d(tokens)
    if (places := rows.shape[1] - n + 1) < 1:
        raise ValueError(f"`tokens` must have rows of at least {n} tokens, got {rows.shape[1]}")
    if rows.min() < 0 or rows.max() >= vocab_size:
        raise ValueError(f"`tokens` must be in 0..{vocab_size - 1}, got {rows.min()}..{rows.max()}")
    counts = np.zeros(vocab_size**n, np.int64)
    step = max(1, (1 << 22) // len(rows))  # long texts in pieces, so that memory stays small
    for start in range(0, places, step):
        width = min(step, places - start)
        code = np.zeros((len(rows), width), np.int64)
        for i in range(start, start + n):
            code = code * vocab_size + rows[:, i : i + width]
        counts += np.bincount(code.ravel(), minlength=len(counts))
    return counts


def ngram_kl(data: np.ndarray, samples: np.ndarray, mixture: float = 0.01) -> float:
    """KL(data ‖ samples) of n-gram frequencies in nats, smoothed as this module's formula says.

    Args:
        data: (K,) counts from `ngram_counts` of real text.
        samples: (K,) counts of the samples.
        mixture: ε, the share of data mixed into the samples' frequencies, in (0, 1).

    Returns:
        A number in [0, ln(1/ε)], 0 if the frequencies agree.

    Raises:
        ValueError: the shapes differ, one side is empty, or `mixture` is out of range.
    """
    if data.shape != samples.shape:
        raise ValueError(
            f"`samples` must have the shape of `data`, {data.shape}, got {samples.shape}"
        )
    if not data.sum() or not samples.sum():
        raise ValueError("`data` and `samples` must each count at least one n-gram, got none")
    if not 0 < mixture < 1:
        raise ValueError(f"`mixture` must be in (0, 1), got {mixture}")
    seen = data > 0
    p, q = data[seen] / data.sum(), samples[seen] / samples.sum()
    # (1-ε) q + ε p = p (1 + (1-ε)(q/p - 1)): written so, equal frequencies give exactly 0.
    return max(0.0, -float((p * np.log1p((1 - mixture) * (q / p - 1))).sum()))
