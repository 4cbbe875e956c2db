"""What experiments share: flags, trainings, records of runs, external solvers."""
