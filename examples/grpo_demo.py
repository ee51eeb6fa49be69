"""Trains a tiny language model with TRL's GRPOTrainer while rldk records the run.

The model continues stories ("Anna walked to the park. ..."); the reward is the share of happy words among the
happy and sad ones it writes. It starts near 0.3 and rises to about 0.9. Everything is real (model, trainer,
rewards, gradients) and small enough for two CPU cores; nothing is downloaded.

    python examples/grpo_demo.py --output-dir ./rldk_demo_logs
"""

import argparse
import logging
import random
import time
from pathlib import Path

from datasets import Dataset
from tiny_lm import build_tiny_lm, happy_share, make_opening, set_up_process, write_stories
from transformers import AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from rldk.integrations.trl import RLDKCallback


def happy_words(completions, **kwargs):
    """The reward function: one number from 0.0 to 1.0 for each completion."""
    return [happy_share(completion) for completion in completions]


def parse_args():
    """Reads the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--output-dir", type=Path, default=Path("./rldk_demo_logs"), help="where the files go"
    )
    parser.add_argument("--steps", type=int, default=120, help="GRPO steps (default: 120)")
    return parser.parse_args()


def main():
    """Builds the model, trains it and says what rldk saw."""
    args = parse_args()
    started = time.time()
    set_up_process()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rldk").setLevel(logging.INFO)

    print("1/3 Pre-training a tiny language model on made-up stories ...", flush=True)
    model_path = build_tiny_lm(args.output_dir / "tiny_lm")

    print(f"2/3 Training it with GRPO for {args.steps} steps to write happy words ...", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    rng = random.Random(0)
    prompts = Dataset.from_dict({"prompt": [make_opening(rng) for _ in range(1000)]})
    recorder = RLDKCallback(output_dir=args.output_dir, log_interval=10)
    trainer = GRPOTrainer(
        model=model_path,
        reward_funcs=happy_words,
        args=GRPOConfig(
            output_dir=str(args.output_dir / "trainer"),
            run_name="grpo_demo",  # names the run's files
            max_steps=args.steps,
            per_device_train_batch_size=64,  # 8 prompts with 8 completions each
            num_generations=8,
            max_completion_length=48,  # the stories end by themselves after about 21 tokens
            learning_rate=4e-4,
            beta=0.1,  # a little KL penalty, so that the divergence from the first model is logged
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
        train_dataset=prompts,
        processing_class=tokenizer,
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every row of metrics when there is no progress bar
    trainer.train()

    print(f"3/3 Done in {time.time() - started:.0f} s. What the model writes now:")
    openings = [make_opening(rng) for _ in range(3)]
    for opening, rest in zip(openings, write_stories(trainer.model, tokenizer, openings)):
        print(f"  {opening}{rest}")

    print(f"\n{recorder.summary_text()}\n\nFiles:")
    for name, path in recorder.files.items():
        print(f"  {name}: {path}")


if __name__ == "__main__":
    main()
