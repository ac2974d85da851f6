"""Is a best approximation of a rank that cannot be filled with zeros?"""

import torch

from autolora_trainer.lora.svd import best_factors


def test_a_best_approximation_of_a_rank_that_cannot_be_has_zeros():
    a, b = torch.randn(8, 16), torch.randn(2, 8)
    new_a, new_b = best_factors(b, a, 4)
    assert new_a.shape == (4, 16) and new_b.shape == (2, 4)
    torch.testing.assert_close(new_b @ new_a, b @ a)
    assert not new_a[2:].any() and not new_b[:, 2:].any()
