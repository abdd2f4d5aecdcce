"""Arrays on their way into Jittor and back, with whichever generation of NumPy is installed (.ci/run has both)."""

from types import SimpleNamespace

import numpy as np
import pytest

from jclip_fewshot.backend import jt, runtime
from jclip_fewshot.errors import UserError

KINDS = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "bool"]


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_come_back_unchanged(kind, shape):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(kind)
    for sent in (array, array.T, array[::-1]):
        assert np.array_equal(jt.array(sent).numpy(), sent)


def test_64_bits_stay_where_they_are_asked_for():
    with jt.flag_scope(auto_convert_64_to_32=0):
        for array in (np.array([1 / 3, 1e300]), np.array([2 ** 40, -7])):
            came = jt.array(array).numpy()
            assert came.dtype == array.dtype and np.array_equal(came, array)


def test_products_and_sums_are_numpys():
    a, b = (np.random.default_rng(seed).normal(size=(40, 40)).astype(np.float32) for seed in (1, 2))
    assert np.allclose(jt.matmul(jt.array(a), jt.array(b)).numpy(), a @ b, atol=1e-4)
    assert np.allclose(jt.array(a).sum(0).numpy(), a.sum(0), atol=1e-4)
    assert jt.array(a).sum().item() == pytest.approx(a.sum(), abs=1e-3)


@pytest.mark.parametrize("misread", [lambda array: array * 0, lambda array: array.reshape(-1),
                                     lambda array: array if array.dtype != np.float16 else array + 1])
def test_a_numpy_that_jittor_misreads_is_refused(misread):
    fake = SimpleNamespace(array=lambda array: SimpleNamespace(numpy=lambda: misread(array)))
    with pytest.raises(UserError, match=f"misreads the arrays of NumPy {np.__version__}.*install another NumPy"):
        runtime._require_exact_arrays(fake)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpys_numbers_are_indices(kind):
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(jt.array(rows)[kind(1)].numpy(), rows[1])
    assert np.array_equal(jt.array(rows)[:, kind(1):kind(3)].numpy(), rows[:, 1:3])
    assert np.array_equal((jt.array(rows) * kind(2)).numpy(), rows * 2)
