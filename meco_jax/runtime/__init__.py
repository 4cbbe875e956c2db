"""What runs under all of it: checks of input, JAX's settings, files and the training loop."""
