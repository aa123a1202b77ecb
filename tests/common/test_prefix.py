"""A prefix is the first part of file names."""

import pytest

from common.errors import OptionError
from common.prefix import check_prefix
from train.checks import check_early
from train.options import train_options


@pytest.mark.parametrize("prefix", ["", "/", "run/", "a/b/"])
def test_one_without_name_is_refused(prefix):
    with pytest.raises(OptionError, match="--prefix .*: its files would have no name"):
        check_prefix(prefix)
    with pytest.raises(OptionError, match="--prefix .*: its files would have no name"):
        check_early(train_options(prefix=prefix))


def test_others_are_taken():
    for prefix in ("run", "a/run", "./run", "a/."):
        check_prefix(prefix)
