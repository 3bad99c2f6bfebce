"""Verified parallel decoding for masked diffusion models."""
