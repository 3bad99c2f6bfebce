"""A test that passes on a mutant is no test: each fault, one at a time, and a test that sees it."""

from collections.abc import Callable

import numpy as np
import pytest
import test_likelihood
import test_model
import test_sampling
import test_verification
import torch
from reference import BINARY, PLAIN, RESPACED, UNIFORM, counts, p_value, respaced, sampler_law
from torch import Tensor

from selfspec import verification
from selfspec.likelihood import chain
from selfspec.model import SSMD
from selfspec.nn.head import CausalHead
from selfspec.noise import Purpose, uniform
from selfspec.ops import take_along
from selfspec.sampling import SpeculativeSampler, speculative
from selfspec.schedules import ConstantWindow, CosineWindow, Window

Toys = Callable[[int], SSMD]


def residual_drawn_from_the_target(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verification, "residual", lambda draft, target: target.exp())


def one_round_more_in_the_sampler(patch: pytest.MonkeyPatch) -> None:
    init = SpeculativeSampler.__init__
    patch.setattr(
        SpeculativeSampler,
        "__init__",
        lambda self, m, o, w, rounds: init(self, m, o, w, rounds + 1),
    )


def _corrections(head: CausalHead, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The trunk's states and what the tracks add to them, in σ order."""
    states = take_along(inputs[0], inputs[2])
    return states, _forward(head, *inputs) - states


_forward = CausalHead.forward


def track_shifted_by_one(patch: pytest.MonkeyPatch) -> None:
    def forward(head: CausalHead, *inputs: Tensor) -> Tensor:
        states, added = _corrections(head, *inputs)
        return states + added.roll(-1, dims=1)

    patch.setattr(CausalHead, "forward", forward)


def residual_added_to_the_position_held(patch: pytest.MonkeyPatch) -> None:
    def forward(head: CausalHead, *inputs: Tensor) -> Tensor:
        states, added = _corrections(head, *inputs)
        return torch.cat([states[:, :1], states[:, :-1] + added[:, 1:]], 1)

    patch.setattr(CausalHead, "forward", forward)


def first_place_untied(patch: pytest.MonkeyPatch) -> None:
    target, never = SSMD.target, -1

    def untied(model: SSMD, hidden, tokens, order, revealed, places=None) -> Tensor:
        return target(model, hidden, tokens, order, torch.full_like(revealed, never), places)

    patch.setattr(SSMD, "target", untied)


def _noise(patch: pytest.MonkeyPatch, drawn_for: Purpose, **changes) -> None:
    """The speculative sampler draws for one purpose with other counters."""

    def changed(seeds, wanted, pass_index, round_index, places) -> Tensor:
        counters = {"purpose": wanted, "round_index": round_index, "places": places}
        if wanted == drawn_for:
            counters.update(changes)
        return uniform(seeds, pass_index=pass_index, **counters)

    patch.setattr(speculative, "uniform", changed)


def draft_noise_reused_for_acceptance(patch: pytest.MonkeyPatch) -> None:
    _noise(patch, Purpose.ACCEPT, purpose=Purpose.DRAFT, round_index=0)


def residual_noise_reused_between_rounds(patch: pytest.MonkeyPatch) -> None:
    _noise(patch, Purpose.RESIDUAL, round_index=0)


def sampler_has_its_law(toys: Toys, window: Window, rounds: int) -> None:
    test_sampling.test_speculative_samples_have_the_law_of_the_likelihood(
        toys, PLAIN, UNIFORM, window, rounds
    )


def sampler_has_its_enumerated_law(toys: Toys) -> None:
    test_sampling.test_samples_of_a_rechosen_order_have_the_law_over_ordered_sets(
        toys, PLAIN, ConstantWindow(2), 1
    )


def what_stands_has_the_law_of_the_target(_: Toys) -> None:
    test_verification.test_what_stands_has_the_law_of_the_target_whatever_the_draft_is("sometimes")


def probabilities_sum_to_one(toys: Toys) -> None:
    test_likelihood.test_probabilities_sum_to_one_for_every_order(toys, PLAIN, UNIFORM)


def tokens_move_later_targets_only(_: Toys) -> None:
    test_model.test_a_token_never_moves_the_target_at_its_own_or_an_earlier_place(
        test_model.every_number_revealed(), place=3
    )


def target_is_draft_at_first(_: Toys) -> None:
    test_model.test_the_target_is_the_draft_at_initialisation(test_model.every_number_revealed())


def target_is_tied(_: Toys) -> None:
    test_model.test_the_target_is_the_draft_at_the_first_masked_place(
        test_model.every_number_revealed()
    )


def likelihood_is_the_law_of_the_process(toys: Toys) -> None:
    tables = {PLAIN: test_likelihood.scored(toys(3), PLAIN, test_likelihood.SIGMAS[PLAIN])}
    test_likelihood.test_the_likelihood_is_the_law_of_the_process(
        toys, tables, PLAIN, ConstantWindow(3), 2
    )


PAIRS = [
    (residual_drawn_from_the_target, what_stands_has_the_law_of_the_target),
    (residual_drawn_from_the_target, lambda toys: sampler_has_its_law(toys, ConstantWindow(3), 2)),
    (one_round_more_in_the_sampler, lambda toys: sampler_has_its_law(toys, ConstantWindow(3), 1)),
    (track_shifted_by_one, tokens_move_later_targets_only),
    (track_shifted_by_one, probabilities_sum_to_one),
    (residual_added_to_the_position_held, target_is_draft_at_first),
    (first_place_untied, target_is_tied),
    (first_place_untied, likelihood_is_the_law_of_the_process),
    (first_place_untied, sampler_has_its_enumerated_law),
    (
        draft_noise_reused_for_acceptance,
        lambda toys: sampler_has_its_law(toys, ConstantWindow(3), 1),
    ),
    (
        residual_noise_reused_between_rounds,
        lambda toys: sampler_has_its_law(toys, CosineWindow(0.4), 3),
    ),
]


@pytest.mark.parametrize(("mutate", "test"), PAIRS)
def test_a_mutant_fails_where_the_original_passes(
    toys: Toys, monkeypatch: pytest.MonkeyPatch, mutate: Callable, test: Callable
):
    test(toys)
    with monkeypatch.context() as patch:
        mutate(patch)
        with pytest.raises(AssertionError):
            test(toys)


def test_the_count_recursion_sums_to_one_and_is_wrong_for_a_rechosen_order(binary: SSMD):
    law, window = np.zeros(64), ConstantWindow(3)
    for sigma, chance in respaced(BINARY.masked, 3):  # as if σ were that of the first pass
        table = test_likelihood.scored(binary, BINARY, sigma)
        law += chance * chain(table, window, rounds=1).exp().numpy()
    assert law.sum() == pytest.approx(1, abs=1e-9)
    drawn = counts(SpeculativeSampler(binary, RESPACED, window, rounds=1), BINARY)
    assert p_value(drawn, law) < 1e-6
    assert p_value(drawn, sampler_law(binary, BINARY, RESPACED, window, 1)) > 1e-3
