"""Figure 4: train BCOS and PCOS over the number of devices K and compare all schemes.

Writes results.csv, figure4.png/.pdf, training.png/.pdf, the policies and run.json into
--output_dir. Example:

    python experiments/sweep_k.py --flagfile=experiments/flags/quick.flags
"""

from __future__ import annotations

from absl import flags
from support import common, list_flags, trainings

FLAGS = flags.FLAGS
trainings.define_sweep_flags()
flags.DEFINE_list(
    "num_devices", [str(k) for k in range(4, 21, 2)], "the K to sweep; 4:8:2 is 4,6,8"
)
flags.DEFINE_float("slot", 0.5, "slot length T [s]", lower_bound=1e-6)


def main(argv: list[str]) -> None:
    """Train all lanes in one program, or draw again what is there."""
    common.begin(argv)
    axes = {"num_devices": list_flags.integers("num_devices", low=1), "slot": [FLAGS.slot]}
    trainings.sweep_energy(axes, "num_devices", "figure4")


if __name__ == "__main__":
    common.launch(main)
