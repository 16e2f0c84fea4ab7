"""bfloat16 where it is known; on a GPU, what is recorded says the same as what is not."""

import pytest
import torch

from lowenergy import energies, networks
from lowenergy.base import device
from lowenergy.energies import energy_of
from lowenergy.training.graphs import RecordedEnergy


def test_bfloat16_is_used_only_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for known in (True, False):
        monkeypatch.setattr(device, "has_bfloat16", lambda _, known=known: known)
        with device.autocast("cpu", "bf16-mixed"):
            assert torch.is_autocast_enabled("cpu") == known
        with device.autocast("cpu", "32-true"):
            assert not torch.is_autocast_enabled("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_energy_has_the_same_gradient_also_of_later_weights() -> None:
    spec = networks.Spec("unet", 4, "3x3", "swish", "none", channels=1, image_size=8, outputs=1, head="scalar")
    network, images = networks.build(spec, seed=0).cuda(), torch.rand(5, 1, 8, 8).cuda() * 2 - 1
    plain = energy_of(network, "scalar", frozen=True)
    recorded = RecordedEnergy(plain)
    for batch in (images, images[:2], images):
        wanted, found = (energies.energy_gradient(energy, batch) for energy in (plain, recorded))
        torch.testing.assert_close(found, wanted)
        with torch.no_grad():
            for w in network.parameters():
                w.add_(0.01)
