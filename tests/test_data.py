"""Data: the real digits, their split and their protocol."""

import pytest
import torch
from sklearn.datasets import load_digits

from pyro_vae import data


def test_digits_are_the_real_ones_split_without_loss():
    bunch = load_digits()
    digits = data.digits(binarize="none")
    rows = torch.cat(digits.x) * 16
    labels = torch.cat(digits.labels)
    assert [len(part) for part in digits.x] == [1258, 180, 359]
    assert rows.shape == (1797, 1, 8, 8)

    def keys(images, targets):
        return sorted(
            (tuple(map(int, i.flatten())), int(t)) for i, t in zip(images, targets, strict=True)
        )

    assert keys(rows, labels) == keys(bunch.images, bunch.target)


def test_split_follows_its_seed_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    one, two, other = data.digits(), data.digits(), data.digits(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.x.test, two.x.test)
    assert not torch.equal(one.x.test, other.x.test)


def test_protocol_is_part_of_the_title():
    grey, binary = data.digits(binarize="none"), data.digits()
    assert (grey.title, binary.title) == ("digits", "digits, binarized: threshold")
    assert set(binary.x.train.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(binary.x.train, (grey.x.train > 0.5).float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"binarize": "dither"}, "binarize to be one of .* got 'dither'"),
        ({"test": 1.0}, "fractions that leave rows"),
        ({"valid": 0.0}, "fractions that leave rows"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.digits(**arguments)
