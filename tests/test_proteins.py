import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from selfspec.data.tokenizers import ProteinTokenizer
from selfspec.kmers import kmers
from selfspec.metrics import ESMFold, Folded, distinct_kmers, jensen_shannon, novelty

counts = st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any)


@given(counts, counts)
def test_composition_is_scipys_divergence(first, second):
    expected = float(np.nan_to_num(jensenshannon(first, second))) ** 2
    assert jensen_shannon(first, second) == pytest.approx(expected, abs=1e-9)


def test_composition_at_its_ends():
    assert jensen_shannon([1, 2, 3], [2, 4, 6]) == 0
    assert jensen_shannon([1, 0], [0, 5]) == pytest.approx(np.log(2))
    with pytest.raises(ValueError, match="must have the shape"):
        jensen_shannon([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="count something"):
        jensen_shannon([0, 0], [1, 2])


def test_repeats_lower_the_share_of_distinct_kmers():
    rng = np.random.default_rng(0)
    rows = list(rng.integers(20, size=(10, 100)))
    assert distinct_kmers(rows, 20) > 0.99
    assert distinct_kmers([rows[0]] * 10, 20) == pytest.approx(0.1)
    assert distinct_kmers([np.zeros(100, int)], 20) == pytest.approx(1 / 95)
    assert np.isnan(distinct_kmers([rows[0][:5]], 20))


def test_a_copy_is_not_new():
    rng = np.random.default_rng(0)
    training = list(rng.integers(20, size=(30, 80)))
    half = np.concatenate([training[3][:40], rng.integers(20, size=40)])
    samples = [training[7], training[7][10:60], half, rng.integers(20, size=80), np.zeros(3, int)]
    found = novelty(kmers(samples, 20), kmers(training, 20))
    assert found[:2].tolist() == [0, 0]
    assert found[2] == pytest.approx(1 - 35 / 75)
    assert found[3] == 1
    assert np.isnan(found[4])


# Folding


@pytest.fixture(scope="module")
def folder() -> ESMFold:
    """The real class at a tiny size, with random weights."""
    transformers = pytest.importorskip("transformers")
    structure = {
        "sequence_dim": 32, "pairwise_dim": 16, "ipa_dim": 4, "resnet_dim": 8, "num_heads_ipa": 2,
        "num_qk_points": 2, "num_v_points": 2, "num_blocks": 1,
    }  # fmt: skip
    trunk = {
        "num_blocks": 1, "sequence_state_dim": 32, "pairwise_state_dim": 16,
        "sequence_head_width": 8, "pairwise_head_width": 8, "position_bins": 4, "max_recycles": 1,
        "structure_module": structure,
    }  # fmt: skip
    config = transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, position_embedding_type="rotary",
        is_folding_model=True, esmfold_config={"fp16_esm": False, "trunk": trunk},
    )  # fmt: skip
    from transformers.models.esm.modeling_esmfold import EsmForProteinFolding

    transformers.set_seed(0)
    return ESMFold(EsmForProteinFolding(config))


def test_plddt_is_the_mean_over_atoms_of_a_sequence_alone(folder):
    texts = ["MKTAYIAK", "GSHMW", "MKTAYIAKQRQISF"]
    together = folder(texts, batch_size=3)
    assert together.plddt == pytest.approx(folder(texts).plddt, rel=1e-4)
    out = folder.model.infer(texts[1])
    exists = out.atom37_atom_exists[0].bool()
    assert exists.sum() > 5 * len(texts[1]) - 10
    assert together.plddt[1] == pytest.approx(100 * out.plddt[0][exists].mean().item(), rel=1e-4)
    assert ((together.plddt > 0) & (together.plddt < 100)).all()


def test_the_share_of_confident_folds():
    assert Folded(np.array([10.0, 70.0, 71.0, 99.0])).confident == 0.5


def test_nothing_to_fold(folder):
    for texts in ([], ["MK", ""]):
        with pytest.raises(ValueError, match="`sequences` must not be empty"):
            folder(texts)


def test_residues_are_letters_of_the_folding_model(folder):
    known = folder.model.infer(ProteinTokenizer().alphabet)
    assert known.aatype[0].tolist() != [20] * 20
    assert len(set(known.aatype[0].tolist())) == 20
