"""The fixed projection that feature maps share."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.feature_parts import gaussian_projection


def test_a_projection_is_fixed_gaussian_and_keeps_norms_on_average():
    matrix = gaussian_projection(400, 50, seed=3)
    np.testing.assert_array_equal(matrix, gaussian_projection(400, 50, seed=3))
    assert not np.array_equal(matrix, gaussian_projection(400, 50, seed=4))
    assert matrix.mean() == pytest.approx(0, abs=4 / np.sqrt(50 * 20_000))
    assert matrix.var() * 50 == pytest.approx(1, abs=4 * np.sqrt(2 / 20_000))
    assert np.mean(matrix**4) * 2500 == pytest.approx(3, abs=0.2)
    first = gaussian_projection(2, 2, seed=0)  # the raw stream of PCG64(0): stored policies rely on these numbers
    np.testing.assert_allclose(first, [[0.247734, -0.433780], [-1.230011, -1.507135]], atol=1e-6)
