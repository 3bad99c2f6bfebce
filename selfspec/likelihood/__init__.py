"""Exact likelihood of what the samplers do, given the order σ.

tables      log p_i(d, x_σ(d)) and log q_i(d, x_σ(d)) for every i and d, from the networks
chains      from such a table to log p(x | σ), for each kind of sampler
exact       both together; the bound over orders; the score of a single pass
estimate    for orders that are re-chosen between passes, which have no such chain
mutations   log-ratios of mutants and wild type, given the rest of a sequence
profile     how much the drafts know: what an optimal schedule is computed from
"""

from selfspec.likelihood.chains import ancestral_chain, chain, expected_passes, transition
from selfspec.likelihood.estimate import estimate_log_likelihood
from selfspec.likelihood.exact import (
    ELBO,
    ancestral_log_likelihood,
    elbo,
    log_likelihood,
    one_pass_score,
)
from selfspec.likelihood.mutations import mutation_effect
from selfspec.likelihood.profile import draft_nats, information_profile
from selfspec.likelihood.tables import Scores, draw_order, scores

__all__ = [
    "ELBO",
    "Scores",
    "ancestral_chain",
    "ancestral_log_likelihood",
    "chain",
    "draft_nats",
    "draw_order",
    "elbo",
    "estimate_log_likelihood",
    "expected_passes",
    "information_profile",
    "log_likelihood",
    "mutation_effect",
    "one_pass_score",
    "scores",
    "transition",
]
