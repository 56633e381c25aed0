import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uapray.models.interpolation import interpolated

HEAD = ("fc.",)
shares = st.floats(0, 1)
seeds = st.integers(0, 1000)


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(4, 1, 3, 3, generator=generator),
        "norm.running_var": torch.rand(4, generator=generator) + 0.1,
        "norm.num_batches_tracked": torch.tensor(seed),
        "fc.weight": torch.randn(2, 4, generator=generator),
    }


@given(seeds, seeds)
def test_begins_at_the_initial_body_and_ends_at_the_trained(one: int, other: int) -> None:
    initial, trained = state(one), state(other)
    first, last = (interpolated(initial, trained, share, HEAD) for share in (0.0, 1.0))
    assert all(torch.equal(last[name], trained[name]) for name in trained)
    for name in ("conv.weight", "norm.running_var"):
        assert torch.equal(first[name], initial[name])
    for name in ("fc.weight", "norm.num_batches_tracked"):
        assert torch.equal(first[name], trained[name])


@given(seeds, seeds, shares)
def test_is_linear_between(one: int, other: int, share: float) -> None:
    initial, trained = state(one), state(other)
    between = interpolated(initial, trained, share, HEAD)
    back = interpolated(trained, initial, 1 - share, HEAD)
    for name in ("conv.weight", "norm.running_var"):
        expected = (1 - share) * initial[name].double() + share * trained[name].double()
        torch.testing.assert_close(between[name], expected.float())
        torch.testing.assert_close(between[name], back[name])
    assert between["norm.running_var"].min() >= 0.1 * (1 - 1e-6)


@given(seeds, shares)
def test_what_did_not_move_stays_to_the_last_bit(seed: int, share: float) -> None:
    same = interpolated(state(seed), state(seed), share, HEAD)
    assert all(torch.equal(value, same[name]) for name, value in state(seed).items())
