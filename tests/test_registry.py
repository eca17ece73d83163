"""Names of networks, datasets, tasks and losses."""

import pytest

from hfnet_distill.errors import InputError
from hfnet_distill.networks.registry import NETWORKS
from hfnet_distill.registry import Registry


def test_an_entry_has_a_name_and_is_found_by_it():
    toys = Registry("toy", aliases={"round": "ball"})

    @toys.register("ball", bounces=True)
    class Ball:
        pass

    assert (Ball.name, Ball.bounces) == ("ball", True)
    assert toys.names() == ["ball"]
    assert toys.find("ball") is toys.find("round") is Ball
    assert toys.register("ball")(Ball) is Ball  # as a notebook's cell that runs again
    with pytest.raises(InputError, match="toy 'kite': expected one of ball"):
        toys.find("kite")


def test_a_name_that_is_taken_is_refused():
    toys = Registry("toy")
    toys.register("ball")(type("Ball", (), {}))
    with pytest.raises(InputError, match=r"toy ball: already registered by .*test_registry"):
        toys.register("ball")(type("Cube", (), {}))


def test_a_name_of_the_package_is_taken_before_its_module_is_imported():
    before = dict(NETWORKS.entries)
    with pytest.raises(InputError, match=r"network xfeat: already registered by .*networks.xfeat"):
        NETWORKS.register("xfeat")(type("XFeat", (), {}))
    assert NETWORKS.entries == before
