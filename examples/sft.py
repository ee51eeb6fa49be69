"""Trains a tiny language model with TRL's SFTTrainer, with an evaluation split, while rldk records the run.

The model starts untrained and learns to write small stories; its loss falls from 4.4 to about 1.0, nearly as
low as the random choices in the stories allow. Nothing is downloaded, and a CPU is enough.

    python examples/sft.py --output-dir ./rldk_logs/sft
"""

import argparse
import logging
from pathlib import Path

from datasets import Dataset
from tiny_lm import build_tiny_lm, make_stories, set_up_process
from transformers import AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from rldk.integrations.trl import RLDKCallback


def parse_args():
    """Reads the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--output-dir", type=Path, default=Path("./rldk_logs/sft"), help="where the files go")
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: 200)")
    return parser.parse_args()


def main():
    """Trains on stories, evaluates on others, and says what rldk saw."""
    args = parse_args()
    set_up_process()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rldk").setLevel(logging.INFO)

    model_path = build_tiny_lm(args.output_dir / "tiny_lm", pretrain_steps=0)
    stories = Dataset.from_dict({"text": make_stories(4000, seed=1)}).train_test_split(test_size=256, seed=0)

    print(f"Training for {args.steps} steps, with an evaluation every 50 ...", flush=True)
    recorder = RLDKCallback(output_dir=args.output_dir, log_interval=10)
    trainer = SFTTrainer(
        model=model_path,
        args=SFTConfig(
            output_dir=str(args.output_dir / "trainer"),
            run_name="sft",  # names the run's files
            max_steps=args.steps,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=2e-3,
            warmup_steps=20,
            lr_scheduler_type="cosine",
            eval_strategy="steps",
            eval_steps=50,
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
        train_dataset=stories["train"],
        eval_dataset=stories["test"],
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
