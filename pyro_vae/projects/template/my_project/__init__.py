"""Parts of variational autoencoders, with their data and experiments."""
