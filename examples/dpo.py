"""Trains a tiny language model with TRL's DPOTrainer on preference pairs while rldk records the run.

Each pair has two ends for one story: a mostly happy one, which is preferred, and a mostly sad one. The loss
falls from 0.69 (a coin toss between the two) to about 0.4. Nothing is downloaded, and a CPU is enough.

    python examples/dpo.py --output-dir ./rldk_logs/dpo
"""

import argparse
import logging
import random
from pathlib import Path

from datasets import Dataset
from tiny_lm import build_tiny_lm, make_opening, make_rest, set_up_process
from transformers import AutoTokenizer, PrinterCallback
from trl import DPOConfig, DPOTrainer

from rldk.integrations.trl import RLDKCallback


def make_pairs(count, seed=0):
    """Returns preference pairs: a happy and a sad end for each opening."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        opening = make_opening(rng)
        happy = make_rest(opening, rng, happy_fraction=0.7)
        sad = make_rest(opening, rng, happy_fraction=0.2)
        pairs.append({"prompt": opening, "chosen": " " + happy, "rejected": " " + sad})
    return Dataset.from_list(pairs)


def parse_args():
    """Reads the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--output-dir", type=Path, default=Path("./rldk_logs/dpo"), help="where the files go")
    parser.add_argument("--steps", type=int, default=100, help="DPO steps (default: 100)")
    return parser.parse_args()


def main():
    """Pre-trains the model, trains it on the pairs and says what rldk saw."""
    args = parse_args()
    set_up_process()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rldk").setLevel(logging.INFO)

    print("Pre-training a tiny language model on made-up stories ...", flush=True)
    model_path = build_tiny_lm(args.output_dir / "tiny_lm")

    print(f"Training it with DPO for {args.steps} steps, to prefer happy stories ...", flush=True)
    recorder = RLDKCallback(output_dir=args.output_dir, log_interval=10)
    trainer = DPOTrainer(
        model=model_path,
        args=DPOConfig(
            output_dir=str(args.output_dir / "trainer"),
            run_name="dpo",  # names the run's files
            max_steps=args.steps,
            per_device_train_batch_size=32,
            learning_rate=1.5e-4,
            beta=0.3,
            logging_steps=1,  # rldk records every step; its own lines come every `log_interval` steps
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # saves memory at the cost of time; there is plenty
            dataloader_pin_memory=False,  # pinning is for GPUs; on a CPU it only warns
            seed=0,
        ),
        train_dataset=make_pairs(2000),
        processing_class=AutoTokenizer.from_pretrained(model_path),
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every row of metrics when there is no progress bar
    trainer.train()

    print(f"\n{recorder.summary_text()}\n\nFiles:")
    for name, path in recorder.files.items():
        print(f"  {name}: {path}")


if __name__ == "__main__":
    main()
