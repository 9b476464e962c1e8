import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.data.order import GROUP_SIZE, SampleOrder, share

SIZES = st.integers(1, 300)


@given(num_samples=SIZES, epochs=st.integers(1, 4), batch=SIZES, seed=st.integers(0, 2**63 - 1))
def test_every_sample_occurs_once_per_epoch(num_samples: int, epochs: int, batch: int, seed: int) -> None:
    order, total = SampleOrder(num_samples, batch, seed), epochs * num_samples
    seen: list[int] = []
    while len(seen) < total:
        indices = order.batch(len(seen), total).tolist()
        assert len(indices) == min(batch, total - len(seen))
        seen += indices
    for epoch in range(epochs):
        assert sorted(seen[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


@given(batch=st.integers(1, 2000), world=st.integers(1, 70))
def test_shares_divide_a_batch_into_whole_groups(batch: int, world: int) -> None:
    spans = [share(batch, rank, world) for rank in range(world)]
    assert [i for span in spans for i in range(span.start, span.stop)] == list(range(batch))
    assert all(span.start % GROUP_SIZE == 0 or span.start == batch for span in spans)
    groups = [-(-(span.stop - span.start) // GROUP_SIZE) for span in spans]
    assert max(groups) - min(groups) <= 1


def test_the_order_depends_only_on_seed_and_epoch() -> None:
    first, again, other = (SampleOrder(1000, 100, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.batch(300, 2000), again.batch(300, 2000))
    assert not np.array_equal(first.batch(300, 2000), other.batch(300, 2000))
    assert not np.array_equal(first.batch(0, 2000), first.batch(1000, 2000))
    assert first.random(100).random() == again.random(100).random() != first.random(200).random()
