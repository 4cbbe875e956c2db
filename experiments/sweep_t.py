"""Figure 5: train BCOS and PCOS over the slot length T and compare all schemes.

Writes results.csv, figure5.png/.pdf, training.png/.pdf, the policies and run.json into
--output_dir. Example:

    python experiments/sweep_t.py --flagfile=experiments/flags/quick_t.flags
"""

from __future__ import annotations

from absl import flags
from support import common, list_flags, trainings

FLAGS = flags.FLAGS
trainings.define_sweep_flags()
flags.DEFINE_integer("num_devices", 14, "K", lower_bound=1)
flags.DEFINE_list(
    "slots",
    [f"{t / 10:g}" for t in range(3, 17)],
    "the T to sweep [s]; 0.3:0.5:0.1 is 0.3,0.4,0.5",
)


def main(argv: list[str]) -> None:
    """Train all lanes in one program, or draw again what is there."""
    common.begin(argv)
    axes = {"num_devices": [FLAGS.num_devices], "slot": list_flags.numbers("slots", above=0)}
    trainings.sweep_energy(axes, "slot", "figure5")


if __name__ == "__main__":
    common.launch(main)
