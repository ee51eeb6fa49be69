"""Hosts that rldk lives in, one package each."""
