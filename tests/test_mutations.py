from functools import partial
from math import log
from pathlib import Path
from typing import Any

import hubs
import numpy as np
import pytest
import tiny
import torch
from conftest import make_toy
from reference import UNIFORM, ListedOrder, Puzzle, sampler_law
from torch import Tensor

import selfspec as ss
from selfspec.data.tokenizers import ESM_ALPHABET, ProteinTokenizer
from selfspec.likelihood.mutations import Mutation, parse_mutations
from selfspec.likelihood.tables import draw_order

LETTERS = "ACD"


@pytest.fixture(scope="module")
def toy() -> ss.SSMD:
    model = make_toy()
    model.tokenizer = ProteinTokenizer(LETTERS)
    return model


def ratio(law: np.ndarray, puzzle: Puzzle, mutant: str, wild: str) -> float:
    """log of the probabilities of two ways to fill a puzzle."""
    rows = torch.tensor([[LETTERS.index(c) for c in text] for text in (mutant, wild)])
    first, second = law[puzzle.index(rows).numpy()]
    return log(first / second)


def test_a_single_mutation_is_the_log_ratio_of_the_draft(toy: ss.SSMD):
    puzzle = Puzzle("012?10")
    law = sampler_law(toy, puzzle, UNIFORM, ss.UnboundedWindow(), 9)
    for orders in (1, 3):
        found = ss.mutation_effect(toy, "ACDACA", ["A4C", "A4D", "A4A"], orders=orders, seed=5)
        expected = [ratio(law, puzzle, text, "ACDACA") for text in ("ACDCCA", "ACDDCA")]
        assert found.tolist() == pytest.approx([*expected, 0.0])
    masked = torch.tensor([[0, 1, 2, 3, 1, 0]])
    logits = toy.draft(toy.encode(masked))[0, 3]
    assert found[0].item() == pytest.approx((logits[1] - logits[0]).item())


@pytest.mark.parametrize(
    ("rounds", "window"),
    [(9, ss.UnboundedWindow()), (1, ss.ConstantWindow(2)), (0, ss.ConstantWindow(1))],
)
def test_several_mutations_follow_the_exact_law(toy: ss.SSMD, rounds: int, window):
    puzzle, order = Puzzle("?1??"), ListedOrder((2, 0, 3, 1))
    law = sampler_law(toy, puzzle, order, window, rounds)
    score = partial(ss.log_likelihood, order=order, window=window, rounds=rounds)
    texts = ["A1C:D3A:C4D", "C4A:A1D:D3A"]
    found = ss.mutation_effect(toy, "ACDC", texts, score, orders=2)
    wild = "ACDC"
    expected = [ratio(law, puzzle, mutant, wild) for mutant in ("CCAD", "DCAA")]
    assert found.tolist() == pytest.approx(expected)
    if rounds == 9:  # the law of a single pass
        single = partial(ss.one_pass_score, order=order)
        assert ss.mutation_effect(toy, wild, texts, single).tolist() == pytest.approx(expected)


def test_orders_are_averaged_over_probabilities(toy: ss.SSMD):
    puzzle, window = Puzzle("?1??"), ss.UnboundedWindow()
    law = sampler_law(toy, puzzle, UNIFORM, window, 9)
    found = ss.mutation_effect(toy, "ACDC", ["A1C:D3A:C4D"], orders=50_000, batch_size=9999)
    assert found.item() == pytest.approx(ratio(law, puzzle, "CCAD", "ACDC"), abs=0.015)
    sigmas = [(a, b, c) for a, b, c in ((0, 2, 3), (0, 3, 2), (2, 0, 3), (2, 3, 0), (3, 0, 2),
                                        (3, 2, 0))]  # fmt: skip
    logs = [
        ratio(sampler_law(toy, puzzle, ListedOrder((*s, 1)), window, 9), puzzle, "CCAD", "ACDC")
        for s in sigmas
    ]
    assert abs(float(np.mean(logs)) - found.item()) > 0.05  # the mean of the logs is another


def test_batches_do_not_matter():
    model = tiny.protein()
    wild = "MKTAYIAKQR"
    texts = ["K2R", "A4G:I6L", "M1V"]
    whole = ss.mutation_effect(model, wild, texts)
    assert torch.allclose(whole, ss.mutation_effect(model, wild, texts, batch_size=1), atol=1e-5)
    assert torch.allclose(whole[1:2], ss.mutation_effect(model, wild, ["A4G:I6L"]), atol=1e-5)


def test_a_scan_scores_each_wild_type_once_and_single_positions_in_one_order():
    model, wild = tiny.protein(), "MKTAYI"
    texts = [f"{wild[at]}{at + 1}{new}" for at in range(6) for new in "ACDE"] + [
        "K2R:A4G",
        "K2A:A4C",
    ]
    seen = []

    def counted(model: ss.SSMD, tokens: Tensor, **options: Any) -> Tensor:
        seen.append(len(tokens))
        return ss.one_pass_score(model, tokens, **options)

    found = ss.mutation_effect(model, wild, texts, counted, orders=5)
    # A4A is the wild type itself; of two positions there are three texts.
    assert sum(seen) == 6 + 23 + 3 * 5
    alone = torch.cat([ss.mutation_effect(model, wild, [text], orders=5) for text in texts])
    assert torch.allclose(found, alone, atol=1e-5)


def test_the_notation():
    assert parse_mutations("K2R:M1V", "MK") == [Mutation("K", 1, "R"), Mutation("M", 0, "V")]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must look like A42G"),
        ("2R", "must look like"),
        ("k2R", "must look like"),
        ("K0R", "must look like"),
        ("K2R ", "must look like"),
        ("K2R;M1V", "must look like"),
        ("A2R", r"the wild type, which has K at 2, got 'A2R'"),
        ("K9R", r"must be at 1\.\.3, got 'K9R'"),
        ("K2R:K2A", "must name a position once"),
    ],
)
def test_bad_mutations_are_named(text: str, rule: str):
    with pytest.raises(ValueError, match=rule):
        parse_mutations(text, "MKT")


def test_bad_arguments_are_named():
    model = tiny.protein()
    for changes, rule in (
        ({"mutations": []}, "`mutations` must hold at least one"),
        ({"mutations": ["K2B"]}, "got 'B' at index 1"),
        ({"orders": 0}, "`orders` must be at least 1"),
        ({"wild_type": "MK" * 40}, "`wild_type` may have at most 24 residues, .* got 80"),
    ):
        with pytest.raises(ValueError, match=rule):
            ss.mutation_effect(model, **{"wild_type": "MKT", "mutations": ["K2R"], **changes})
    model.tokenizer = None
    with pytest.raises(ValueError, match="`model` must have a tokenizer"):
        ss.mutation_effect(model, "MKT", ["K2R"])


def test_a_model_of_the_hub_sees_what_stands_around_a_sequence(tmp_path: Path):
    """By hand: the masked marginal of ESM-1v, and a pair by the chain rule over both orders."""
    model: Any = ss.attach_head(hubs.esm(vocab_size=33, mask_token_id=32, pad_token_id=1), heads=2,
                                tokenizer=hubs.esm_tokenizer(tmp_path))  # fmt: skip
    wild, cls, eos, mask = "MKTAYIAKQR", 0, 2, 32
    row = torch.tensor([[cls, *map(ESM_ALPHABET.index, wild), eos]])

    @torch.no_grad()
    def law(tokens: torch.Tensor, place: int) -> torch.Tensor:
        logits = model.trunk.model(input_ids=tokens).logits[0, place].double()
        return logits.masked_fill(model.trunk.forbidden, -torch.inf).log_softmax(-1)

    logp = law(row.clone().index_fill_(1, torch.tensor([3]), mask), 3)  # T3, behind <cls>
    found = ss.mutation_effect(model, wild, ["T3V", "M1V"])
    expected = logp[ESM_ALPHABET.index("V")] - logp[ESM_ALPHABET.index("T")]
    assert found[0].item() == pytest.approx(expected.item(), abs=1e-5)
    assert found.isfinite().all()
    pair = partial(ss.log_likelihood, window=ss.ConstantWindow(1), rounds=0)
    several = ss.mutation_effect(model, wild, ["T3V:Q9A"], pair, orders=16)

    def both(third: str, ninth: str) -> float:
        blank = row.clone().index_fill_(1, torch.tensor([3, 9]), mask)
        ways = []
        for (at, letter), (then, last) in (((3, third), (9, ninth)), ((9, ninth), (3, third))):
            first = law(blank, at)[ESM_ALPHABET.index(letter)]
            seen = blank.index_fill(1, torch.tensor([at]), ESM_ALPHABET.index(letter))
            ways.append((first + law(seen, then)[ESM_ALPHABET.index(last)]).exp().item())
        seeds = ss.row_seeds(0, 16)
        observed = torch.ones_like(row, dtype=torch.bool).index_fill_(
            1, torch.tensor([3, 9]), False
        )
        sigma, _ = draw_order(UNIFORM, row.expand(16, -1), seeds, None, observed.expand(16, -1))
        share = (sigma[:, -2] == 3).double().mean().item()
        assert 0 < share < 1
        return share * ways[0] + (1 - share) * ways[1]

    assert several.item() == pytest.approx(log(both("V", "A")) - log(both("T", "Q")), abs=1e-5)


def test_words_have_no_residues():
    tokenizer = hubs.tokenizer("ACDE")
    tokenizer.add_tokens(["AC"])
    model: Any = ss.attach_head(hubs.bert(), heads=2, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="`model` must read one token a residue, got 1 for 2"):
        ss.mutation_effect(model, "AC", ["A1D"])
