"""Building blocks of likelihoods: positive parameters, means of counts, units of measurement."""
