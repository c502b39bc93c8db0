"""Another program's Hydra application, which composes groups of this package."""

import sys

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Builds what was composed."""
    assert "torch" not in sys.modules
    vae = hydra.utils.instantiate(cfg.vae, event_shape=(1, 8, 8), _convert_="all")
    assert type(vae.posterior).__name__ == "Full"
    assert cfg.other.prior._target_ == "pyro_vae.priors.Vamp"
    x = hydra.utils.instantiate(cfg.data).x.train
    assert tuple(x.shape[1:]) == (2,)
    assert cfg.objective._target_ == "pyro_vae.objectives.IWAE"
    optimizer = hydra.utils.instantiate(cfg.optimizer)(vae.parameters())
    assert optimizer.defaults["lr"] == cfg.optimizer.lr
    print(vae)


if __name__ == "__main__":
    main()
