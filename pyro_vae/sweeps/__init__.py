"""Sweeps: jobs that are named by what they compute, survive each other, and can be run again."""
