"""The machinery that the objectives share: tracing, log densities, closed forms and weights."""
