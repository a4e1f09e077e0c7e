"""Matrix products against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gradina.foundations.matrix import by_index, by_library, by_rows


@pytest.mark.parametrize("multiply", [by_index, by_rows, by_library])
def test_product_is_torchs(multiply: Callable[..., Any]) -> None:
    a, b = torch.randn(5, 7, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(multiply(a.tolist(), b.tolist()), dtype=torch.float64), a @ b)
    with pytest.raises(ValueError, match="a is 2x3 and b is 2x3: expected as many columns of a as rows of b"):
        multiply([[1, 2, 3]] * 2, [[1, 2, 3]] * 2)
    with pytest.raises(ValueError, match="b: expected rows of one length"):
        multiply([[1, 2]], [[1, 2], [3]])
