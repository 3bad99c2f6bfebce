import pytest
import torch

from selfspec.train.ema import EMA


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_the_average_equals_its_definition(decay):
    torch.manual_seed(0)
    params = [torch.randn(3, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    ema = EMA(params, decay)
    expected = [p.clone() for p in params]
    for k in range(1, 40):
        for p in params:
            p.add_(torch.randn_like(p))
        ema.update(k)
        d = min(decay, k / (k + 9))
        expected = [d * a + (1 - d) * p for a, p in zip(expected, params, strict=True)]
    for a, e in zip(ema.average, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-12)
    assert torch.equal(ema.average[0], params[0]) == (decay == 0)


def test_applied_swaps_and_restores_also_after_an_error():
    param = torch.nn.Parameter(torch.ones(3))
    ema = EMA([param], 0.9)
    with torch.no_grad():
        param.fill_(5.0)
    seen = []

    def fail_inside():
        with ema.applied():
            seen.append(param.tolist())
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert seen == [[1.0, 1.0, 1.0]]
    assert param.tolist() == [5.0, 5.0, 5.0]
    assert ema.average[0].tolist() == [1.0, 1.0, 1.0]
