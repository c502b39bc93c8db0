"""VAEs with scikit-learn's interface: transformer, imputer and detector of outliers."""

from pyro_vae.sklearn.detector import VAEDetector
from pyro_vae.sklearn.imputer import VAEImputer
from pyro_vae.sklearn.transformer import VAETransformer

__all__ = ["VAEDetector", "VAEImputer", "VAETransformer"]
