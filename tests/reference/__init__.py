"""A slow, obvious reference implementation of path patching with plain PyTorch hooks: the oracle for the fast code."""
