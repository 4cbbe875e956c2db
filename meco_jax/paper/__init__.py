"""The paper's scheme: its three-branch network, Algorithm 1, and many of them in lanes."""
